from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info

from davit.data import (
    BadImageError,
    Batch,
    DataError,
    EvalLoader,
    LoaderError,
    PictureDataset,
    SeededDataset,
    TrainLoader,
    eval_transform,
    open_dataset,
    prefetch,
    save_images,
    to_device,
    train_transform,
)
from davit.data.decode import Reduction

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
MakeFolder = Callable[..., Path]
HEAVY: dict[str, Any] = {"img_size": 16, "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5}


@pytest.fixture(params=[0, 1, 3], ids="{} workers".format)
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


def digest(batches: Iterable[Batch]) -> list[str]:
    """One hash a batch, over every bit of it."""
    return [
        hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in batch[:3])).hexdigest()
        for batch in batches
    ]


def collect(loader: TrainLoader | EvalLoader, *args: int) -> list[str]:
    try:
        return digest(loader.batches(*args))
    finally:
        loader.close()


class CountingSource:
    """Writes each position it decodes to a log that all processes share."""

    def __init__(self, source: Any, log: Path) -> None:
        self.source, self.log, self.class_to_idx = source, log, source.class_to_idx

    def __len__(self) -> int:
        return len(self.source)

    def filename(self, index: int) -> str:
        return self.source.filename(index)

    def path(self, index: int) -> str:
        return self.source.path(index)

    def read(self, index: int, reduction: Reduction | None = None) -> tuple[Image.Image, int]:
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        return self.source.read(index, reduction)

    def decoded(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


# The same samples, whoever reads them


def test_batches_do_not_depend_on_workers(train_set: PictureDataset):
    for aug in (HEAVY, {**HEAVY, "aug_splits": 2}, {**HEAVY, "aa": "augmix-m5-w4"}, {**HEAVY, "aa": None}):
        train_set.transform = train_transform(**aug)
        runs = [collect(TrainLoader(train_set, batch_size=8, num_workers=n, seed=7), 1) for n in (0, 1, 3)]
        assert len(runs[0]) == 5
        assert runs[0] == runs[1] == runs[2]


def test_a_sample_depends_on_its_key_only(train_set: PictureDataset):
    train_set.transform = train_transform(**HEAVY)
    samples = SeededDataset(train_set, seed=3)
    keys = [(epoch, index) for epoch in range(2) for index in range(10)]
    expected = {key: samples[key].image for key in keys}
    random.Random(0).shuffle(keys)
    for key in keys:
        random.random(), np.random.rand(), torch.rand(3)
        assert torch.equal(samples[key].image, expected[key])
        assert torch.equal(samples[(*key, 0)].image, expected[key])
        assert not torch.equal(samples[(*key, 1)].image, expected[key])
        assert samples[key].position == key[1]
        assert samples[key].target == train_set[key[1]][1]
    assert not torch.equal(expected[0, 4], expected[1, 4])
    assert not torch.equal(SeededDataset(train_set, seed=4)[0, 4].image, expected[0, 4])


def test_the_main_process_keeps_its_random_numbers(train_set: PictureDataset, workers: int):
    train_set.transform = train_transform(**HEAVY)

    def states() -> tuple[Any, ...]:
        return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    before = states()
    train = TrainLoader(train_set, batch_size=8, num_workers=workers)
    for epoch in range(2):
        for _ in train.batches(epoch):
            assert states() == before
    train.close()
    train_set.transform = eval_transform(img_size=16)
    evaluate = EvalLoader(train_set, batch_size=8, num_workers=workers)
    for _ in evaluate.batches():
        assert states() == before
    evaluate.close()
    assert states() == before


@pytest.mark.parametrize("accum", [1, 2])
def test_process_counts_share_the_same_steps(train_set: PictureDataset, accum: int):
    train_set.transform = train_transform(**HEAVY)

    def steps(world_size: int) -> list[torch.Tensor]:
        options = {"batch_size": 8 // world_size // accum, "world_size": world_size, "accum_steps": accum}
        loaders = [TrainLoader(train_set, rank=rank, **options) for rank in range(world_size)]
        assert {loader.steps_per_epoch for loader in loaders} == {5}
        rows = [
            torch.cat([b.images for b in micro])
            for micro in zip(*(x.batches(4) for x in loaders), strict=True)
        ]
        return [torch.cat(rows[s : s + accum]) for s in range(0, len(rows), accum)]

    for world_size in (2, 4):
        for ours, reference in zip(steps(world_size), steps(1), strict=True):
            assert torch.equal(ours, reference)


def test_resuming_within_an_epoch_reads_the_rest_and_nothing_else(
    train_set: PictureDataset, workers: int, tmp_path: Path
):
    train_set.transform = train_transform(**HEAVY)
    options: dict[str, Any] = {"batch_size": 4, "accum_steps": 2, "num_workers": workers}
    whole = collect(TrainLoader(train_set, **options), 2)
    for step in (0, 1, 3, 5):
        counting = CountingSource(train_set.source, tmp_path / f"log{step}")
        dataset = PictureDataset(counting, train_set.transform)
        loader = TrainLoader(dataset, **options)
        expected = [i for keys in loader.sampler.micro_batches(2, step) for _, i, _ in keys]
        assert collect(loader, 2, step) == whole[2 * step :]
        assert sorted(counting.decoded()) == sorted(expected)
    with pytest.raises(ValueError, match="step 6 is not in an epoch of 5"):
        TrainLoader(train_set, **options).batches(0, 6)


def test_after_a_break_the_next_pass_is_whole(train_set: PictureDataset, workers: int):
    train_set.transform = train_transform(**HEAVY)
    expected = [collect(TrainLoader(train_set, batch_size=4), epoch) for epoch in range(3)]
    loader = TrainLoader(train_set, batch_size=4, num_workers=workers)
    for epoch, take in ((0, 1), (1, 4), (2, 0), (0, 9)):
        for number, batch in enumerate(loader.batches(epoch)):
            if number == take:
                break
            assert digest([batch]) == [expected[epoch][number]]
        assert digest(loader.batches(epoch)) == expected[epoch]
    loader.close()
    assert digest(loader.batches(1, 6)) == expected[1][6:]  # closed loaders start again
    loader.close()


def test_an_older_pass_ends_when_a_newer_one_starts(train_set: PictureDataset, workers: int):
    train_set.transform = eval_transform(img_size=16)
    loader = TrainLoader(train_set, batch_size=4, num_workers=workers)
    older = loader.batches(0)
    next(older)
    newer = loader.batches(1)
    first = next(newer)
    with pytest.raises(RuntimeError, match="ended when a later one was started"):
        next(older)
    assert digest([first, *newer]) == collect(TrainLoader(train_set, batch_size=4), 1)
    loader.close()


def test_workers_persist_over_epochs(train_set: PictureDataset):
    def in_worker(image: Image.Image) -> torch.Tensor:
        assert get_worker_info() is not None
        assert torch.get_num_threads() == 1
        return torch.tensor([float(os.getpid())])

    train_set.transform = in_worker
    torch.set_num_threads(2)
    loader = TrainLoader(train_set, batch_size=4, num_workers=2)
    pids = [
        {float(value) for batch in loader.batches(epoch) for value in batch.images.flatten()}
        for epoch in range(3)
    ]
    assert len(pids[0]) == 2
    assert pids[0] == pids[1] == pids[2]
    loader.close()
    for pid in pids[0]:
        assert not _alive(int(pid))


def test_repeats_of_a_picture_are_augmented_differently(train_set: PictureDataset):
    train_set.transform = train_transform(**HEAVY)
    (batch,) = TrainLoader(train_set, batch_size=39, repeated_aug=True).batches(0)
    assert batch.indices.tolist() == batch.indices[::3].repeat_interleave(3).tolist()
    versions = {image.numpy().tobytes() for image in batch.images}
    assert len(versions) == 39


# What a batch is


def test_the_parts_of_a_batch(train_set: PictureDataset):
    train_set.transform = train_transform(**HEAVY)
    batch = next(iter(TrainLoader(train_set, batch_size=6).batches(0)))
    assert (batch.images.shape, batch.images.dtype) == ((6, 3, 16, 16), torch.float32)
    assert batch.images.is_contiguous()
    assert batch.targets.dtype == batch.indices.dtype == torch.int64
    assert [train_set[i][1] for i in batch.indices.tolist()] == batch.targets.tolist()
    assert batch.bad == ()


def test_augmentation_splits_lie_split_by_split(train_set: PictureDataset):
    train_set.transform = train_transform(**{**HEAVY, "reprob": 0.0}, aug_splits=3)
    batch = next(iter(TrainLoader(train_set, batch_size=4, seed=1).batches(0)))
    assert batch.images.shape == (12, 3, 16, 16)
    assert batch.targets.tolist() == batch.targets[:4].tolist() * 3
    assert len(batch.indices) == 4
    for row, index in enumerate(batch.indices.tolist()):
        assert torch.equal(batch.images[row::4], SeededDataset(train_set, 1)[0, index].image)


def test_to_device_and_prefetch_keep_the_batches(train_set: PictureDataset):
    train_set.transform = eval_transform(img_size=16)
    loader = EvalLoader(train_set, batch_size=16)
    cpu = torch.device("cpu")
    assert digest(prefetch(loader.batches(), cpu)) == digest(loader.batches())
    moved = to_device(next(iter(loader.batches())), cpu, channels_last=True)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    (moved, *_) = prefetch(loader.batches(), cpu, channels_last=True)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)


def test_save_images(train_set: PictureDataset, tmp_path: Path):
    train_set.transform = eval_transform(img_size=16)
    save_images(next(iter(EvalLoader(train_set, batch_size=16).batches())), tmp_path / "batch.png")
    with Image.open(tmp_path / "batch.png") as image:
        assert image.size == (8 * 16, 2 * 16)


def test_impossible_numbers(train_set: PictureDataset):
    with pytest.raises(ValueError, match="--workers -1"):
        TrainLoader(train_set, batch_size=4, num_workers=-1)
    with pytest.raises(ValueError, match="batch size: 0"):
        EvalLoader(train_set, batch_size=0)
    with pytest.raises(ValueError, match="rank 3"):
        EvalLoader(train_set, batch_size=1, rank=3, world_size=3)
    with pytest.raises(DataError, match="40 training samples an epoch are fewer than one step's 64"):
        TrainLoader(train_set, batch_size=64)


# Evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 11])
def test_evaluation_counts_every_picture_once(world_size: int, make_folder: MakeFolder):
    dataset = open_dataset(make_folder(), "validation", transform=eval_transform(img_size=16))  # 10 pictures
    seen: list[int] = []
    for rank in range(world_size):
        loader = EvalLoader(dataset, batch_size=3, rank=rank, world_size=world_size)
        batches = list(loader.batches())
        assert len(batches) == loader.num_batches
        assert loader.num_samples == 10
        for batch in batches:
            assert batch.targets.tolist() == [dataset[i][1] for i in batch.indices.tolist()]
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(10))


