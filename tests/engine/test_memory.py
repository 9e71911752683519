"""The micro-batch that memory holds: found by trying, halved in the midst of a run, and never another result."""

import copy
import json
import random
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from davit import DaViT
from davit.data import Batch
from davit.engine import memory
from davit.engine.distributed import StarvedError, World
from davit.engine.evaluate import Evaluation
from davit.engine.memory import Trial, divisors, noted_batch, room_on_cpu, settle_batch, smaller, untouched
from davit.engine.precision import Precision
from davit.engine.run_folder import LAST, read_state
from davit.engine.steps import Stepper
from tests.engine.runs import (
    REPOSITORY,
    SHORT,
    Completed,
    Train,
    run,
    small_model,
    summary,
    train_command,
    weights_hash,
)

ALONE = World(0, 0, 1, torch.device("cpu"))
# 48 training images: two steps of 24 in an epoch
RANDOM = [
    *(*SHORT, "--lr", "1e-3", "--mixup", "0.8", "--cutmix", "1.0", "--drop-path", "0.3", "--reprob", "0.5"),
    *("--model-ema", "--model-ema-decay", "0.9", "--clip-grad", "1.0", "--recovery-interval", "1"),
]
TWENTY_FOUR = [*RANDOM, "--global-batch", "24"]


def starving(data: Path, cwd: Path, *flags: str, processes: int = 0, status: int = 0, **more: Any) -> Completed:
    """A run of `starving.py`."""
    cwd.mkdir(exist_ok=True)
    words = train_command(data, *flags, processes=processes)
    words = [str(REPOSITORY / "tests/engine/starving.py") if word.endswith("train.py") else word for word in words]
    return run(words, cwd, status, **{name: str(value) for name, value in more.items()})


def samples(cwd: Path, processes: int = 1) -> dict[tuple[int, int], list[int]]:
    """The images of each step that was done, over all processes."""
    found: dict[tuple[int, int], list[int]] = {}
    for rank in range(processes):
        for line in (cwd / f"seen-{rank}.jsonl").read_text().splitlines():
            epoch, step, positions, _ = json.loads(line)
            found.setdefault((epoch, step), []).extend(position for micro in positions for position in micro)
    return {key: sorted(positions) for key, positions in found.items()}


# ---- what the flags say ----


@pytest.mark.parametrize(
    ("share", "even", "expected"),
    [
        (12, False, [1, 2, 3, 4, 6, 12]),
        (12, True, [2, 4, 6, 12]),
        (1, False, [1]),
        (7, True, []),
        (36, True, [2, 4, 6, 12, 18, 36]),
    ],
)
def test_divisors(share: int, even: bool, expected: list[int]) -> None:
    assert divisors(share, even=even) == expected


def test_the_next_smaller_micro_batch_is_at_most_half() -> None:
    assert smaller(24, divisors(96)) == 12
    assert smaller(9, divisors(9)) == 3
    assert smaller(5, divisors(15)) == 1
    assert smaller(2, divisors(96, even=True)) is None
    assert smaller(1, divisors(96)) is None


def asked(batch_size: int | str, total: int | None, accumulate: int = 1) -> Namespace:
    return Namespace(batch_size=batch_size, global_batch=total, grad_accum_steps=accumulate)


@pytest.mark.parametrize(
    ("batch_size", "total", "processes", "even", "expected"),
    [
        (24, 96, 1, True, (24, 4, False)),
        (24, 96, 2, True, (24, 2, False)),
        (3, 9, 1, False, (3, 3, False)),
        ("auto", 96, 2, True, (48, 1, True)),
        (64, None, 2, True, (64, 1, False)),
    ],
)
def test_accumulation_follows_from_the_global_batch(
    batch_size: int | str, total: int | None, processes: int, even: bool, expected: tuple[int, int, bool]
) -> None:
    args = asked(batch_size, total)
    is_auto = settle_batch(args, processes, even=even)
    assert (args.batch_size, args.grad_accum_steps, is_auto) == expected


