"""Runs whose training images grow: resumed within and between sizes, recorded, and refused where a model cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from davit.data import SizeSchedule
from davit.engine.build import stride_of
from davit.engine.run_folder import LAST, read_state
from davit.engine.validate import main as validate
from tests.engine.runs import SHORT, Train, run_here, small_model, summary, weights_hash
from tests.engine.test_memory import starving

# 48 images: 6 steps per epoch; multiples of 8 as the small model's stride is 8
GROWING = [
    *(*SHORT, "--epochs", "3", "--lr", "1e-3", "--mixup", "0.8", "--drop-path", "0.3", "--recovery-interval", "1"),
    *("--img-size", "8,16,24", "--size-schedule", "linear"),
]
STEPS = 18


def seen(cwd: Path, rank: int = 0) -> dict[tuple[int, int], list[int]]:
    """The size of the images of each step."""
    lines = (cwd / f"seen-{rank}.jsonl").read_text().splitlines()
    return {(epoch, step): sizes for epoch, step, _, sizes in map(json.loads, lines)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    starving(pictures, cwd, *GROWING, "--workers", "2", SEEN="seen")
    return cwd


def test_the_stride_is_the_models() -> None:
    assert stride_of(small_model()) == 8


def test_sizes_as_computed_by_hand_and_as_recorded(whole: Path) -> None:
    # 8 + 16 t / 17, to multiples of 8, the middle up: 12 is at t = 4.25, 20 at t = 12.75
    by_hand = [8] * 5 + [16] * 8 + [24] * 5
    found = seen(whole)
    assert [found[divmod(t, 6)] for t in range(STEPS)] == [[size] for size in by_hand]
    folder = whole / "runs/a"
    assert [row["img_size"] for row in summary(folder)] == ["16", "16", "24"]
    state = read_state(folder / LAST)
    assert state["args"]["input_size"] == [3, 24, 24]
    assert state["args"]["img_size"] == 24
    record = yaml.safe_load((folder / "args.yaml").read_text())
    assert (record["img_size"], record["size_schedule"], record["size_multiple"]) == ("8,16,24", "linear", 8)


def test_validation_is_at_the_last_size(whole: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate([str(pictures), "--checkpoint", str(whole / "runs/a" / LAST), "--workers", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["img_size"] == 24
    assert result["top1"] == pytest.approx(float(summary(whole / "runs/a")[-1]["eval_top1"]), abs=1e-3)


@pytest.mark.parametrize("stop", [3, 5, 11])
def test_resumed_within_and_between_sizes(train: Train, tmp_path: Path, whole: Path, stop: int) -> None:
    """As a run killed behind that step leaves its folder; the size changes behind steps 4 and 12 of the run."""
    calls = {"left": stop}

    class KilledError(BaseException):
        pass

    from davit.engine.train import Trainer

    save = Trainer._save

    def killed(self: Trainer) -> None:
        save(self)
        calls["left"] -= 1
        if not calls["left"]:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_save", killed)
        with pytest.raises(KilledError):
            train(*GROWING)
    words = ["-c", str(tmp_path / "runs/a/args.yaml")] if stop == 5 else GROWING
    train(*words, "--auto-resume", *(["--img-size", "8,16,24"] if stop == 5 else []))
    assert weights_hash(tmp_path / "runs/a" / LAST) == weights_hash(whole / "runs/a" / LAST)


@pytest.mark.long
def test_two_processes_agree(tmp_path: Path, pictures: Path) -> None:
    words = [*GROWING, "--batch-size", "4", "--size-schedule", "steps"]
    starving(pictures, tmp_path / "two", *words, processes=2, SEEN="seen")
    expected = {divmod(t, 6): [(8, 16, 24)[t // 6]] for t in range(STEPS)}
    assert seen(tmp_path / "two", 0) == seen(tmp_path / "two", 1) == expected


def test_one_size_by_another_name_is_the_same_run(train: Train, tmp_path: Path) -> None:
    """With all steps at the last size the samples are those of a run of that size."""
    hashes = []
    for flags in (["--img-size", "16"], ["--img-size", "8,16", "--size-schedule", "steps"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SizeSchedule, "at", lambda self, epoch, step: self.sizes[-1])
            train(*SHORT, *flags, "--overwrite")
        hashes.append(weights_hash(tmp_path / "runs/a" / LAST))
    assert hashes[0] == hashes[1]


def test_a_model_with_a_table_of_positions_is_refused(train: Train) -> None:
    words = [*SHORT, "--model", "test_vit", "--img-size", "96,160", "--size-schedule", "steps", "--dry-run"]
    refused = train(*words, "--model-kwargs", "dynamic_img_size=false", status=2)
    for word in ("96", "--img-size", "dynamic_img_size"):
        assert word in refused.stderr
    train(*words, "--model-kwargs", "dynamic_img_size=true")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--img-size", "24,16"], ["--img-size", "24,16"]),
        (["--img-size", "8,x"], ["--img-size", "8,x"]),
        (["--img-size", "0,8"], ["--img-size"]),
        (["--img-size", "8,16", "--input-size", "3", "16", "16"], ["--input-size", "--img-size 8,16"]),
        (["--img-size", "8,16", "--size-schedule", "cosine"], ["--size-schedule"]),
    ],
)
def test_mistakes(train: Train, flags: list[str], named: list[str]) -> None:
    failed = train(*SHORT, *flags, status=2)
    for word in named:
        assert word in failed.stderr


def test_a_schedule_without_sizes_is_named(train: Train) -> None:
    said = train(*SHORT, "--size-schedule", "steps", "--dry-run").stderr
    assert "--size-schedule steps" in said


@pytest.mark.long
def test_a_compiled_model_has_a_graph_for_each_size(train: Train) -> None:
    shapes: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        shapes.extend(one.shape[-1] for one in inputs if one.ndim == 4 and one.shape[1] == 3 and len(one) == 8)
        return graph

    torch._dynamo.reset()
    torch._dynamo.register_backend(name="noted_sizes", compiler_fn=backend)
    train(*GROWING, "--torchcompile", "noted_sizes", "--epochs", "1")
    assert {8, 16, 24} <= set(shapes)


@pytest.mark.parametrize(("words", "status"), [((), 2), (("img_size=16",), 0)])
def test_a_size_that_a_model_does_not_take_is_refused_at_once(
    pictures: Path, tmp_path: Path, words: tuple[str, ...], status: int
) -> None:
    small = ["--model", "vit_tiny_patch16_224", "--img-size", "16", "--model-kwargs", "depth=1", "embed_dim=12"]
    done = run_here(pictures, *small, *words, *SHORT, cwd=tmp_path, status=status)
    if status:
        assert "--model-kwargs img_size" in done.stderr
        assert not (tmp_path / "runs").exists()