def test_evaluation_does_not_depend_on_workers(train_set: PictureDataset):
    train_set.transform = eval_transform(img_size=16)
    runs = [collect(EvalLoader(train_set, batch_size=7, num_workers=n)) for n in (0, 1, 3)]
    assert len(runs[0]) == 6
    assert runs[0] == runs[1] == runs[2]


# Bad pictures


@pytest.fixture
def spoilt(make_folder: MakeFolder) -> PictureDataset:
    """40 pictures, of which positions 0, 11, 12 and 39 cannot be read."""
    root = make_folder()
    dataset = open_dataset(root, "train", transform=train_transform(**HEAVY))
    contents = {0: b"", 11: b"text", 12: b"\xff\xd8\xff\xe0 cut", 39: b""}
    for position, content in contents.items():
        Path(dataset.source.path(position)).write_bytes(content)
    return dataset


def test_a_bad_picture_stops_the_run_with_its_name(spoilt: PictureDataset, workers: int):
    train = TrainLoader(spoilt, batch_size=4, num_workers=workers)
    evaluate = EvalLoader(spoilt, batch_size=4, num_workers=workers)
    with pytest.raises(BadImageError) as caught:
        list(train.batches(0))
    assert caught.value.file in {spoilt.source.path(i) for i in (0, 11, 12, 39)}
    assert str(caught.value).startswith(f"{caught.value.file}: ")
    assert "Traceback" not in str(caught.value)
    with pytest.raises(BadImageError, match=r"train/ant/000\.png: empty file"):
        list(evaluate.batches())
    train.close()
    evaluate.close()


