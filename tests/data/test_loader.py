from __future__ import annotations

import errno
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
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, _utils, get_worker_info

from davit.commands import exit_status
from davit.data import (
    BadImageError,
    Batch,
    DataError,
    EpochSampler,
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

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
MakeFolder = Callable[..., Path]
HEAVY: dict[str, Any] = {"img_size": 16, "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5}


@pytest.fixture(params=[0, 2], ids="{} workers".format)
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def heavy(train_set: PictureDataset) -> PictureDataset:
    """40 images with all augmentation."""
    train_set.transform = train_transform(**HEAVY)
    return train_set


@pytest.fixture
def plain(train_set: PictureDataset) -> PictureDataset:
    train_set.transform = eval_transform(img_size=16)
    return train_set


def train_loader(dataset: PictureDataset, batch_size: int = 4, *, workers: int = 0, **options: Any) -> TrainLoader:
    own = {name: options.pop(name) for name in ("skip_bad_images", "timeout") if name in options}
    return TrainLoader(dataset, EpochSampler(len(dataset), batch_size=batch_size, **options), workers=workers, **own)


def digest(batches: Iterable[Batch]) -> list[str]:
    """One hash a batch, over every bit of it."""
    return [
        hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in batch[:3])).hexdigest() for batch in batches
    ]


class MemorySource:
    """Images of one colour each; every position that is decoded is written to a log that all processes share."""

    class_to_idx: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, count: int, bad: Iterable[int] = (), log: str | Path = os.devnull) -> None:
        self.count, self.bad, self.log = count, bad, log

    def __len__(self) -> int:
        return self.count

    def filename(self, index: int) -> str:
        return str(index)

    path = filename

    def names(self) -> list[str]:
        return list(map(str, range(self.count)))

    def open(self, index: int) -> tuple[Image.Image, int]:
        with open(self.log, "a") as file:  # noqa: PTH123
            file.write(f"{index}\n")
        if index in self.bad:
            raise BadImageError.of(str(index), "spoilt")
        return Image.new("RGB", (4, 4), (index % 256,) * 3), index % 7


# The same samples, whoever reads them


def random_states() -> tuple[Any, ...]:
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("aug", [{}, {"aa": "augmix-m5-w4", "aug_splits": 2}], ids=str)
def test_batches_depend_neither_on_workers_nor_on_pickling_and_draw_no_random_numbers(
    train_set: PictureDataset, aug: dict[str, Any]
):
    train_set.transform = train_transform(**{**HEAVY, **aug})
    runs, before = [], random_states()
    for dataset, workers in ((train_set, 0), (train_set, 2), (pickle.loads(pickle.dumps(train_set)), 0)):
        loader, batches = train_loader(dataset, 8, workers=workers, seed=7), []
        for batch in loader.batches(1):
            assert random_states() == before
            batches.append(batch)
        loader.close()
        runs.append(digest(batches))
    assert len(runs[0]) == 5 and runs[0] == runs[1] == runs[2]
    train_set.transform = eval_transform(img_size=16)
    runs = [digest(EvalLoader(train_set, batch_size=7, workers=n).batches()) for n in (0, 2)]
    assert len(runs[0]) == 6 and runs[0] == runs[1]
    assert random_states() == before


def test_a_sample_depends_on_its_key_only(heavy: PictureDataset):
    samples = SeededDataset(heavy, seed=3)
    keys = [(epoch, index, repeat) for epoch in range(2) for index in range(5) for repeat in range(2)]
    expected = {key: samples[key].image for key in keys}
    assert len({image.numpy().tobytes() for image in expected.values()}) == len(keys)
    random.Random(0).shuffle(keys)
    for key in keys:
        random.random(), np.random.rand(), torch.rand(3)
        sample = samples[key]
        assert torch.equal(sample.image, expected[key])
        assert (sample.position, sample.target) == (key[1], heavy[key[1]][1])
    assert not torch.equal(SeededDataset(heavy, seed=4)[0, 4, 0].image, expected[0, 4, 0])


