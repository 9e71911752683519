"""train.py's command line: the flags of the original, recipes, mistakes, what is written."""

import argparse
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from davit.checkpoint import read_checkpoint
from davit.engine import precision
from davit.engine.build import build_model
from davit.engine.flags import (
    ABOVE_ZERO,
    NO_LONGER,
    given_flags,
    integer,
    parse_with_config,
    real,
    train_parser,
)
from davit.engine.validate import main as validate
from davit.kernels import why_plain
from tests.engine.runs import REPOSITORY, run_here, summary

Train = Callable[..., subprocess.CompletedProcess[str]]
SHORT = [
    *("--epochs", "2", "--warmup-epochs", "1", "--cooldown-epochs", "0", "--batch-size", "8", "--workers", "1"),
    *("--output", "runs", "--experiment", "a"),
]


def test_every_flag_of_the_original_with_its_default(shared: Path) -> None:
    actions = {flag: action for action in train_parser()._actions for flag in action.option_strings}
    for official in json.loads((shared / "spec/official_cli.json").read_text())["train"]:
        if official["flags"] == ["data_dir"]:
            continue
        for flag in official["flags"]:
            assert flag in actions, flag
            assert actions[flag].default == official.get("default"), flag
            assert (actions[flag].nargs == 0) == (official.get("nargs") == 0), flag


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_parse_and_say_how_to_run_them(recipe: Path) -> None:
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    assert any("train.py" in line for line in header)
    assert any("Hardware" in line for line in header)
    args = parse_with_config(train_parser(), ["DIR", "-c", str(recipe)])
    default = parse_with_config(train_parser(), ["DIR"])
    written = yaml.safe_load(recipe.read_text())
    repeated = [k for k, v in written.items() if getattr(default, k) == v and k != "output"]
    assert args.model == written["model"]
    assert not repeated, f"a recipe states only what differs, not {repeated}"


RECIPE = """
data_dir: DIR
lr: 1e-3
opt-betas: [0.9, 0.95]
mean: 0.5
epochs: 3.0
amp: true
sync_bn: false
pin_mem: false
aa: null
decay_milestones: []
experiment: 7
torchcompile: eager
model_kwargs: {window_size: 4, embed_dims: [8, 16], rate: 1.0e-5, inner: {name: '3', none: null}}
"""


def parsed(tmp_path: Path, recipe: str, *words: str) -> argparse.Namespace:
    file = tmp_path / "r.yaml"
    file.write_text(recipe)
    return parse_with_config(train_parser(), ["-c", str(file), *words])


def test_recipe_values_are_read_as_their_flags_would(tmp_path: Path) -> None:
    args = parsed(tmp_path, RECIPE)
    assert (args.data_dir, args.experiment, args.torchcompile, args.aa) == ("DIR", "7", "eager", None)
    assert (args.lr, args.opt_betas, args.mean, args.epochs) == (1e-3, [0.9, 0.95], [0.5], 3)
    assert (args.amp, args.sync_bn, args.pin_mem, args.decay_milestones) == (True, False, False, [])
    inner = {"name": "3", "none": None}
    assert args.model_kwargs == {"window_size": 4, "embed_dims": [8, 16], "rate": 1e-5, "inner": inner}


def test_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    words = ["--lr", "3e-3", "--pin-mem", "--aa", "none", "--model-kwargs", "depth=2", "--mean", "0", "1", "0"]
    args = parsed(tmp_path, RECIPE, *words)
    assert (args.lr, args.pin_mem, args.aa, args.model_kwargs) == (3e-3, True, "none", {"depth": 2})
    assert args.mean == [0, 1, 0]
    assert parsed(tmp_path, "scale: [0.5, 1]", "OTHER").data_dir == "OTHER"


def test_the_record_of_a_run_is_a_recipe_for_it(tmp_path: Path) -> None:
    args = vars(parsed(tmp_path, RECIPE, "--class-map", "map.txt"))
    assert {**vars(parsed(tmp_path, yaml.safe_dump(args))), "config": args["config"]} == args