def test_the_error_also_crosses_a_plain_data_loader(spoilt: PictureDataset):
    batches: Any = iter(DataLoader(spoilt, batch_size=4, num_workers=1))
    with pytest.raises(BadImageError, match=r"000\.png: empty file"):
        next(batches)
    batches._shutdown_workers()  # left to the garbage collector this takes seconds


def test_skipped_pictures_are_replaced_in_training(spoilt: PictureDataset, workers: int):
    loader = TrainLoader(spoilt, batch_size=8, num_workers=workers, skip_bad_images=True)
    for epoch in range(2):
        requested = [i for keys in loader.sampler.micro_batches(epoch) for _, i, _ in keys]
        batches = list(loader.batches(epoch))
        used = [i for batch in batches for i in batch.indices.tolist()]
        substitutes = {0: 1, 11: 13, 12: 13, 39: 1}
        assert used == [substitutes.get(i, i) for i in requested]
        assert [spoilt.source.target(i) for i in used] == [
            t for batch in batches for t in batch.targets.tolist()
        ]
    assert set(loader.bad_images) == {spoilt.source.path(i) for i in (0, 11, 12, 39)}
    assert loader.bad_images[spoilt.source.path(0)] == "empty file (0 bytes)"
    loader.close()


def test_skipping_is_the_same_with_any_workers_and_augments_by_the_key(spoilt: PictureDataset):
    runs = [
        collect(TrainLoader(spoilt, batch_size=8, num_workers=n, skip_bad_images=True), 0) for n in (0, 3)
    ]
    assert runs[0] == runs[1]
    samples = SeededDataset(spoilt, 0, skip_bad_images=True)
    assert samples[0, 0].position == samples[0, 1].position == 1
    assert not torch.equal(samples[0, 0].image, samples[0, 1].image)