def test_resuming_within_an_epoch_reads_the_rest_and_nothing_else(heavy: PictureDataset, workers: int, tmp_path: Path):
    order: dict[str, Any] = {"batch_size": 4, "grad_accum_steps": 2}
    whole = digest(train_loader(heavy, workers=workers, **order).batches(2))
    for step in (0, 3):
        assert digest(train_loader(heavy, workers=workers, **order).batches(2, step)) == whole[2 * step :]
        source = MemorySource(40, log=tmp_path / f"log{step}")
        loader = train_loader(PictureDataset(source, heavy.transform), workers=workers, **order)
        expected = [i for keys in loader.sampler.micro_batches(2, step) for _, i, _ in keys]
        assert [i for batch in loader.batches(2, step) for i in batch.indices.tolist()] == expected
        assert sorted(map(int, Path(source.log).read_text().split())) == sorted(expected)


def test_after_a_break_the_next_pass_is_whole_and_the_broken_one_has_ended(heavy: PictureDataset, workers: int):
    expected = [digest(train_loader(heavy).batches(epoch)) for epoch in range(2)]
    loader = train_loader(heavy, workers=workers)
    for epoch, take in ((0, 1), (1, 4), (0, 9)):
        older = loader.batches(epoch)
        assert digest(islice(older, take)) == expected[epoch][:take]
        newer = loader.batches(epoch)
        first = next(newer)
        with pytest.raises(RuntimeError):
            next(older)
        assert digest([first, *newer]) == expected[epoch]
    loader.close()
    assert digest(loader.batches(1, 6)) == expected[1][6:]  # closed loaders start again


# What a batch is


@pytest.mark.parametrize("splits", [0, 3])
def test_the_parts_of_a_batch(train_set: PictureDataset, splits: int):
    """Augmentation splits lie split by split."""
    train_set.transform = train_transform(**{**HEAVY, "reprob": 0.0}, aug_splits=splits)
    batch = next(train_loader(train_set, seed=1).batches(0))
    rows = 4 * (splits or 1)
    assert (batch.images.shape, batch.images.dtype) == ((rows, 3, 16, 16), torch.float32)
    assert batch.images.is_contiguous() or splits
    assert batch.targets.dtype == batch.indices.dtype == torch.int64
    assert batch.targets.tolist() == [train_set[i][1] for i in batch.indices.tolist()] * (splits or 1)
    assert batch.bad == ()
    for row, index in enumerate(batch.indices.tolist()):
        expected = SeededDataset(train_set, 1)[0, index, 0].image
        assert torch.equal(batch.images[row::4], expected if splits else expected[None])


def test_batches_are_moved_and_saved_as_they_are(plain: PictureDataset, tmp_path: Path):
    loader = EvalLoader(plain, batch_size=16)
    cpu = torch.device("cpu")
    assert digest(prefetch(loader.batches(), cpu)) == digest(loader.batches())
    moved = to_device(next(loader.batches()), cpu, channels_last=True)
    prefetched = next(prefetch(loader.batches(), cpu, channels_last=True))
    for batch in (moved, prefetched):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    save_images(moved, tmp_path / "batch.png")
    with Image.open(tmp_path / "batch.png") as image:
        assert image.size == (8 * 16, 2 * 16)


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"batch_size": 0}, {"rank": 3, "world_size": 3}], ids=str)
def test_impossible_numbers(plain: PictureDataset, wrong: dict[str, int]):
    name, value = next(iter(wrong.items()))
    for make in (train_loader, EvalLoader):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            make(plain, **{"batch_size": 4, **wrong})


