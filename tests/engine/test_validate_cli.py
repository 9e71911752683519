"""Check validate.py as a user runs it: what is evaluated, which values count, and what is written and printed."""

import argparse
import contextlib
import csv
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch

import davit
from davit import DaViT
from davit.data import EvalLoader, PictureDataset, eval_transform, open_dataset
from davit.engine import load_model, precision
from davit.engine import validate as validate_module
from davit.engine.distributed import World
from davit.engine.evaluate import Evaluation, evaluate
from davit.engine.flags import given_flags, validate_parser
from davit.engine.validate import Request, find_requests, main
from davit.pretrained import PretrainedError
from tests.engine.runs import SMALL, SMALL_WORDS, small_model
from tests.processes import free_port

ARGS = {
    "model": "DaViT_nano",
    "model_kwargs": SMALL,
    "num_classes": 3,
    "input_size": [3, 16, 16],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.3, 0.2, 0.25],
    "crop_pct": 0.8,
    "interpolation": "bilinear",
}


def save(path: Path, seed: int = 0, args: Any = ARGS, **entries: Any) -> Path:
    torch.save({"state_dict": small_model(seed=seed).state_dict(), "args": args, **entries}, path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("trained") / "best.pth")


@pytest.fixture
def val(pictures: Path) -> PictureDataset:
    """Read as the checkpoint's training did."""
    transform = eval_transform(img_size=16, crop_pct=0.8, interpolation="bilinear", mean=ARGS["mean"], std=ARGS["std"])
    return open_dataset(pictures, "val", transform=transform)


@pytest.fixture
def go(
    pictures: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[int, Any, str]]:
    """validate.py in this process: exit status, the results it printed, and what it said of itself."""
    caplog.set_level("INFO")

    def call(*flags: object, data: object = pictures) -> tuple[int, Any, str]:
        caplog.clear()
        words = [str(data)] if data is not None else []
        try:
            status = main([*words, "--json", "-j", "0", "--device", "cpu", *map(str, flags)])
        except SystemExit as leave:  # argparse
            status = int(leave.code or 0)
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if printed.out else None, caplog.text + printed.err

    return call


def directly(dataset: PictureDataset, seed: int = 0, **options: Any) -> Evaluation:
    return evaluate(
        small_model(seed=seed, **options), EvalLoader(dataset, batch_size=4), world=World(0, 0, 1, torch.device("cpu"))
    )


def figures(row: dict[str, Any]) -> tuple[int, int, int, int]:
    return row["correct1"], row["correct5"], row["count"], row["skipped"]