def test_skipped_pictures_are_left_out_of_evaluation(spoilt: PictureDataset, workers: int):
    spoilt.transform = eval_transform(img_size=16)
    loader = EvalLoader(spoilt, batch_size=2, num_workers=workers, skip_bad_images=True)
    for _ in range(2):
        seen = [i for batch in loader.batches() for i in batch.indices.tolist()]
        assert seen == [i for i in range(40) if i not in (0, 11, 12, 39)]
    assert len(loader.bad_images) == 4
    loader.close()
    single = EvalLoader(spoilt, batch_size=1, skip_bad_images=True)  # whole batches of nothing
    assert sum(len(batch.indices) for batch in single.batches()) == 36


def test_a_data_set_without_one_good_picture(make_folder: MakeFolder, workers: int):
    dataset = open_dataset(make_folder(train=8), "train", transform=eval_transform(img_size=16))
    for i in range(8):
        Path(dataset.source.path(i)).write_bytes(b"")
    options: dict[str, Any] = {"batch_size": 4, "num_workers": workers, "skip_bad_images": True}
    for loader in (TrainLoader(dataset, **options), EvalLoader(dataset, **options)):
        with pytest.raises(DataError, match=r"none of the 8 pictures can be read; the first: .*empty file"):
            list(loader.batches(0) if isinstance(loader, TrainLoader) else loader.batches())
        loader.close()


def test_a_rank_with_bad_pictures_only_goes_on(make_folder: MakeFolder):
    dataset = open_dataset(make_folder(train=8), "train", transform=eval_transform(img_size=16))
    for i in range(0, 8, 2):
        Path(dataset.source.path(i)).write_bytes(b"")
    ranks = [EvalLoader(dataset, batch_size=4, rank=r, world_size=2, skip_bad_images=True) for r in range(2)]
    assert [sum(len(b.indices) for b in rank.batches()) for rank in ranks] == [0, 4]
    assert [len(rank.bad_images) for rank in ranks] == [4, 0]


# Workers and processes


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_gone(pids: Iterable[int], seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    left = list(pids)
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = [pid for pid in left if _alive(pid)]
    return left


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_a_clear_error(train_set: PictureDataset):
    def die(image: Image.Image) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)

    train_set.transform = die
    loader = TrainLoader(train_set, batch_size=4, num_workers=2)
    with pytest.raises(LoaderError, match=r"a data worker died.*--workers"):
        list(loader.batches(0))
    train_set.transform = eval_transform(img_size=16)
    assert len(list(loader.batches(0))) == 10
    loader.close()


def test_a_hung_worker_times_out_and_is_killed(train_set: PictureDataset):
    def hang(image: Image.Image) -> torch.Tensor:
        time.sleep(1000)
        return torch.zeros(1)

    train_set.transform = hang
    loader = TrainLoader(train_set, batch_size=4, num_workers=1, timeout=1)
    batches = loader.batches(0)
    with pytest.raises(LoaderError, match="timed out after 1 seconds"):
        next(batches)