# Evaluation


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.integers(0, 40),
    st.integers(1, 11),
    st.integers(1, 9),
    st.sampled_from([set(), {0, 3, 4}, set(range(0, 40, 2)), set(range(20))]),
)
@example(count=4, world_size=2, batch_size=2, bad={0, 2})  # all of rank 0's are bad
@example(count=1, world_size=2, batch_size=2, bad=set())  # rank 1 has none
@example(count=0, world_size=1, batch_size=2, bad=set())
@example(count=3, world_size=5, batch_size=2, bad={0, 1, 2})
def test_evaluation_counts_every_picture_once(count: int, world_size: int, batch_size: int, bad: set[int]):
    """Or names it as bad, also where all of a batch or of a rank's are; one that nobody can read is an error."""
    source = MemorySource(count, bad)
    dataset = PictureDataset(source, eval_transform(img_size=4))
    seen: list[int] = []
    for rank in range(world_size):
        loader = EvalLoader(dataset, batch_size=batch_size, rank=rank, world_size=world_size, skip_bad_images=True)
        if count and bad.issuperset(range(count)):
            with pytest.raises(DataError):
                list(loader.batches())
            continue
        batches = list(loader.batches())
        assert loader.num_samples == count
        assert len(batches) == loader.num_batches or bad
        for batch in batches:
            assert batch.targets.tolist() == [i % 7 for i in batch.indices.tolist()]
            seen += batch.indices.tolist()
        seen += map(int, loader.bad_images)
    assert sorted(seen) == list(range(count)) or bad.issuperset(range(count))


# Bad images


BAD = {0: b"", 11: b"text", 12: b"\xff\xd8\xff\xe0 cut", 39: b""}


@pytest.fixture
def spoilt(heavy: PictureDataset) -> set[str]:
    """Overwrites images of the data set; their paths."""
    for position, content in BAD.items():
        Path(heavy.source.path(position)).write_bytes(content)
    return {heavy.source.path(position) for position in BAD}


def test_a_bad_picture_stops_the_run_with_its_name(heavy: PictureDataset, spoilt: set[str], workers: int):
    with pytest.raises(BadImageError) as caught:
        list(train_loader(heavy, workers=workers).batches(0))
    assert caught.value.file in spoilt
    assert str(caught.value).startswith(f"{caught.value.file}: ")
    assert "Traceback" not in str(caught.value)
    with pytest.raises(BadImageError) as caught:
        list(EvalLoader(heavy, batch_size=4, workers=workers).batches())
    assert caught.value.file == heavy.source.path(0)
    batches: Any = iter(DataLoader(heavy, batch_size=4, num_workers=workers))  # a plain one
    with pytest.raises(BadImageError, match=r"000\.png"):
        next(batches)
    if workers:
        batches._shutdown_workers()  # left to the garbage collector this takes seconds


def test_skipped_pictures_are_replaced_in_training_and_left_out_of_evaluation(
    heavy: PictureDataset, spoilt: set[str], workers: int
):
    loader = train_loader(heavy, 8, workers=workers, skip_bad_images=True)
    targets = heavy.source.targets()
    for epoch in range(2):
        requested = [i for keys in loader.sampler.micro_batches(epoch) for _, i, _ in keys]
        batches = list(loader.batches(epoch))
        used = [i for batch in batches for i in batch.indices.tolist()]
        substitutes = {0: 1, 11: 13, 12: 13, 39: 1}
        assert used == [substitutes.get(i, i) for i in requested]
        assert [targets[i] for i in used] == [t for batch in batches for t in batch.targets.tolist()]
        assert digest(batches) == digest(train_loader(heavy, 8, skip_bad_images=True).batches(epoch))
    assert set(loader.bad_images) == spoilt
    assert all(loader.bad_images.values())
    samples = SeededDataset(heavy, 0, skip_bad_images=True)  # a substitute is augmented by the key that was asked for
    assert samples[0, 0, 0].position == samples[0, 1, 0].position == 1
    assert not torch.equal(samples[0, 0, 0].image, samples[0, 1, 0].image)
    evaluation = EvalLoader(heavy, batch_size=2, workers=workers, skip_bad_images=True)
    for _ in range(2):
        seen = [i for batch in evaluation.batches() for i in batch.indices.tolist()]
        assert seen == [i for i in range(40) if i not in BAD]
    assert set(evaluation.bad_images) == spoilt


def test_a_data_set_without_one_good_picture(workers: int):
    dataset = PictureDataset(MemorySource(8, range(8)), eval_transform(img_size=4))
    options: dict[str, Any] = {"batch_size": 4, "workers": workers, "skip_bad_images": True}
    for batches in (train_loader(dataset, **options).batches(0), EvalLoader(dataset, **options).batches()):
        with pytest.raises(DataError, match=r"8 .*spoilt"):
            list(batches)


