"""validate.py as a user runs it: what is evaluated, from whose words, and what is written and printed."""

import argparse
import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from davit.engine.flags import parse_validate, validate_parser
from davit.engine.validate import main
from davit.pretrained import PretrainedError
from tests.engine.runs import REPOSITORY, run

SMALL = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
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


def model(seed: int = 0, **options: Any) -> DaViT:
    torch.manual_seed(seed)
    made = davit.create_model("DaViT_nano", **{"num_classes": 3, **SMALL, **options})
    torch.nn.init.normal_(made.head.weight)
    assert isinstance(made, DaViT)
    return made


def save(path: Path, seed: int = 0, args: Any = ARGS, **entries: Any) -> Path:
    torch.save({"state_dict": model(seed).state_dict(), "args": args, **entries}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tmp_path / "best.pth")


@pytest.fixture
def val(pictures: Path) -> PictureDataset:
    """Read as the checkpoint's training did."""
    transform = eval_transform(img_size=16, crop_pct=0.8, interpolation="bilinear", mean=ARGS["mean"], std=ARGS["std"])
    return open_dataset(pictures, "val", transform=transform)


@pytest.fixture
def go(
    pictures: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[int, Any, str]]:
    """validate.py in this process: exit status, the results it printed last, and its log."""
    caplog.set_level("INFO")

    def call(*flags: object, data: object = pictures) -> tuple[int, Any, str]:
        caplog.clear()
        words = [str(data)] if data is not None else []
        status = main([*words, "-j", "0", "--device", "cpu", *map(str, flags)])
        lines = capsys.readouterr().out.splitlines()
        assert not lines or lines[-2] == "--result"
        return status, json.loads(lines[-1]) if lines else None, caplog.text

    return call


def directly(dataset: PictureDataset, seed: int = 0, **options: Any) -> Evaluation:
    return evaluate(
        model(seed, **options), EvalLoader(dataset, batch_size=4), world=World(0, 0, 1, torch.device("cpu"))
    )


def figures(row: dict[str, Any]) -> tuple[int, int, int, int]:
    return row["correct1"], row["correct5"], row["count"], row["skipped"]


# -- the flags


def test_every_flag_of_the_original_with_its_default(shared: Path) -> None:
    official = json.loads((shared / "spec" / "official_cli.json").read_text())["validate"]
    assert len(official) == 33
    ours = {flag: action for action in validate_parser()._actions for flag in action.option_strings}
    defaults = vars(validate_parser().parse_args([]))
    for entry in official:
        if entry["flags"] == ["data"]:
            assert validate_parser().parse_args(["DIR"]).data == "DIR"
            continue
        actions = {ours[flag] for flag in entry["flags"]}
        assert len(actions) == 1
        action = actions.pop()
        assert defaults[action.dest] == entry.get("default"), entry
        assert action.nargs == entry.get("nargs"), entry
        assert (action.type or str).__name__ == entry.get("type", "str"), entry


def test_the_commands_of_the_original_are_read() -> None:
    words = "DATA --model DaViT_tiny --batch-size 128 --native-amp --checkpoint BEST --img-size 224 --no-test-pool"
    args, named = parse_validate(words.split())
    assert named
    assert (args.data, args.model, args.batch_size, args.native_amp) == ("DATA", "DaViT_tiny", 128, True)
    assert (args.checkpoint, args.img_size, args.no_test_pool) == ("BEST", 224, True)
    assert parse_validate(["-m", "dpn92"])[1]
    assert not parse_validate(["DATA"])[1]