def test_a_bug_in_a_transform_is_not_taken_for_a_dead_worker(train_set: PictureDataset, workers: int):
    def bug(image: Image.Image) -> torch.Tensor:
        raise RuntimeError("a bug of mine")

    train_set.transform = bug
    loader = TrainLoader(train_set, batch_size=4, num_workers=workers, skip_bad_images=True)
    with pytest.raises(RuntimeError, match="a bug of mine") as caught:
        list(loader.batches(0))
    assert not isinstance(caught.value, LoaderError)
    loader.close()


def _train_until_signalled(root: Path, parent: Connection, stop_at_signal: bool) -> None:
    """A process of a group of its own: reports its workers' pids, then which signal stopped it."""
    os.setsid()
    dataset = open_dataset(root, "train", transform=_slow_pid)
    loader = TrainLoader(dataset, batch_size=2, num_workers=3, repeats=1000)
    seen: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: seen.append(signal.Signals(number).name))
    pids: set[int] = set()
    for count, batch in enumerate(loader.batches(0)):
        pids |= set(batch.images.flatten().int().tolist())
        if count == 10:
            parent.send(sorted(pids))
        if seen and stop_at_signal:
            break
    loader.close()
    parent.send(seen)


def _slow_pid(image: Image.Image) -> torch.Tensor:
    time.sleep(0.01)
    return torch.tensor([float(os.getpid())])


@pytest.fixture
def start_run(make_folder: MakeFolder):
    """Starts such a process; gives it, the connection to it and its workers' pids."""
    context = multiprocessing.get_context("fork")
    started: list[Any] = []

    def start(*, stop_at_signal: bool) -> tuple[Any, Connection, list[int]]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_train_until_signalled, args=(make_folder(), theirs, stop_at_signal))
        process.start()
        started.append(process)
        pids = ours.recv()
        assert len(pids) == 3
        return process, ours, pids

    yield start
    for process in started:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_leave_signals_to_the_main_process(start_run: Any, number: signal.Signals):
    process, connection, pids = start_run(stop_at_signal=True)
    for pid in pids:
        os.kill(pid, number)
    time.sleep(0.3)
    assert all(_alive(pid) for pid in pids)
    os.killpg(process.pid, number)
    assert connection.poll(30)
    assert connection.recv() == [number.name]
    process.join(10)
    assert process.exitcode == 0
    assert _wait_gone(pids, 1) == []


def test_workers_end_with_a_killed_parent(start_run: Any):
    process, _, pids = start_run(stop_at_signal=False)
    process.kill()
    process.join()
    assert _wait_gone(pids, 15) == []


def test_a_forked_copy_leaves_the_workers_alone(train_set: PictureDataset):
    train_set.transform = eval_transform(img_size=16)
    loader = TrainLoader(train_set, batch_size=4, num_workers=1)
    expected = digest(loader.batches(0))
    copy = multiprocessing.get_context("fork").Process(target=loader.close)
    copy.start()
    copy.join()
    assert copy.exitcode == 0
    assert digest(loader.batches(0)) == expected
    loader.close()


def test_data_sets_pickle_for_workers_that_are_spawned(train_set: PictureDataset):
    train_set.transform = train_transform(**HEAVY)
    again = pickle.loads(pickle.dumps(train_set))
    assert collect(TrainLoader(again, batch_size=8), 0) == collect(TrainLoader(train_set, batch_size=8), 0)


def test_a_loader_that_is_dropped_ends_its_workers(train_set: PictureDataset):
    train_set.transform = _slow_pid
    loader = TrainLoader(train_set, batch_size=4, num_workers=2)
    pids = {int(value) for batch in loader.batches(0) for value in batch.images.flatten()}
    del loader
    gc.collect()
    assert _wait_gone(pids, 1) == []


@pytest.mark.long
def test_a_run_with_a_stuck_worker_still_ends(make_folder: MakeFolder):
    script = """
        import sys, threading, time
        from davit.data import TrainLoader, open_dataset
        dataset = open_dataset(sys.argv[1], "train", transform=lambda image: time.sleep(1000))
        loader = TrainLoader(dataset, batch_size=2, num_workers=1)
        batches = loader.batches(0)
        threading.Thread(target=lambda: next(batches), daemon=True).start()
        time.sleep(1)
        raise SystemExit(7)
    """
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(make_folder())], timeout=60, check=False
    )
    assert done.returncode == 7
    assert time.monotonic() - begin < 40