def test_flags_are_given_on_the_command_line_or_in_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("lr: 5.0e-4\naa: null\n")  # the first is the default
    found = given_flags(train_parser, ["DIR", "-c", str(file), "--epochs", "300"])
    assert found == {"data_dir", "config", "lr", "aa", "epochs"}
    assert given_flags(train_parser, []) == set()


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("lerning_rate: 1", ["lerning_rate"]),
        ("btach_size: 1", ["btach_size", "'batch_size'"]),
        ("epochs: many", ["epochs", "'many'"]),
        ("epochs: 1.5", ["epochs", "1.5"]),
        ("epochs: 0", ["epochs", "0", "1 or more"]),
        ("lr: [1, 2]", ["lr", "[1, 2]"]),
        ("opt: off", ["opt", "False"]),
        ("amp: 1", ["amp", "1", "true", "false"]),
        ("clip_mode: soft", ["clip_mode", "'soft'", "norm", "value", "agc"]),
        ("torchcompile: inducktor", ["torchcompile", "'inducktor'", "inductor"]),
        ("input_size: [3, 32]", ["input_size", "[3, 32]"]),
        ("input_size: [3, 32, 32, 32]", ["input_size", "[3, 32, 32, 32]"]),
        ("model_kwargs: 3", ["model_kwargs", "3"]),
        ("- a", []),
        ("a: [1", ["YAML"]),
        ("a: !!python/object/apply:os.getcwd []", ["YAML"]),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, recipe: str, expected: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        parsed(tmp_path, recipe)
    for word in [*expected, str(tmp_path / "r.yaml")]:
        assert word in str(error.value)


@given(text=st.one_of(st.text(), st.floats().map(str), st.integers().map(str)))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_numbers_are_within_their_limits_or_refused(text: str) -> None:
    for make, least, most in ((integer, 1, 9), (integer, 0, 2**31 - 1), (real, 0, 1), (real, ABOVE_ZERO, math.inf)):
        try:
            value = make(least, most)(text)
        except argparse.ArgumentTypeError as error:
            assert repr(text) in str(error)
        else:
            assert least <= value <= most and math.isfinite(value) and value == float(text)


def test_every_number_has_a_type_with_limits() -> None:
    for action in train_parser()._actions:
        assert action.type not in (int, float), action.dest


def test_a_run_leaves_its_record(train: Train, tmp_path: Path) -> None:
    result = train(*SHORT, "--model-ema", "--log-tensorboard", curves=True)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs/a"
    rows = summary(folder)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"train_loss", "eval_loss", "eval_top1", "eval_top5", "ema_top1", "lr", "grad_norm"} <= set(rows[0])
    assert (folder / "curves.png").stat().st_size > 5_000
    assert list((folder / "tensorboard").iterdir())
    args = yaml.safe_load((folder / "args.yaml").read_text())
    assert args["model"] == "DaViT_nano"
    assert args["epochs"] == 2
    checkpoint = read_checkpoint(folder / "model_best.pth.tar")
    assert checkpoint.wrapper == ("state_dict_ema",)
    assert {f.name for f in folder.glob("*.pth.tar")} >= {"last.pth.tar", "model_best.pth.tar", "checkpoint-1.pth.tar"}


def test_only_the_best_epochs_are_kept(train: Train, tmp_path: Path) -> None:
    result = train(*SHORT, "--epochs", "4", "--checkpoint-hist", "2")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs/a"
    rows = summary(folder)
    best = sorted(rows, key=lambda row: (-float(row["eval_top1"]), int(row["epoch"])))[:2]
    kept = {int(f.name.split("-")[1].split(".")[0]) for f in folder.glob("checkpoint-*.pth.tar")}
    assert kept == {int(row["epoch"]) for row in best}
    model_best = torch.load(folder / "model_best.pth.tar", weights_only=True)
    assert model_best["metric"] == pytest.approx(float(best[0]["eval_top1"]))