# Workers and processes


def _wait_gone(pids: Iterable[int], seconds: float) -> bool:
    def is_alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    end = time.monotonic() + seconds
    while (left := any(map(is_alive, pids))) and time.monotonic() < end:
        time.sleep(0.05)
    return not left


def _pid(image: Image.Image) -> torch.Tensor:
    time.sleep(0.01)
    return torch.tensor([float(os.getpid())])


def _pids(batches: Iterable[Batch]) -> set[int]:
    return {int(value) for batch in batches for value in batch.images.flatten()}


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a parent that is gone, and for workers that end; torch does each 5 seconds."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    monkeypatch.setattr(_utils.worker, "MP_STATUS_CHECK_INTERVAL", 0.5)


def test_workers_persist_over_epochs_and_end_with_their_loader(train_set: PictureDataset):
    def in_worker(image: Image.Image) -> torch.Tensor:
        assert get_worker_info() is not None
        assert torch.get_num_threads() == 1
        return _pid(image)

    train_set.transform = in_worker
    torch.set_num_threads(2)
    try:
        loader = train_loader(train_set, workers=2)
        pids = [_pids(loader.batches(epoch)) for epoch in range(3)]
        assert len(pids[0]) == 2
        assert pids[0] == pids[1] == pids[2]
        loader.close()
        assert _wait_gone(pids[0], 0)
        others = _pids(loader.batches(0))
    finally:
        torch.set_num_threads(1)
    assert others.isdisjoint(pids[0])
    del loader
    gc.collect()
    assert _wait_gone(others, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("timeout", [0, 1], ids=["killed", "hung"])
def test_a_dead_or_hung_worker_is_a_clear_error_and_the_next_pass_has_new_ones(
    train_set: PictureDataset, timeout: float
):
    def fail(image: Image.Image) -> None:
        if timeout:
            time.sleep(1000)
        os.kill(os.getpid(), signal.SIGKILL)

    train_set.transform = fail
    loader = train_loader(train_set, workers=1, timeout=timeout)
    with pytest.raises(LoaderError, match="workers=0"):
        list(loader.batches(0))
    train_set.transform = eval_transform(img_size=16)
    assert len(list(loader.batches(0))) == 10


def test_a_bug_in_a_transform_is_not_taken_for_a_dead_worker(train_set: PictureDataset, workers: int):
    def fail(image: Image.Image) -> torch.Tensor:
        raise RuntimeError("a bug of mine")

    train_set.transform = fail
    with pytest.raises(RuntimeError, match="a bug of mine") as caught:
        list(train_loader(train_set, workers=workers, skip_bad_images=True).batches(0))
    assert not isinstance(caught.value, LoaderError)


def _train_until_signalled(root: Path, parent: Connection) -> None:
    """A process of a group of its own: reports its workers' pids, then which signal stopped it."""
    os.setsid()
    loader = train_loader(open_dataset(root, "train", transform=_pid), 2, workers=3, epoch_repeats=1000)
    seen: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: seen.append(signal.Signals(number).name))
    pids: set[int] = set()
    for count, batch in enumerate(loader.batches(0)):
        pids |= _pids([batch])
        if count == 10:
            parent.send(sorted(pids))
        if seen:
            break
    loader.close()
    parent.send(seen)


@pytest.mark.parametrize("killed", [True, False])
def test_workers_leave_signals_to_the_main_process_and_end_with_it(make_folder: MakeFolder, killed: bool):
    context = multiprocessing.get_context("fork")
    connection, theirs = context.Pipe()
    process = context.Process(target=_train_until_signalled, args=(make_folder(), theirs))
    process.start()
    try:
        pids = connection.recv()
        assert len(pids) == 3
        if killed:
            process.kill()
        else:
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
            assert not any(_wait_gone([pid], 0.1) for pid in pids)
            os.killpg(process.pid, signal.SIGINT)
            assert connection.poll(30)
            assert connection.recv() == ["SIGINT"]
        process.join(10)
        assert process.exitcode == (-signal.SIGKILL if killed else 0)
        assert _wait_gone(pids, 15 if killed else 1)
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def test_a_forked_copy_leaves_the_workers_alone(plain: PictureDataset):
    loader = train_loader(plain, workers=1)
    expected = digest(loader.batches(0))
    copy = multiprocessing.get_context("fork").Process(target=loader.close)
    copy.start()
    copy.join()
    assert copy.exitcode == 0
    assert digest(loader.batches(0)) == expected