def test_the_help_tells_of_the_default_model_and_of_pooling(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert "else dpn92 as in the original" in text
    assert "timm's TestTimePoolHead" in text


def test_flags_without_a_meaning_are_answered_in_one_line_each(
    go: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    plain = go("--checkpoint", checkpoint)
    flags = ["--apex-amp", "--no-prefetcher", "--tf-preprocessing", "--legacy-jit", "--num-gpu", "4"]
    status, row, text = go("--checkpoint", checkpoint, *flags)
    assert status == 0
    for flag in flags[:-1]:
        assert text.count(f"{flag}: ") == 1
        assert f"{flag}: " not in plain[2]
    assert row["precision"] == "bfloat16"
    assert plain[1]["precision"] == "float32"


@pytest.mark.parametrize(
    ("has", "flags", "expected", "lines"),
    [
        (True, ["--amp"], "bfloat16", 0),
        (False, ["--amp"], "float32", 1),
        (False, ["--native-amp"], "float32", 1),
        (False, ["--amp", "--amp-dtype", "bfloat16"], "bfloat16", 1),
        (False, ["--amp-dtype", "fp16"], "float16", 0),
        (False, [], "float32", 0),
    ],
)
def test_mixed_precision_where_the_processor_is_fast_in_it(
    go: Any,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    has: bool,
    flags: list[str],
    expected: str,
    lines: int,
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: has)
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: 29.0)
    formats = set()
    measured = validate_module.evaluate

    def watched(network: Any, *words: Any, **more: Any) -> Evaluation:
        network.register_forward_hook(lambda _module, _inputs, output: formats.add(output.dtype))
        return measured(network, *words, **more)

    monkeypatch.setattr(validate_module, "evaluate", watched)
    status, row, text = go("--checkpoint", checkpoint, *flags)
    assert (status, row["precision"]) == (0, expected)
    assert formats == {getattr(torch, expected)}
    assert sum("29 times" in line for line in text.splitlines()) == lines


def test_a_recipe(go: Any, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"checkpoint: {checkpoint}\nbatch-size: 3\nmodel: DaViT_nano\n")
    status, row, _ = go("-c", recipe)
    assert (status, row["batch_size"]) == (0, 3)
    assert parse_validate(["-c", str(recipe)])[1]
    assert go("-c", recipe, "-b", 2)[1]["batch_size"] == 2
    recipe.write_text("chekpoint: x\n")
    status, _, text = go("-c", recipe)
    assert status == 2
    assert "unknown key 'chekpoint'; did you mean 'checkpoint'" in text


# -- whose words count


def test_a_checkpoint_tells_all_that_its_training_knew(go: Any, checkpoint: Path, val: PictureDataset) -> None:
    status, row, text = go("--checkpoint", checkpoint)
    expected = directly(val)
    assert status == 0
    assert figures(row) == (expected.correct1, expected.correct5, 13, 0)
    assert row["top1"] == expected.top1
    assert row["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert (row["top1_low"], row["top1_high"]) == expected.top1_interval
    assert (row["model"], row["img_size"], row["crop_pct"], row["interpolation"]) == (
        *("DaViT_nano", 16, 0.8, "bilinear"),
    )
    assert row["weights"] == "plain"
    assert "95 % interval" in text
    assert "images/s" in text
    assert "peak memory" in text


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


def test_args_as_timm_saves_them(go: Any, tmp_path: Path, checkpoint: Path) -> None:
    words = argparse.Namespace(**{**ARGS, "input_size": None, "img_size": 16})
    timms = save(tmp_path / "timm.pth.tar", args=words, arch="DaViT_nano")
    assert figures(go("--checkpoint", timms)[1]) == figures(go("--checkpoint", checkpoint)[1])


def test_weights_alone_are_known_by_their_shapes(go: Any, tmp_path: Path) -> None:
    full = davit.create_model("DaViT_nano", num_classes=3)
    torch.save(full.state_dict(), tmp_path / "bare.pth")
    status, row, _ = go("--checkpoint", tmp_path / "bare.pth", "--img-size", 80, "--no-test-pool")
    assert (status, row["model"], row["img_size"], row["count"]) == (0, "DaViT_nano", 80, 13)
    torch.save(model().state_dict(), tmp_path / "odd.pth")  # the shapes of no variant
    status, _, text = go("--checkpoint", tmp_path / "odd.pth")
    assert status == 2
    assert "does not tell which model it is of; pass --model" in text
    words = ["embed_dims=[8,16]", "depths=[1,1]", "num_heads=[1,2]", "window_size=2"]
    flags = ("--model", "DaViT_nano", "--img-size", 16, "--model-kwargs", *words)
    assert go("--checkpoint", tmp_path / "odd.pth", *flags)[0] == 0


def test_another_architecture_of_timm(go: Any, tmp_path: Path, pictures: Path) -> None:
    torch.manual_seed(0)
    other = timm.create_model("test_resnet", num_classes=3)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "other.pth")
    flags = ("--model", "test_resnet", "--num-classes", 3, "--img-size", 32, "--no-test-pool")
    status, row, _ = go("--checkpoint", tmp_path / "other.pth", *flags)
    cfg = other.pretrained_cfg
    dataset = open_dataset(pictures, "val")
    dataset.transform = eval_transform(
        img_size=32,
        **{key: cfg[key] for key in ("crop_pct", "interpolation", "mean", "std")},
    )
    expected = evaluate(other, EvalLoader(dataset, batch_size=13), world=World(0, 0, 1, torch.device("cpu")))
    assert (status, row["correct1"]) == (0, expected.correct1)
    assert row["loss"] == pytest.approx(expected.loss, rel=1e-5)


def test_which_weights_of_a_training(go: Any, tmp_path: Path, val: PictureDataset) -> None:
    both = save(tmp_path / "both.pth", state_dict_ema=model(seed=5).state_dict())
    averaged, plain = directly(val, seed=5), directly(val, seed=0)
    assert averaged.loss != pytest.approx(plain.loss, rel=1e-3)
    for flags, expected, name in (
        ((), averaged, "EMA"),
        (("--use-ema",), averaged, "EMA"),
        (("--ema", "never"), plain, "plain"),
    ):
        row = go("--checkpoint", both, *flags)[1]
        assert row["weights"] == name
        assert row["loss"] == pytest.approx(expected.loss, rel=1e-6)
    status, _, text = go("--checkpoint", save(tmp_path / "one.pth"), "--ema", "always")
    assert status == 2
    assert "has no EMA weights" in text


def test_pictures_larger_than_in_training_are_pooled(go: Any, checkpoint: Path) -> None:
    pooled = go("--checkpoint", checkpoint, "--img-size", 32)[1]
    assert pooled["test_time_pool"]
    assert pooled["crop_pct"] == 1
    assert go("--checkpoint", checkpoint, "--img-size", 32, "--crop-pct", 0.7)[1]["crop_pct"] == 0.7
    whole = go("--checkpoint", checkpoint, "--img-size", 32, "--no-test-pool", "--crop-pct", 1)[1]
    assert not whole["test_time_pool"]
    assert whole["loss"] != pytest.approx(pooled["loss"], rel=1e-4)
    assert not go("--checkpoint", checkpoint)[1]["test_time_pool"]
    status, _, text = go("--checkpoint", checkpoint, "--test-time-pool")
    assert status == 2
    assert "pass a larger --img-size" in text


@pytest.mark.parametrize(
    "flags",
    [("--torchscript",), ("--torchcompile", "eager"), ("--channels-last",), ("--torchscript", "--img-size", "24")],
)
def test_other_ways_of_running_the_same_model(go: Any, checkpoint: Path, flags: tuple[str, ...]) -> None:
    plain = go("--checkpoint", checkpoint, *flags[1:] if "--img-size" in flags else ())[1]
    status, row, _ = go("--checkpoint", checkpoint, *flags)
    assert status == 0
    assert row["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_labels_by_flag(go: Any, pictures: Path, tmp_path: Path, checkpoint: Path) -> None:
    shutil.copytree(pictures / "val" / "blue", tmp_path / "val" / "blue")
    shutil.copytree(pictures / "val" / "red", tmp_path / "val" / "red")
    (tmp_path / "valid.txt").write_text("0\n2\n")
    status, _, text = go("--checkpoint", checkpoint, data=tmp_path)
    assert status == 2
    assert "the data has 2 classes (blue, red) and the model 3" in text
    subset = go("--checkpoint", checkpoint, "--valid-labels", tmp_path / "valid.txt", data=tmp_path)
    assert (subset[0], subset[1]["count"]) == (0, 9)
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    mapped = go("--checkpoint", checkpoint, "--class-map", tmp_path / "classes.txt", data=tmp_path)
    assert (mapped[0], mapped[1]["count"]) == (0, 9)
    assert mapped[1]["correct1"] < subset[1]["correct1"] or mapped[1]["loss"] > subset[1]["loss"]
    status, _, text = go("--checkpoint", checkpoint, "--real-labels", "timm")
    assert status == 2
    assert "no labels for blue/0.png" in text


def test_folders_under_other_names_than_in_training_are_pointed_out(go: Any, tmp_path: Path) -> None:
    other = save(tmp_path / "names.pth", class_names=["blue", "grass", "red"])
    status, _, text = go("--checkpoint", other)
    assert status == 0
    assert "1 of 3 classes are called otherwise than in training (grass there, green here)" in text
    assert (
        "called otherwise"
        not in go("--checkpoint", save(tmp_path / "same.pth", class_names=["blue", "green", "red"]))[2]
    )


def test_without_data_the_digits_are_used(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_DATA_DIR", str(tmp_path))
    torch.save({"state_dict": model(num_classes=10).state_dict(), "args": ARGS}, tmp_path / "digits.pth")
    status, row, text = go("--checkpoint", tmp_path / "digits.pth", data=None)
    assert (status, row["count"]) == (0, 360)
    assert text.count("handwritten digits") == 1


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
    evaluated = []
    monkeypatch.setattr(validate_module, "evaluate", lambda *a, **k: (evaluated.append(1), evaluate(*a, **k))[1])
    results = tmp_path / "results.csv"
    status, rows, text = go("--checkpoint", folder, "--results-file", results)
    assert status == 1
    assert "checkpoint-7.pth failed" in text
    assert "Traceback" not in text
    assert len(rows) == 5
    assert len(evaluated) == 3  # the best is a second name of an epoch
    assert "error" in rows[-1]
    assert Path(rows[-1]["checkpoint"]).name == "checkpoint-7.pth"
    top1 = [row["top1"] for row in rows[:-1]]
    assert top1 == sorted(top1, reverse=True)
    by_name = {Path(row["checkpoint"]).name: row for row in rows[:-1]}
    for seed in (1, 2, 10):
        assert by_name[f"checkpoint-{seed}.pth.tar"]["correct1"] == directly(val, seed).correct1
    assert by_name["model_best.pth.tar"]["loss"] == by_name["checkpoint-2.pth.tar"]["loss"]
    with results.open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["checkpoint"] for row in written] == [row["checkpoint"] for row in rows]
    assert [float(row["top1"]) for row in written[:-1]] == top1
    assert written[-1]["error"] == rows[-1]["error"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.csv", "run"]

    (folder / "checkpoint-7.pth").unlink()
    status, rows, _ = go("--checkpoint", folder, "--results-file", tmp_path / "results.json")
    assert (status, json.loads((tmp_path / "results.json").read_text())) == (0, rows)


def test_the_format_of_the_results(go: Any, checkpoint: Path, tmp_path: Path) -> None:
    go("--checkpoint", checkpoint, "--results-file", tmp_path / "out", "--results-format", "json")
    assert json.loads((tmp_path / "out").read_text())[0]["count"] == 13
    go("--checkpoint", checkpoint, "--results-file", tmp_path / "out.json", "--results-format", "csv")
    assert (tmp_path / "out.json").read_text().startswith("model,checkpoint,")


def test_a_checkpoint_of_nan_gives_valid_json(go: Any, tmp_path: Path) -> None:
    broken = model()
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    torch.save({"state_dict": broken.state_dict(), "args": ARGS}, tmp_path / "nan.pth")
    status, row, text = go("--checkpoint", tmp_path / "nan.pth", "--results-file", tmp_path / "r.json")
    assert (status, row["loss"], row["nonfinite"], row["correct1"]) == (0, None, 13, 0)
    assert "13 pictures gave NaN or infinite logits" in text


def entries(*flags: str) -> list[load_model.Entry]:
    args, named = parse_validate([*flags])
    return load_model.find_entries(args, named)[0]


def test_wildcards_stand_for_models_with_published_weights(tmp_path: Path) -> None:
    published = [load_model.Entry(f"DaViT_{size}") for size in ("base", "small", "tiny")]
    assert entries("--model", "DaViT_*") == published
    assert set(published) < set(entries("--model", "all"))
    assert load_model.Entry("davit_tiny.msft_in1k") in entries("--model", "davit_t*", "--pretrained")
    names = tmp_path / "names.txt"
    names.write_text("DaViT_tiny\n\n# ours\n  DaViT_nano\n")
    assert entries("--model", str(names)) == [load_model.Entry("DaViT_tiny"), load_model.Entry("DaViT_nano")]
    assert entries() == [load_model.Entry("dpn92")]


def test_several_models_one_of_which_fails(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, pretrained: bool, scriptable: bool) -> DaViT:
        assert pretrained
        assert not scriptable
        if name == "DaViT_base":
            raise PretrainedError("no network")
        if name == "DaViT_small":
            raise ConnectionError("the hub\nis away")
        return model()

    monkeypatch.setattr(load_model, "create_model", create)
    flags = ("--model", "DaViT_*", "--pretrained", "--img-size", 16, "--results-file", tmp_path / "r.json")
    status, rows, text = go(*flags)
    assert status == 1
    assert [(row["model"], row.get("count"), row.get("error")) for row in rows] == [
        ("DaViT_tiny", 13, None),
        ("DaViT_base", None, "no network"),
        (
            *("DaViT_small", None),
            "the published weights of DaViT_small could not be had (ConnectionError: the hub is away)",
        ),
    ]
    assert rows[0]["weights"] == "published"
    assert json.loads((tmp_path / "r.json").read_text()) == rows
    assert "Traceback" not in text


# -- memory


def test_only_want_of_memory_halves_the_batch(
    go: Any, checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert text.count("beginning anew") == 2
    assert figures(row) == figures(expected)

    limit[0] = 0
    status, _, text = go("--checkpoint", checkpoint, "-b", 2)
    assert status == 2
    assert "memory does not suffice for one picture" in text

    sizes.clear()
    monkeypatch.setattr(DaViT, "forward", lambda self, x: (sizes.append(len(x)), torch.ones(2) @ torch.ones(3)))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main([str(pictures), "-j", "0", "--device", "cpu", "--checkpoint", str(checkpoint), "-b", "8"])
    assert sizes == [8]


# -- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--checkpoint nowhere.pth", "nowhere.pth does not exist"),
        ("--checkpoint {root}", "holds no checkpoint"),
        ("--checkpoint {best} --model DaViT_tinny", "unknown model 'DaViT_tinny'; did you mean"),
        ("--checkpoint {best} --model DaViT_*", "stands for 3 models and --checkpoint for the weights of one"),
        ("--model Nothing_*", "matches no model with published weights"),
        ("--model DaViT_nano", "no weights of DaViT_nano are published; pass the --checkpoint"),
        ("--checkpoint {best} --pretrained", "--pretrained and --checkpoint .* exclude each other"),
        ("--checkpoint {best} --num-classes 5", "the checkpoint's head has 3 classes, the model's 5"),
        ("--checkpoint {best} --model-kwargs window=3", "does not take .*'window': 3"),
        ("--checkpoint {best} --batch-size 0", "--batch-size 0 is not a number of 1 or more"),
        ("--checkpoint {best} --crop-pct 0", "--crop-pct 0.0 is not a share above 0"),
        ("--checkpoint {best} --img-size 0", "--img-size 0 is not a number of 1 or more"),
        ("--checkpoint {best} --torchcompile inducktor", "'inducktor' is unknown; choose from .*inductor"),
        ("--checkpoint {best} --results-file {root}/none/r.csv", "no file can be written there"),
        ("--checkpoint {best} --test-time-pool --no-test-pool", "exclude each other"),
        ("--checkpoint {best} --use-ema --ema never", "exclude each other"),
        ("--checkpoint {best} --input-size 1 16 16", "C must be 3"),
        ("--checkpoint {best} --mean 0.1 0.2", "a mean or standard deviation one number or three"),
        ("--checkpoint {best} --interpolation cubic", "--interpolation 'cubic' is unknown; choose from"),
        ("--checkpoint {best} --split test", "has no split 'test'"),
        ("--checkpoint {best} --device tpu", "--device 'tpu' is"),
        ("--checkpoint {best} --valid-labels {root}/no.txt", "cannot be read"),
    ],
)
def test_mistakes_end_in_one_paragraph(go: Any, checkpoint: Path, tmp_path: Path, flags: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    words = [word.format(best=checkpoint, root=tmp_path / "empty") for word in flags.split()]
    status, printed, text = go(*words)
    assert (status, printed) == (2, None)
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert "Traceback" not in text


# -- processes


@pytest.fixture
def odd(pictures: Path, tmp_path: Path) -> Path:
    """13 pictures, of which process 0 of 2 has 7 and process 1 has 6, the bad one among them."""
    root = tmp_path / "odd"
    shutil.copytree(pictures / "val", root / "val")
    names = open_dataset(root, "val").filenames()
    (root / "val" / names[3]).write_bytes(b"not a picture")
    return root


def validate_command(data: Path, *flags: object) -> list[str]:
    """The words of a run on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*launcher, str(REPOSITORY / "validate.py"), str(data), "-j", "0", *map(str, flags)]


def test_two_processes_count_as_one(go: Any, odd: Path, checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--checkpoint", checkpoint, "--skip-bad-images", "-b", 2)
    alone = go(*flags, data=odd)[1]
    results = tmp_path / "r.csv"
    two = run(validate_command(odd, *flags, "--results-file", results), tmp_path)
    assert two.returncode == 0, two.stderr
    together = json.loads(two.stdout.splitlines()[-1])
    assert figures(together) == figures(alone)
    assert figures(alone)[2:] == (12, 1)
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert two.stdout.count("--result") == 1
    assert two.stderr.count("top-1") == 1
    assert len(results.read_text().splitlines()) == 2


def test_a_failure_of_one_process_is_told_by_the_first(odd: Path, checkpoint: Path, tmp_path: Path) -> None:
    finished = run(validate_command(odd, "--checkpoint", checkpoint), tmp_path, timeout=100)
    assert finished.returncode != 0
    assert "process 1 failed with BadImageError" in finished.stderr
    assert "not a picture of a known format" in finished.stderr
    assert "--result" not in finished.stdout
    assert "davit/engine" not in finished.stderr  # no traceback of ours