def test_two_runs_never_share_a_folder(train: Train, tmp_path: Path) -> None:
    short = [*SHORT, "--epochs", "1"]
    assert train(*short).returncode == 0
    before = (tmp_path / "runs/a/last.pth.tar").read_bytes()
    refused = train(*short)
    assert refused.returncode == 2
    for word in ("earlier run", "--auto-resume", "--overwrite", "--experiment"):
        assert word in refused.stderr
    assert (tmp_path / "runs/a/last.pth.tar").read_bytes() == before
    assert train(*short, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", "DaViT_tinny"], ["DaViT_tinny", "DaViT_tiny"]),
        (["--num-classes", "7"], ["3 classes", "7"]),
        (["--batch-size", "7"], ["--batch-size 7", "odd", "--mixup 0"]),
        (["--batch-size", "64"], ["48", "64", "--batch-size"]),
        (["--opt", "adamx"], ["adamx"]),
        (["--device", "cuda"], ["cuda", "--device cpu"]),
        (["--device", "toaster"], ["toaster"]),
        (["--resume", "no.pth"], ["no.pth", "does not exist"]),
        (["--epochs", "0"], ["--epochs", "'0'", "1 or more"]),
        (["--recovery-interval", "-1"], ["--recovery-interval", "'-1'", "0 or more"]),
        (["--start-epoch", "-1"], ["--start-epoch", "'-1'"]),
        (["--clip-grad", "0"], ["--clip-grad", "'0'", "above 0"]),
        (["--lr", "inf"], ["--lr", "'inf'"]),
        (["--smoothing", "2"], ["--smoothing", "'2'", "at most 1"]),
        (["--opt-betas", "0.9"], ["--opt-betas 0.9", "2 or 3"]),
        (["--cutmix-minmax", "0.2"], ["--cutmix-minmax", "2"]),
        (["--mean", "0.5", "0.5"], ["--mean [0.5, 0.5]"]),
        (["--torchcompile", "inducktor"], ["inducktor", "inductor"]),
        (["--sched", "cosinus"], ["cosinus"]),
        (["--initial-checkpoint", "no.pth"], ["no.pth"]),
        (["--jsd"], ["--aug-splits"]),
        (["--model-kwargs", "img_size=16"], ["img_size", "--model-kwargs"]),
        (["--model-kwargs", "window_size"], ["window_size", "key=value"]),
        (["--input-size", "1", "16", "16"], ["--input-size", "RGB"]),
        (["-c", "no.yaml"], ["no.yaml", "does not exist"]),
        (["--train-split", "tarin"], ["tarin"]),
    ],
)
def test_mistakes_name_the_value_and_the_remedy(train: Train, flags: list[str], expected: list[str]) -> None:
    result = train(*SHORT, *flags)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for word in expected:
        assert word in result.stderr


def test_flags_without_a_meaning_say_what_happens_instead(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    result = train(*SHORT, "--epochs", "1", "--apex-amp", "--tta", "3", "--local_rank", "0", "--no-prefetcher")
    assert result.returncode == 0, result.stderr
    for dest in ("apex_amp", "tta", "no_prefetcher"):
        assert NO_LONGER[dest] in result.stderr
    assert "bfloat16 on cpu" in result.stderr  # --apex-amp still means mixed precision


def test_dry_run_writes_nothing(train: Train, tmp_path: Path) -> None:
    result = train(*SHORT, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert " MB " in result.stderr and " hours " in result.stderr
    assert not (tmp_path / "runs").exists()


def test_throughput(train: Train, tmp_path: Path) -> None:
    result = train(*SHORT, "--throughput")
    assert result.returncode == 0, result.stderr
    assert "images/s" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--amp", "--amp-dtype", "bf16"],
        ["--grad-checkpointing", "--channels-last"],
        ["--layer-decay", "0.8", "--clip-mode", "agc", "--clip-grad", "0.02"],
        ["--sched", "step", "--decay-epochs", "1", "--sched-on-updates"],
        ["--sched", "plateau", "--eval-metric", "loss", "--opt", "sgd"],
        ["--aug-splits", "3", "--jsd", "--aa", "augmix-m5-w4", "--resplit", "--mixup", "0", "--cutmix", "0"],
        ["--mixup", "0", "--cutmix", "0", "--smoothing", "0", "--repeated-aug"],
        ["--epoch-repeats", "2", "--mixup-off-epoch", "1", "--mixup-mode", "elem"],
        ["--torchscript", "--save-images", "--log-interval", "1"],
        ["--torchcompile", "eager"],
        ["--model-ema", "--model-ema-force-cpu", "--drop", "0.1", "--gp", "avgmax"],
        ["--bn-momentum", "0.2", "--bn-eps", "1e-4", "--start-epoch", "1", "--lr-noise", "0.3", "0.9"],
    ],
    ids=lambda flags: flags[0].strip("-"),
)
def test_options_train(train: Train, tmp_path: Path, flags: list[str]) -> None:
    result = train(*SHORT, *flags)
    assert result.returncode == 0, result.stderr
    rows = summary(tmp_path / "runs/a")
    assert rows[-1]["epoch"] == "1"
    assert all(float(row["train_loss"]) > 0 for row in rows)