@pytest.mark.long
def test_workers_may_be_spawned(heavy: PictureDataset):
    def batches(workers: int) -> list[str]:
        evaluation = EvalLoader(heavy, batch_size=20, workers=workers)
        shapes = [str(batch.images.shape) for batch in evaluation.batches()]
        return digest(train_loader(heavy, 20, workers=workers).batches(0)) + shapes

    expected = batches(0)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert batches(1) == expected
    finally:
        multiprocessing.set_start_method("fork", force=True)


@pytest.mark.long
def test_a_run_with_a_stuck_worker_still_ends(make_folder: MakeFolder):
    script = """
        import sys, threading, time
        from davit.data import EvalLoader, open_dataset
        dataset = open_dataset(sys.argv[1], "train", transform=lambda image: time.sleep(1000))
        batches = EvalLoader(dataset, batch_size=2, workers=1).batches()
        threading.Thread(target=lambda: next(batches), daemon=True).start()
        time.sleep(1)
        raise SystemExit(7)
    """
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(make_folder())], timeout=60, check=False)
    assert done.returncode == 7
    assert time.monotonic() - begin < 40


def test_a_worker_that_dies_elsewhere_is_found_at_the_next_batch(train_set: PictureDataset):
    """Not in the midst of something else, as torch's own handler of SIGCHLD has it; and at the next pass as well."""
    train_set.transform = _pid
    for epochs in (1, 2):
        loader = train_loader(train_set, workers=1)
        batches: Any = loader.batches(0)
        pid = int(next(batches).images.flatten()[0])
        if epochs == 2:
            list(batches)
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)  # a signal would interrupt it, and its error would end the test
        with pytest.raises(LoaderError, match="workers=0") as caught:
            list(batches if epochs == 1 else loader.batches(1))
        assert caught.value.exit_status == 2
        assert len(list(loader.batches(0))) == 10


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "reset"), RuntimeError("0 items of ancdata")])
def test_whatever_a_dead_worker_causes_is_one_error(
    train_set: PictureDataset, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    train_set.transform = _pid
    loader = train_loader(train_set, workers=1)
    batches = loader.batches(0)
    next(batches)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loader._loader._iterator, "_next_data", fail)
    with pytest.raises(LoaderError):
        next(batches)


def _no_room(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_too_little_shared_memory_is_no_full_disk(
    train_set: PictureDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In the main process, whose semaphores lie there, and in a worker, whose batches do."""
    from multiprocessing import synchronize

    loader = train_loader(train_set, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(synchronize.SemLock, "__init__", _no_room)
        with pytest.raises(LoaderError, match=r"/dev/shm.*workers=0") as caught:
            next(loader.batches(0))
    assert exit_status(caught.value) == 2
    del caught
    gc.collect()
    assert "Exception ignored" not in capsys.readouterr().err

    def fail(image: Image.Image) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    train_set.transform = fail
    with pytest.raises(LoaderError, match=r"/dev/shm.*workers=0"):
        next(train_loader(train_set, workers=1).batches(0))


class _Stuck:
    """What no process can hand over to another."""

    def __reduce__(self) -> Any:
        raise OSError(24, "Too many open files")


def test_a_worker_that_cannot_hand_over_a_batch_is_not_waited_for(plain: PictureDataset, capfd: Any):
    """multiprocessing drops such a batch, and its worker lives on."""
    loader = EvalLoader(plain, batch_size=4, workers=1)
    read = loader._loader.dataset.read
    loader._loader.dataset.read = lambda request: read(request)._replace(bad=(_Stuck(),))
    with pytest.raises(LoaderError, match="workers=0"):
        next(loader.batches())
    assert "Traceback" not in capfd.readouterr().err
    loader.close()