@pytest.mark.parametrize(
    ("batch_size", "total", "processes", "even", "named"),
    [
        (20, 96, 1, True, ["--batch-size 20", "24", "32", "48", "auto"]),
        (64, 100, 3, False, ["--global-batch 100", "99", "102"]),
        ("auto", 9, 1, True, ["--global-batch 9", "8", "10", "--mixup 0"]),
        ("auto", None, 1, True, ["--global-batch"]),
        ("auto", 1, 2, False, ["--global-batch 1", "2"]),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_the_choices(
    batch_size: int | str, total: int | None, processes: int, even: bool, named: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        settle_batch(asked(batch_size, total), processes, even=even)
    for word in named:
        assert word in str(error.value)


def test_too_few_pictures_blame_the_flag_that_was_given(train: Train) -> None:
    done = train(*SHORT, "--batch-size", "auto", "--global-batch", "60", status=2)
    assert "--global-batch 60" in done.stderr and "48" in done.stderr and "--grad-accum-steps" not in done.stderr
    assert "--batch-size 50" in train(*SHORT, "--batch-size", "50", status=2).stderr


def test_what_a_state_goes_on_with() -> None:
    state = {"micro_batch": 12, "args": {"batch_size": 24, "input_size": [3, 16, 16]}}
    same = {"batch_size": 24, "input_size": [3, 16, 16]}
    assert noted_batch(state, same, divisors(96), False) == 12
    assert noted_batch(state, {**same, "batch_size": 48}, divisors(96), False) is None  # asked for now
    assert noted_batch(state, {**same, "batch_size": 96}, divisors(96), True) == 12
    assert noted_batch(state, {**same, "input_size": [3, 32, 32]}, divisors(96), True) is None
    assert noted_batch(state, same, divisors(10), False) is None
    assert noted_batch({"args": same}, same, divisors(96), False) == 24  # of an earlier version


# ---- auto ----


def test_auto_is_the_setting_that_it_finds(tmp_path: Path, pictures: Path) -> None:
    """Bit for bit, as args.yaml says it, and so is a run that continues with it."""
    found = starving(pictures, tmp_path / "auto", *TWENTY_FOUR, "--batch-size", "auto", MOST=6)
    assert "--batch-size 6 --grad-accum-steps 4" in found.stderr
    starving(pictures, tmp_path / "named", *RANDOM, "--batch-size", "6", "--grad-accum-steps", "4")
    auto, named = tmp_path / "auto/runs/a", tmp_path / "named/runs/a"
    assert weights_hash(auto / LAST) == weights_hash(named / LAST)
    state = read_state(auto / LAST)
    noted = [
        state["micro_batch"],
        state["global_batch"],
        state["args"]["batch_size"],
        state["args"]["grad_accum_steps"],
    ]
    assert noted == [6, 24, 6, 4]
    for name in ("train_loss", "eval_loss", "ema_loss"):
        assert [row[name] for row in summary(auto)] == [row[name] for row in summary(named)]
    # the recipe that it wrote, and the same words with more memory: what was found holds
    for number, words in enumerate((["-c", str(auto / "args.yaml")], [*TWENTY_FOUR, "--batch-size", "auto"])):
        cwd = tmp_path / f"again-{number}"
        (cwd / "runs/a").mkdir(parents=True)
        (cwd / "runs/a/last.pth.tar").write_bytes((auto / "previous.pth.tar").read_bytes())
        again = starving(pictures, cwd, *words, "--output", "runs", "--experiment", "a", "--auto-resume")
        assert "Resumed at epoch 1, step 1" in again.stderr
        assert weights_hash(cwd / "runs/a" / LAST) == weights_hash(named / LAST)


@pytest.mark.long
@pytest.mark.parametrize(("processes", "size", "accumulate"), [(0, 12, 5), (3, 10, 2)])
def test_auto_of_sixty_where_seventeen_fit(
    tmp_path: Path, pictures: Path, processes: int, size: int, accumulate: int
) -> None:
    flags = [*RANDOM, "--epoch-repeats", "2.5"]
    found, given = tmp_path / "found", tmp_path / "given"
    auto = ["--batch-size", "auto", "--global-batch", "60"]
    starving(pictures, found, *flags, *auto, processes=processes, MOST=17, SEEN=found / "seen")
    number = ["--batch-size", str(size), "--grad-accum-steps", str(accumulate)]
    starving(pictures, given, *flags, *number, processes=processes, SEEN=given / "seen")
    assert weights_hash(found / "runs/a" / LAST) == weights_hash(given / "runs/a" / LAST)
    assert samples(found, max(1, processes)) == samples(given, max(1, processes))
    args = read_state(found / "runs/a" / LAST)["args"]
    assert (args["batch_size"], args["grad_accum_steps"]) == (size, accumulate)


@pytest.mark.parametrize("lacking", [1, 2, 3, 4, 7])
def test_memory_that_an_evaluation_lacks_changes_no_result(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    """Thirteen images in batches of 8 are two passes, of the weights and then of their average, in each epoch."""
    train(*RANDOM)
    whole, forward = summary(tmp_path / "runs/a"), DaViT.forward
    weights, passes = weights_hash(tmp_path / "runs/a" / LAST), []

    def limited(self: DaViT, images: Tensor, *rest: Any) -> Tensor:
        if not self.training and len(images) > 1:  # one image is tried before the run
            passes.append(len(images))
            if len(passes) == lacking:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, *rest)

    monkeypatch.setattr(DaViT, "forward", limited)
    train(*RANDOM, "--overwrite")
    assert max(passes[lacking:]) == 4
    assert weights_hash(tmp_path / "runs/a" / LAST) == weights
    for before, now in zip(whole, summary(tmp_path / "runs/a"), strict=True):
        for name in ("eval_top1", "ema_top1", "train_loss"):
            assert before[name] == now[name]
        for name in ("eval_loss", "ema_loss"):
            assert float(before[name]) == pytest.approx(float(now[name]), rel=1e-5)


@pytest.mark.long
def test_auto_in_two_processes(tmp_path: Path, pictures: Path) -> None:
    found = starving(pictures, tmp_path / "auto", *TWENTY_FOUR, "--batch-size", "auto", processes=2, MOST=4)
    assert "--batch-size 4 --grad-accum-steps 3" in found.stderr
    words = [*RANDOM, "--batch-size", "4", "--grad-accum-steps", "3"]
    starving(pictures, tmp_path / "named", *words, processes=2)
    assert weights_hash(tmp_path / "auto/runs/a" / LAST) == weights_hash(tmp_path / "named/runs/a" / LAST)


def test_a_size_is_named_where_not_even_the_smallest_fits(tmp_path: Path, pictures: Path) -> None:
    failed = starving(pictures, tmp_path, *TWENTY_FOUR, "--batch-size", "auto", status=2, MOST=1)
    for word in ("2 images", "16 x 16", "--grad-checkpointing", "--img-size"):
        assert word in failed.stderr


def stepper(model: nn.Module, **options: Any) -> Stepper:
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    parts: dict[str, Any] = {"precision": Precision("cpu"), "world": ALONE, "mixup": None, "ema": None, "seed": 1}
    return Stepper(model, model, nn.CrossEntropyLoss(), optimizer, **{**parts, **options})


class Small(nn.Module):
    """With a batch norm, dropout and a layer in evaluation mode; it fails above so many images."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(3)
        )
        self.body(torch.zeros(2, 3, 8, 8))
        self.most = most
        self.tried: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.tried.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.body(images)


@pytest.mark.parametrize("most", [1, 2, 5, 24, 47, 48, 96, 1000])
def test_trying_finds_the_largest_and_changes_nothing(most: int) -> None:
    torch.manual_seed(0)
    model = Small(most)
    model.body[2].eval()
    parts = stepper(model)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    trial = Trial(parts, torch.optim.AdamW(model.parameters(), 0.1), (3, 8, 8), 96)
    assert trial.largest(divisors(96)) == max(size for size in divisors(96) if size <= most)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [module.training for module in model.modules()] == modes
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not parts.optimizer.state
    assert len(set(model.tried)) <= 8


def test_on_a_cpu_a_size_that_would_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are those of a process that takes 100 MB and 10 MB an image; the kernel would kill it above 500."""
    model, tried = Small(), []

    class Peak:
        def __init__(self, _: torch.device) -> None:
            self.value = [0]

        def __enter__(self) -> list[int]:
            return self.value

        def __exit__(self, *_: object) -> None:
            tried.append(model.tried[-1])
            self.value[0] = 100_000_000 + 10_000_000 * model.tried[-1]

    monkeypatch.setattr(memory, "peak_of", Peak)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 90_000_000)
    monkeypatch.setattr(memory, "room_on_cpu", lambda: 410_000_000 / 0.9)
    trial = Trial(stepper(model), torch.optim.SGD(model.parameters(), 0.1), (3, 8, 8), 96)
    assert trial.largest(divisors(96)) == 32
    assert max(tried) == 32
    assert trial.reason
    monkeypatch.setattr(memory, "room_on_cpu", lambda: 5_000_000)
    trial = Trial(stepper(model), torch.optim.SGD(model.parameters(), 0.1), (3, 8, 8), 96)
    with pytest.raises(ValueError, match="--img-size"):
        trial.largest(divisors(96))


def test_the_peak_of_a_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for is_allowed in (True, False):
        if not is_allowed:  # some systems do not let a process begin its peak again
            monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError()))
        start = memory.resident_bytes()
        with memory.peak_of(cpu) as peak:
            torch.ones(50_000_000).add_(1)
        assert start + 150e6 < peak[0] < start + 1e9


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, 8_192_000),
        (  # version 2: the limit of a group above counts too
            {
                **MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "5000000",
                "sys/fs/cgroup/a/memory.current": "2000000",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 500000\n",
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
            3_500_000,
        ),
        (  # version 1, in a container: its own group is at the top
            {
                **MEMINFO,
                "proc/self/cgroup": "3:cpu:/x\n2:memory:/docker/1\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000",
                "sys/fs/cgroup/memory/memory.stat": "cache 3\ntotal_inactive_file 0\n",
            },
            3_000_000,
        ),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "2:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            8_192_000,
        ),
    ],
)
def test_room_is_what_machine_and_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int | None
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    root = written(tmp_path, files)
    assert room_on_cpu(root) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert room_on_cpu(root) == (None if expected is None else expected // 2)


# ---- in the midst of a run ----


def batch(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=generator)
    return Batch(torch.randn(count, 3, 8, 8, generator=generator), targets, torch.arange(count))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_step_that_fails_leaves_everything_as_it_was(dtype: torch.dtype | None) -> None:
    """In fp16 the first step may be skipped, where its gradients overflow the scale."""

    def begun() -> tuple[Small, Stepper]:
        torch.manual_seed(0)
        model = Small()
        return model, stepper(model, precision=Precision("cpu", dtype))

    def run_step(model: Small, parts: Stepper, number: int, most: int = 100) -> None:
        model.most = most
        parts.step([batch(4, number), batch(8, number)], 0, number, False, lambda *_: AssertionError())

    def standing(model: Small, parts: Stepper) -> tuple[dict[str, Tensor], str]:
        return copy.deepcopy(model.state_dict()), str(parts.state_dict())

    hit, whole = begun(), begun()
    for number in range(4):
        run_step(*whole, number)
        before = standing(*hit)
        with pytest.raises(StarvedError):  # in the second of two micro-batches
            run_step(*hit, number, most=4)
        after = standing(*hit)
        assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())
        assert after[1] == before[1]
        assert all(parameter.grad is None for parameter in hit[0].parameters())
        run_step(*hit, number)
    assert hit[1].updates == whole[1].updates >= 3
    assert all(torch.equal(hit[0].state_dict()[name], tensor) for name, tensor in whole[0].state_dict().items())
    assert str(hit[1].state_dict()) == str(whole[1].state_dict())