def test_initial_checkpoint_of_another_class_count(train: Train, tmp_path: Path) -> None:
    assert train(*SHORT, "--epochs", "1").returncode == 0
    first = torch.load(tmp_path / "runs/a/last.pth.tar", weights_only=True)
    first["state_dict"]["head.weight"] = torch.randn(9, 16)
    first["state_dict"]["head.bias"] = torch.randn(9)
    torch.save(first["state_dict"], tmp_path / "nine.pth")
    result = train(*SHORT, "--experiment", "b", "--initial-checkpoint", "nine.pth", "--lr", "0", "--min-lr", "0",
                   "--warmup-lr", "0", "--weight-decay", "0")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "head" in result.stderr
    second = torch.load(tmp_path / "runs/b/last.pth.tar", weights_only=True)
    for name, tensor in first["state_dict"].items():
        if not name.startswith("head."):
            assert torch.equal(tensor, second["state_dict"][name]), name
    assert second["state_dict"]["head.weight"].shape == (3, 16)


def test_resume_from_a_foreign_checkpoint_uses_its_weights_and_epoch(train: Train, tmp_path: Path) -> None:
    assert train(*SHORT).returncode == 0
    ours = torch.load(tmp_path / "runs/a/last.pth.tar", weights_only=True)
    foreign = {
        "epoch": 0,
        "arch": "x",
        "state_dict": ours["state_dict"],
        "version": 2,
        "args": argparse.Namespace(lr=1),
    }
    torch.save(foreign, tmp_path / "timm.pth.tar")
    result = train(*SHORT, "--experiment", "b", "--resume", "timm.pth.tar")
    assert result.returncode == 0, result.stderr
    assert [r["epoch"] for r in summary(tmp_path / "runs/b")] == ["1"]


def test_resume_names_a_state_and_goes_on_from_it(train: Train, tmp_path: Path) -> None:
    assert train(*SHORT, "--epochs", "3").returncode == 0
    whole = torch.load(tmp_path / "runs/a/last.pth.tar", weights_only=True)["state_dict"]
    state = tmp_path / "runs/a/checkpoint-0.pth.tar"
    result = train(*SHORT, "--epochs", "3", "--experiment", "b", "--resume", str(state))
    assert result.returncode == 0, result.stderr
    again = torch.load(tmp_path / "runs/b/last.pth.tar", weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_changed_rate_holds_from_the_resumption_on(train: Train, tmp_path: Path) -> None:
    flags = [*SHORT, "--sched", "step", "--decay-epochs", "90"]
    assert train(*flags).returncode == 0
    result = train(*flags, "--epochs", "3", "--lr", "1e-4", "--auto-resume")
    assert result.returncode == 0, result.stderr
    assert any("--lr" in line and "0.0005" in line and "0.0001" in line for line in result.stderr.splitlines())
    rates = [float(row["lr"]) for row in summary(tmp_path / "runs/a")]
    assert rates[1:] == pytest.approx([5e-4, 1e-4])


def test_auto_resume_without_a_name_finds_the_newest_run(train: Train, tmp_path: Path) -> None:
    nameless = SHORT[:-2]
    assert train(*nameless, "--epochs", "1").returncode == 0
    (folder,) = (tmp_path / "runs").iterdir()
    result = train(*nameless, "--auto-resume")
    assert result.returncode == 0, result.stderr
    assert [f.name for f in (tmp_path / "runs").iterdir()] == [folder.name]
    assert len(summary(folder)) == 2


def test_bad_pictures_stop_the_run_or_are_listed(tmp_path: Path, pictures: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "train/red/3.png").write_bytes(b"")
    (data / "val/blue/1.png").write_text("not a picture")
    stopped = run_here(data, *SHORT, cwd=tmp_path)
    assert stopped.returncode == 2
    assert "red/3.png" in stopped.stderr
    skipped = run_here(data, *SHORT, "--skip-bad-images", "--experiment", "b", cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    listed = (tmp_path / "runs/b/bad_images.csv").read_text()
    assert "red/3.png" in listed and "blue/1.png" in listed
    assert summary(tmp_path / "runs/b")[-1]["bad_images"] == "2"


def test_train_and_validate_give_the_same_number(
    train: Train, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*SHORT, "--crop-pct", "0.8").returncode == 0
    best = max(float(row["eval_top1"]) for row in summary(tmp_path / "runs/a"))
    assert validate([str(pictures), "--checkpoint", "runs/a/model_best.pth.tar", "--workers", "1"]) == 0
    found = json.loads(capsys.readouterr().out.split("--result")[1])
    top1 = (found[0] if isinstance(found, list) else found)["top1"]
    assert top1 == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(("words", "accelerated"), [([], True), (["--model-kwargs", "accelerate=False"], False)])
def test_models_are_accelerated_unless_told_otherwise(words: list[str], accelerated: bool) -> None:
    args = parse_with_config(train_parser(), ["DIR", "--model", "DaViT_nano", *words])
    assert (why_plain(build_model(args, 3)) == {}) is accelerated