def watch(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[torch.Tensor]:
    """The logits of each batch that goes through a DaViT meanwhile."""
    found = []
    forward = DaViT.forward

    def watched(self: DaViT, images: torch.Tensor) -> torch.Tensor:
        found.append(forward(self, images))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(DaViT, "forward", watched)
        work()
    return found


# -- the flags


def test_flags_without_a_meaning_are_answered_in_one_line_each(
    go: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    flags = ["--apex-amp", "--no-prefetcher", "--tf-preprocessing", "--legacy-jit", "--num-gpu", "4"]
    found: list[Any] = []
    dtypes = {out.dtype for out in watch(monkeypatch, lambda: found.extend(go("--checkpoint", checkpoint, *flags)))}
    status, row, text = found
    assert status == 0
    assert [text.count(f"{flag}: ") for flag in flags[:-1]] == [1] * 5
    assert (dtypes, row["precision"]) == ({torch.bfloat16}, "bfloat16")  # --apex-amp still means mixed precision


def test_a_recipe(go: Any, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"checkpoint: {checkpoint}\nbatch-size: 3\nmodel: DaViT_nano\n")
    for flags, batch_size in ((), 3), (("-b", 2), 2):
        status, row, _ = go("-c", recipe, *flags)
        assert (status, row["batch_size"]) == (0, batch_size)
    assert "model" in given_flags(validate_parser, ["-c", str(recipe)])


# -- what the checkpoint says, and what the flags


def test_a_checkpoint_tells_all_that_its_training_knew(
    go: Any, checkpoint: Path, val: PictureDataset, tmp_path: Path
) -> None:
    """Also one with its arguments as timm saves them."""
    words = argparse.Namespace(**{**ARGS, "input_size": None, "img_size": 16})
    timms = save(tmp_path / "timm.pth.tar", args=words, arch="DaViT_nano")
    expected = directly(val)
    for file in (checkpoint, timms):
        status, row, text = go("--checkpoint", file)
        assert status == 0
        assert figures(row) == (expected.correct1, expected.correct5, 13, 0)
        assert row["top1"] == expected.top1
        assert row["loss"] == pytest.approx(expected.loss, rel=1e-6)
        assert (row["top1_low"], row["top1_high"]) == expected.top1_interval
        expected_row = {"model": "DaViT_nano", "img_size": 16, "crop_pct": 0.8, "interpolation": "bilinear"}
        assert expected_row.items() <= row.items()
        assert "95 %" in text and "images/s" in text and "memory" in text


def test_flags_override_the_checkpoint(go: Any, checkpoint: Path, pictures: Path) -> None:
    flags = "--img-size 12 --crop-pct 1 --mean 0.5 --std 0.5 --interpolation nearest --crop-mode squash --gp max"
    status, row, _ = go("--checkpoint", checkpoint, *flags.split())
    transform = eval_transform(
        img_size=12, crop_pct=1, crop_mode="squash", interpolation="nearest", mean=[0.5] * 3, std=[0.5] * 3
    )
    expected = directly(open_dataset(pictures, "val", transform=transform), global_pool="max")
    assert status == 0
    assert row["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert (row["img_size"], row["crop_pct"], row["crop_mode"]) == (12, 1.0, "squash")
    assert go("--checkpoint", checkpoint, "--input-size", 3, 12, 20)[1]["img_size"] == 20


def test_weights_alone_are_known_by_their_shapes(go: Any, tmp_path: Path) -> None:
    full = davit.create_model("DaViT_nano", num_classes=3)
    torch.save(full.state_dict(), tmp_path / "bare.pth")
    status, row, _ = go("--checkpoint", tmp_path / "bare.pth", "--img-size", 80, "--no-test-pool")
    assert (status, row["model"], row["img_size"], row["count"]) == (0, "DaViT_nano", 80, 13)
    torch.save(small_model().state_dict(), tmp_path / "odd.pth")  # the shapes of no variant
    status, _, text = go("--checkpoint", tmp_path / "odd.pth")
    assert status == 2
    assert "odd.pth" in text
    flags = ("--model", "DaViT_nano", "--img-size", 16, "--model-kwargs", *SMALL_WORDS)
    assert go("--checkpoint", tmp_path / "odd.pth", *flags)[0] == 0


def test_another_architecture_of_timm(go: Any, tmp_path: Path, pictures: Path) -> None:
    torch.manual_seed(0)
    other = timm.create_model("test_resnet", num_classes=3)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "other.pth")
    flags = ("--model", "test_resnet", "--num-classes", 3, "--img-size", 32, "--no-test-pool")
    status, row, _ = go("--checkpoint", tmp_path / "other.pth", *flags)
    prepared = {key: other.pretrained_cfg[key] for key in ("crop_pct", "interpolation", "mean", "std")}
    dataset = open_dataset(pictures, "val", transform=eval_transform(img_size=32, **prepared))
    expected = evaluate(other, EvalLoader(dataset, batch_size=13), world=World(0, 0, 1, torch.device("cpu")))
    assert (status, row["correct1"]) == (0, expected.correct1)
    assert row["loss"] == pytest.approx(expected.loss, rel=1e-5)


def test_pictures_larger_than_in_training_are_pooled(go: Any, checkpoint: Path) -> None:
    def figures_of(*flags: object) -> tuple[bool, float]:
        row = go("--checkpoint", checkpoint, *flags)[1]
        return row["test_time_pool"], row["crop_pct"]

    assert figures_of() == (False, 0.8)
    assert figures_of("--img-size", 32) == (True, 1)
    assert figures_of("--img-size", 32, "--crop-pct", 0.7) == (True, 0.7)
    assert figures_of("--img-size", 32, "--no-test-pool") == (False, 0.8)


@pytest.mark.parametrize("way", [["--torchscript"], ["--torchcompile", "eager"], ["--channels-last"]])
def test_other_ways_of_running_the_same_model(go: Any, checkpoint: Path, way: list[str]) -> None:
    flags = ("--checkpoint", checkpoint, "--img-size", 24)  # pooled
    status, row, _ = go(*flags, *way)
    assert status == 0
    assert row["loss"] == pytest.approx(go(*flags)[1]["loss"], rel=1e-5)


def test_labels_by_flag(go: Any, pictures: Path, tmp_path: Path, checkpoint: Path) -> None:
    shutil.copytree(pictures / "val" / "blue", tmp_path / "val" / "blue")
    shutil.copytree(pictures / "val" / "red", tmp_path / "val" / "red")
    (tmp_path / "valid.txt").write_text("0\n2\n")
    status, _, text = go("--checkpoint", checkpoint, data=tmp_path)
    assert status == 2
    assert "2 classes (blue, red)" in text
    subset = go("--checkpoint", checkpoint, "--valid-labels", tmp_path / "valid.txt", data=tmp_path)
    assert (subset[0], subset[1]["count"]) == (0, 9)
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    mapped = go("--checkpoint", checkpoint, "--class-map", tmp_path / "classes.txt", data=tmp_path)
    assert (mapped[0], mapped[1]["count"]) == (0, 9)
    assert mapped[1]["loss"] > subset[1]["loss"]  # three classes compete rather than two


@pytest.mark.parametrize(("second", "words"), [("grass", ["grass", "green"]), ("green", [])])
def test_folders_under_other_names_than_in_training_are_pointed_out(
    go: Any, tmp_path: Path, second: str, words: list[str]
) -> None:
    status, _, text = go("--checkpoint", save(tmp_path / "names.pth", class_names=["blue", second, "red"]))
    assert status == 0
    assert [word for word in ("grass", "green") if word in text] == words


def test_without_data_the_digits_are_used(
    go: Any, checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_module, "write_digits", lambda: pictures)
    status, row, text = go("--checkpoint", checkpoint, data=None)
    assert (status, row["count"]) == (0, 13)
    assert text.count("digits") == 1


# -- several


def test_a_folder_of_checkpoints(
    go: Any, tmp_path: Path, val: PictureDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for seed in (1, 2, 10):
        save(folder / f"checkpoint-{seed}.pth.tar", seed)
    (folder / "model_best.pth.tar").hardlink_to(folder / "checkpoint-2.pth.tar")
    (folder / "checkpoint-7.pth").write_bytes(b"PK\x03\x04 cut short")
    (folder / ".checkpoint-8.pth.partial.pth").write_bytes(b"half")
    (folder / "summary.csv").write_text("epoch\n")
    results = tmp_path / "results.csv"
    flags = ("--checkpoint", folder, "--results-file", results)
    assert len(watch(monkeypatch, lambda: go(*flags))) == 3  # the best is a second name of an epoch
    status, rows, text = go(*flags)
    assert status == 1 and "Traceback" not in text
    *good, failed = rows
    assert Path(failed["checkpoint"]).name == "checkpoint-7.pth" and "checkpoint-7.pth" in failed["error"]
    by_name = {Path(row["checkpoint"]).name: row for row in good}
    assert (
        len(good) == len(by_name) == 4
        and by_name["model_best.pth.tar"]["loss"] == by_name["checkpoint-2.pth.tar"]["loss"]
    )
    for seed in (1, 2, 10):
        assert by_name[f"checkpoint-{seed}.pth.tar"]["correct1"] == directly(val, seed).correct1
    top1 = [row["top1"] for row in good]
    assert top1 == sorted(top1, reverse=True)
    with results.open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["checkpoint"] for row in written] == [row["checkpoint"] for row in rows]
    assert [float(row["top1"]) for row in written[:-1]] == top1
    assert written[-1]["error"] == failed["error"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.csv", "run"]


def test_a_checkpoint_of_nan_gives_valid_json(go: Any, tmp_path: Path) -> None:
    broken = small_model()
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    torch.save({"state_dict": broken.state_dict(), "args": ARGS}, tmp_path / "nan.pth")
    for name, form in (("r", "json"), ("r.json", "csv")):  # --results-format rather than the suffix
        results = tmp_path / name
        flags = ("--results-file", results, "--results-format", form)
        status, row, text = go("--checkpoint", tmp_path / "nan.pth", *flags)
        assert (status, row["loss"], row["nonfinite"], row["correct1"]) == (0, None, 13, 0)
        assert "NaN" in text
        assert json.loads(results.read_text()) == [row] if form == "json" else results.read_text().startswith("model,")


def test_wildcards_stand_for_models_with_published_weights(tmp_path: Path) -> None:
    published = [Request(f"DaViT_{size}") for size in ("base", "small", "tiny")]
    assert find_requests("DaViT_*", "") == (published, False)
    assert set(published) < set(find_requests("all", "")[0])
    assert Request("davit_tiny.msft_in1k") in find_requests("davit_t*", "")[0]
    names = tmp_path / "names.txt"
    names.write_text("DaViT_tiny\n\n# ours\n  DaViT_nano\n")
    assert find_requests(str(names), "") == ([Request("DaViT_tiny"), Request("DaViT_nano")], False)
    assert find_requests("dpn92", "") == ([Request("dpn92")], True)


def test_several_models_one_of_which_fails(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Mock(side_effect=[PretrainedError("no network"), ConnectionError("the hub\nis away"), small_model()])
    monkeypatch.setattr(load_model, "create_model", create)
    flags = ("--model", "DaViT_*", "--pretrained", "--img-size", 16, "--results-file", tmp_path / "r.json")
    status, rows, text = go(*flags)
    assert status == 1
    assert all(call.kwargs["pretrained"] and not call.kwargs["scriptable"] for call in create.call_args_list)
    assert [(row["model"], row.get("count")) for row in rows] == [
        *(("DaViT_tiny", 13), ("DaViT_base", None), ("DaViT_small", None)),
    ]
    assert "no network" in rows[1]["error"] and "the hub is away" in rows[2]["error"]
    assert rows[0]["weights"] == "published"
    assert json.loads((tmp_path / "r.json").read_text()) == rows
    assert "Traceback" not in text


# -- memory


def test_only_want_of_memory_halves_the_batch(go: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = go("--checkpoint", checkpoint)[1]
    forward, limit, sizes = DaViT.forward, [3], []

    def starving(self: DaViT, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > limit[0]:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, x)

    monkeypatch.setattr(DaViT, "forward", starving)
    status, row, text = go("--checkpoint", checkpoint, "-b", 13)
    assert (status, row["batch_size"]) == (0, 3)
    assert sizes == [13, 6, 3, 3, 3, 3, 1]
    assert text.count("--batch-size") == 2
    assert figures(row) == figures(expected)

    limit[0] = 0
    status, _, text = go("--checkpoint", checkpoint, "-b", 2)
    assert status == 2
    assert "img-size" in text

    sizes.clear()
    monkeypatch.setattr(DaViT, "forward", lambda self, x: (sizes.append(len(x)), torch.ones(2) @ torch.ones(3)))
    with pytest.raises(RuntimeError, match="tensor size"):
        go("--checkpoint", checkpoint, "-b", 8)
    assert sizes == [8]


# -- mistakes


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        *(("--checkpoint nowhere.pth", "nowhere.pth"), ("--checkpoint {root}", ".safetensors")),
        ("--checkpoint {best} --model DaViT_tinny", "'DaViT_tinny'"),
        ("--checkpoint {best} --model DaViT_*", "DaViT_*"),
        *(("--model Nothing_*", "Nothing_*"), ("--model DaViT_nano", "DaViT_nano")),
        *(("--checkpoint {best} --pretrained", "--pretrained"), ("--checkpoint {best} --num-classes 5", "5")),
        ("--checkpoint {best} --model-kwargs window=3", "'window': 3"),
        *(("--crop-pct 95", "'95'"), ("--img-size 0", "'0'"), ("--std 0", "'0'"), ("--log-freq -1", "'-1'")),
        ("--checkpoint {best} --torchcompile inducktor", "inductor"),
        ("--checkpoint {best} --results-file {root}/none/r.csv", "none/r.csv"),
        ("--checkpoint {best} --test-time-pool --no-test-pool", "--no-test-pool"),
        ("--checkpoint {best} --torchscript --torchcompile eager", "--torchscript"),
        ("--checkpoint {best} --test-time-pool", "--img-size"),
        *(("--checkpoint {best} --use-ema --ema never", "--use-ema"), ("--checkpoint {best} --ema always", "EMA")),
        ("--checkpoint {best} --real-labels {root}/no.json", "no.json"),
        *(("--checkpoint {best} --input-size 1 16 16", "16"), ("--checkpoint {best} --mean 0.1 0.2", "0.2")),
        ("--checkpoint {best} --interpolation cubic", "bicubic"),
        *(("--checkpoint {best} --split test", "'test'"), ("--device tpu", "tpu")),
    ],
)
def test_mistakes_are_named_and_end_with_status_2(
    go: Any, checkpoint: Path, tmp_path: Path, flags: str, value: str
) -> None:
    (tmp_path / "empty").mkdir()
    words = [word.format(best=checkpoint, root=tmp_path / "empty") for word in flags.split()]
    status, printed, text = go(*words)
    assert (status, printed) == (2, None)
    assert value in text
    assert "Traceback" not in text


# -- processes


@pytest.fixture
def odd(pictures: Path, tmp_path: Path) -> Path:
    """13 images, of which process 0 of 2 has 7 and process 1 has 6, the bad one among them."""
    root = tmp_path / "odd"
    shutil.copytree(pictures / "val", root / "val")
    names = open_dataset(root, "val").filenames()
    (root / "val" / names[3]).write_bytes(b"not an image")
    return root


def run_two(words: list[str], folder: Path, main: Callable[[list[str]], int] = main) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of a command in two processes, forked: 10 s faster than by torchrun."""
    port = free_port()

    def process(rank: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)  # as torchrun says it
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        logging.root.handlers.clear()
        out, err = ((folder / f"{rank}.{name}").open("w", buffering=1) for name in ("out", "err"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([*words, "-j", "0", "--device", "cpu"])
        os._exit(status)

    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=process, args=(rank,)) for rank in range(2)]
    for one in started:
        one.start()
    for one in started:
        one.join(100)
    texts = [[(folder / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(2)]
    return [(one.exitcode, out, err) for one, (out, err) in zip(started, texts, strict=True)]


def test_two_processes_count_as_one(go: Any, odd: Path, checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint", str(checkpoint), "--skip-bad-images", "-b", "2"]
    alone = go(*flags, data=odd)[1]
    results = tmp_path / "r.csv"
    first, second = run_two([str(odd), *flags, "--json", "--results-file", str(results)], tmp_path)
    assert (first[0], second[0]) == (0, 0), first[2]
    together = json.loads(first[1].splitlines()[-1])
    assert figures(together) == figures(alone)
    assert figures(alone)[2:] == (12, 1)
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert "top-1" in first[2]
    assert second[1:] == ("", "")
    assert len(results.read_text().splitlines()) == 2


def test_a_failure_of_one_process_is_told_by_the_first(odd: Path, checkpoint: Path, tmp_path: Path) -> None:
    first, second = run_two([str(odd), "--checkpoint", str(checkpoint)], tmp_path)
    assert (first[:2], second[:2]) == ((2, ""), (2, ""))
    assert "process 1" in first[2] and "BadImageError" in first[2]
    assert "Traceback" not in first[2] + second[2]