def test_an_optimizer_that_lacks_memory_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights may have changed, so the step cannot be repeated."""
    parts = stepper(Small())

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(parts.optimizer, "step", fail)
    with pytest.raises(ValueError, match="--opt") as error:
        parts.step([batch(4)], 0, 0, False, lambda *_: AssertionError())
    assert not memory.is_out_of_memory(error.value)


def test_synchronised_batch_norms_do_not_repeat_a_step() -> None:
    parts = stepper(Small(most=2))
    parts.has_sync_bn = True
    with pytest.raises(ValueError, match="--sync-bn"):
        parts.step([batch(4)], 0, 0, False, lambda *_: AssertionError())


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_error_halves_the_micro_batch_and_the_samples_stay(tmp_path: Path, pictures: Path, where: str) -> None:
    """The result is that of a run that had the smaller micro-batch from that step on."""
    words = [*RANDOM, "--batch-size", "8", "--grad-accum-steps", "3"]
    told = starving(pictures, tmp_path / "hit", *words, RUN_OUT="1,0", IN=where, SEEN="seen")
    assert "6 micro-batches of 4" in told.stderr
    starving(pictures, tmp_path / "whole", *words, SEEN="seen")
    assert samples(tmp_path / "hit") == samples(tmp_path / "whole")
    # step 0 with 8, and from there on with 4
    cwd = tmp_path / "by-hand"
    starving(pictures, cwd, *words, "--stop-epoch", "1", SEEN="seen")
    folder = cwd / "runs/a"
    (folder / LAST).unlink()
    (folder / "checkpoint-0.pth.tar").unlink()
    (folder / "model_best.pth.tar").unlink()
    (folder / "previous.pth.tar").rename(folder / LAST)
    assert (read_state(folder / LAST)["epoch"], read_state(folder / LAST)["step"]) == (0, 1)
    starving(pictures, cwd, *RANDOM, "--batch-size", "4", "--grad-accum-steps", "6", "--auto-resume")
    assert weights_hash(folder / LAST) == weights_hash(tmp_path / "hit/runs/a" / LAST)
    for name in ("train_loss", "eval_loss", "ema_loss"):
        assert [row[name] for row in summary(folder)] == [row[name] for row in summary(tmp_path / "hit/runs/a")]


def test_a_resumed_run_goes_on_with_what_memory_held(tmp_path: Path, pictures: Path) -> None:
    words = [*RANDOM, "--batch-size", "8", "--grad-accum-steps", "3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    starving(pictures, whole, *words, RUN_OUT="0,0")
    starving(pictures, cut, *words, "--stop-epoch", "1", RUN_OUT="0,0")
    state = read_state(cut / "runs/a" / LAST)
    assert (state["micro_batch"], state["args"]["batch_size"]) == (4, 8)
    starving(pictures, cut, *words, "--auto-resume")
    assert weights_hash(cut / "runs/a" / LAST) == weights_hash(whole / "runs/a" / LAST)
    assert read_state(cut / "runs/a" / LAST)["micro_batch"] == 4


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("where", ["backward", pytest.param("forward", marks=pytest.mark.long)])
def test_two_processes_halve_together(tmp_path: Path, pictures: Path, rank: int, where: str) -> None:
    words = [*RANDOM, "--batch-size", "4", "--grad-accum-steps", "3"]
    hit = starving(pictures, tmp_path / "hit", *words, processes=2, RUN_OUT=f"1,{rank}", IN=where, SEEN="seen")
    assert "6 micro-batches of 2" in hit.stderr
    starving(pictures, tmp_path / "whole", *words, processes=2, SEEN="seen")
    assert samples(tmp_path / "hit", 2) == samples(tmp_path / "whole", 2)
    state = read_state(tmp_path / "hit/runs/a" / LAST)
    assert state["micro_batch"] == 2
    if rank == 0:  # and the same as if step 1 had been dealt so from the start
        cwd = tmp_path / "by-hand"
        starving(pictures, cwd, *words, "--stop-epoch", "1", processes=2)
        folder = cwd / "runs/a"
        for name in (LAST, "checkpoint-0.pth.tar", "model_best.pth.tar"):
            (folder / name).unlink()
        (folder / "previous.pth.tar").rename(folder / LAST)
        words = [*RANDOM, "--batch-size", "2", "--grad-accum-steps", "6", "--auto-resume"]
        starving(pictures, cwd, *words, processes=2)
        assert weights_hash(folder / LAST) == weights_hash(tmp_path / "hit/runs/a" / LAST)


def test_a_run_ends_with_the_remedy_where_nothing_is_smaller(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: DaViT, images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DaViT, "forward", fail)
    failed = train(*RANDOM, status=2)
    assert "8 images" in failed.stderr or "2 images" in failed.stderr
    assert "--grad-checkpointing" in failed.stderr


def test_the_evaluation_halves_its_batch(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, sizes = DaViT.forward, []

    def limited(self: DaViT, images: Tensor) -> Tensor:
        if not self.training:
            sizes.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images)

    monkeypatch.setattr(DaViT, "forward", limited)
    train(*RANDOM)
    tried = [size for size in sizes if size > 1]  # one image is tried before the run
    assert tried[:3] == [8, 4, 2]
    assert max(tried[3:]) == 2
    assert read_state(tmp_path / "runs/a" / LAST)["eval_batch"] == 2
    sizes.clear()
    train(*RANDOM, "--epochs", "3", "--auto-resume")
    assert max(sizes) == 2


def test_one_picture_that_cannot_be_evaluated_is_an_error() -> None:
    class Loader:
        batch_size = 1

    def fail() -> Evaluation:
        raise MemoryError

    with pytest.raises(ValueError, match="--img-size"):
        memory.within_memory(Loader(), fail)  # type: ignore[arg-type]


def test_a_parallel_model_is_put_back_after_a_trial() -> None:
    parts = stepper(small_model())
    before = parts.forward
    with pytest.raises(RuntimeError), untouched(parts):
        raise RuntimeError
    assert parts.forward is before
