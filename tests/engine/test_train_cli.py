"""train.py's command line: the flags of the original, recipes, mistakes, what is written."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from davit.checkpoint import read_checkpoint
from davit.engine import precision
from davit.engine.build import build_model, build_schedule
from davit.engine.flags import (
    NO_LONGER,
    given_flags,
    parse_with_config,
    train_parser,
    validate_parser,
)
from davit.engine.run_folder import read_state
from davit.engine.validate import main as validate
from davit.kernels import why_plain
from davit.predict.flags import predict_parser
from tests.engine import runs
from tests.engine.runs import REPOSITORY, SHORT, Train, run_here, summary


@pytest.mark.parametrize(
    ("script", "make_parser", "count"),
    [("train", train_parser, 100), ("validate", validate_parser, 33), ("inference", predict_parser, 17)],
)
def test_every_flag_of_the_original_with_its_default(shared: Path, script: str, make_parser: Any, count: int) -> None:
    actions = {flag: action for action in make_parser()._actions for flag in action.option_strings or [action.dest]}
    officials = json.loads((shared / "spec/official_cli.json").read_text())[script]
    assert len(officials) == count
    for official, flag in [(entry, flag) for entry in officials for flag in entry["flags"]]:
        action = actions[flag]
        assert action.default == official.get("default"), flag
        assert (action.nargs == 0) == (official.get("nargs") == 0), flag
        if action.nargs != 0:
            value = action.type("1") if action.type else "1"
            assert type(value).__name__ == official.get("type", "str"), flag


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_parse_and_say_how_to_run_them(recipe: Path) -> None:
    header = "\n".join(line for line in recipe.read_text().splitlines() if line.startswith("#"))
    assert "train.py" in header and "Hardware" in header
    args = parse_with_config(train_parser(), ["DIR", "-c", str(recipe)])
    default, written = train_parser().parse_args(["DIR"]), yaml.safe_load(recipe.read_text())
    assert args.model == written["model"]
    assert not [k for k, v in written.items() if getattr(default, k) == v and k != "output"]  # only what differs


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


def test_recipe_values_are_read_as_their_flags_would_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    args = parsed(tmp_path, RECIPE)
    assert (args.data_dir, args.experiment, args.torchcompile, args.aa) == ("DIR", "7", "eager", None)
    assert (args.lr, args.opt_betas, args.mean, args.epochs) == (1e-3, [0.9, 0.95], [0.5], 3)
    assert (args.amp, args.sync_bn, args.pin_mem, args.decay_milestones) == (True, False, False, [])
    inner = {"name": "3", "none": None}
    assert args.model_kwargs == {"window_size": 4, "embed_dims": [8, 16], "rate": 1e-5, "inner": inner}
    words = ["--lr", "3e-3", "--pin-mem", "--aa", "none", "--model-kwargs", "depth=2", "--mean", "0", "1", "0"]
    args = parsed(tmp_path, RECIPE, *words)
    assert (args.lr, args.pin_mem, args.aa, args.model_kwargs) == (3e-3, True, "none", {"depth": 2})
    assert args.mean == [0, 1, 0]
    args = parsed(tmp_path, "opt-betas: []\nmean: []\ndataset: null")
    assert (args.opt_betas, args.mean, args.dataset) == (None, None, "")  # as if not given
    args = parsed(tmp_path, "mean: [-1.0e-5, -1e-6, 0.5]\nmodel_kwargs: null")
    assert (args.mean, args.model_kwargs) == ([-1e-5, -1e-6, 0.5], {})
    assert parsed(tmp_path, "scale: [0.5, 1]", "OTHER").data_dir == "OTHER"
    # the record of a run is a recipe for it
    record = vars(parsed(tmp_path, RECIPE, "--class-map", "map.txt"))
    assert {**vars(parsed(tmp_path, yaml.safe_dump(record))), "config": record["config"]} == record
    # flags are given on the command line or in the recipe
    parsed(tmp_path, "lr: 5.0e-4\naa: null\n")  # the first is the default
    found = given_flags(train_parser, ["DIR", "-c", str(tmp_path / "r.yaml"), "--epochs", "300"])
    assert found == {"data_dir", "config", "lr", "epochs"}  # null gives nothing
    assert given_flags(train_parser, []) == set()


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("lerning_rate: 1", ["lerning_rate"]),
        ("btach_size: 1", ["btach_size", "'batch_size'"]),
        ("epochs: many", ["epochs", "'many'"]),
        ("epochs: 1.5", ["epochs", "1.5"]),
        ("epochs: 0", ["epochs", "0", "1 to 1000000"]),
        ("lr: [1, 2]", ["lr", "[1, 2]"]),
        ("lr: null", ["lr", "null", "0.0005"]),
        ("opt: off", ["opt", "False"]),
        ("amp: 1", ["amp", "1", "true", "false"]),
        ("clip_mode: soft", ["clip_mode", "'soft'", "norm", "value", "agc"]),
        ("torchcompile: inducktor", ["torchcompile", "'inducktor'", "inductor"]),
        ("input_size: [3, 32]", ["input_size", "[3, 32]"]),
        ("input_size: [3, 32, 32, 32]", ["input_size", "[3, 32, 32, 32]"]),
        ("model_kwargs: 3", ["model_kwargs", "3"]),
        ("batch-size: .inf", ["batch-size"]),
        ("model: null", ["model", "null"]),
        ("scale: null", ["scale", "null"]),
        ("scale: [1.0, 0.1]", ["scale", "smaller"]),
        ("scale: [null, 1]", ["scale"]),
        ("opt-betas: [0.9]", ["opt-betas", "2 or 3"]),
        ("data_dir: [a]", ["data_dir"]),
        ("model-kwargs: {mlp_ratio: .inf}", ["model-kwargs", "mlp_ratio"]),
        ("model-kwargs: {a: [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}", ["nested"]),
        ("mean: " + "[" * 3000 + "]" * 3000, ["nested"]),
        ("epochs: " + "9" * 5000, ["YAML"]),
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


def test_a_run_leaves_its_record_and_the_best_epochs(train: Train, tmp_path: Path) -> None:
    flags = ["--model-ema", "--log-tensorboard", "--epochs", "3", "--checkpoint-hist", "2"]
    train(*SHORT, *flags, curves=True)
    folder = tmp_path / "runs/a"
    rows = summary(folder)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert {"train_loss", "eval_loss", "eval_top1", "eval_top5", "ema_top1", "lr", "grad_norm"} <= set(rows[0])
    assert (folder / "curves.png").stat().st_size > 5_000
    assert list((folder / "tensorboard").iterdir())
    args = yaml.safe_load((folder / "args.yaml").read_text())
    assert (args["model"], args["epochs"]) == ("DaViT_nano", 3)
    best = sorted(rows, key=lambda row: (-float(row["ema_top1"]), int(row["epoch"])))[:2]
    kept = {f"checkpoint-{row['epoch']}.pth.tar" for row in best}
    names = {"last.pth.tar", "previous.pth.tar", "model_best.pth.tar"}
    assert {file.name for file in folder.glob("*.pth.tar")} == {*kept, *names}
    assert read_checkpoint(folder / "model_best.pth.tar").wrapper == ("state_dict_ema",)
    assert read_state(folder / "model_best.pth.tar")["metric"] == pytest.approx(float(best[0]["ema_top1"]))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--model DaViT_tinny", ["DaViT_tinny", "DaViT_tiny"]),
        *(("--num-classes 7", ["3 classes", "7"]), ("--opt adamx", ["adamx"]), ("--lr inf", ["--lr", "'inf'"])),
        ("--batch-size 7", ["--batch-size 7", "odd", "--mixup 0"]),
        ("--batch-size 64", ["48", "64", "--batch-size"]),
        *(("--device cuda", ["cuda", "--device cpu"]), ("--device toaster", ["toaster"])),
        *(("--resume no.pth", ["no.pth", "does not exist"]), ("--output /dev/null", ["/dev/null"])),
        ("--epochs 0", ["--epochs", "'0'", "from 1"]),
        ("--recovery-interval -1", ["--recovery-interval", "'-1'", "from 0"]),
        ("--clip-grad 0", ["--clip-grad", "'0'", "1e-08"]),
        ("--smoothing 2", ["--smoothing", "'2'", "to 1"]),
        ("--smoothing 1", ["--smoothing 1"]),
        ("--lr-noise 0.1 0.9 --lr-noise-pct 0.001", ["--lr-noise-pct", "--lr-noise-std"]),
        ("--lr-cycle-mul 100 --lr-cycle-limit 1000", ["--sched"]),
        ("--lr-cycle-mul 100 --lr-cycle-limit 9", ["--lr-cycle-mul 100", "--lr-cycle-limit 9"]),
        ("--model-kwargs embed_dims=[16384,32768]", ["embed_dims", "16384"]),
        ("--model-kwargs depths=x", ["depths"]),
        ("--model-kwargs num_classes=null", ["--model-kwargs", "--num-classes"]),
        ("--opt-betas 0.9", ["--opt-betas", "0.9", "2 or 3"]),
        *(("--cutmix-minmax 0.2", ["--cutmix-minmax", "2"]), ("--mean 0.5 0.5", ["--mean [0.5, 0.5]"])),
        *(("--torchcompile inducktor", ["inducktor", "inductor"]), ("--sched cosinus", ["cosinus"])),
        *(("--initial-checkpoint no.pth", ["no.pth"]), ("--jsd", ["--aug-splits"])),
        ("--model-kwargs img_size=16", ["img_size", "--model-kwargs"]),
        ("--model-kwargs window_size", ["window_size", "key=value"]),
        *(("-c no.yaml", ["no.yaml", "does not exist"]), ("--train-split tarin", ["tarin"])),
    ],
)
def test_mistakes_name_the_value_and_the_remedy(train: Train, flags: str, expected: list[str]) -> None:
    result = train(*SHORT, *flags.split(), status=2)
    assert "Traceback" not in result.stderr
    for word in expected:
        assert word in result.stderr


def test_flags_without_a_meaning_say_what_happens_instead(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    result = train(*SHORT, "--epochs", "1", "--apex-amp", "--tta", "3", "--local_rank", "0", "--no-prefetcher")
    for dest in ("apex_amp", "tta", "no_prefetcher"):
        assert NO_LONGER[dest] in result.stderr
    assert "bfloat16 on cpu" in result.stderr  # --apex-amp still means mixed precision


@pytest.mark.parametrize(
    "flags",
    [
        ["--grad-checkpointing", "--channels-last", "--layer-decay", "0.8", "--clip-mode", "agc", "--clip-grad", "1"],
        ["--sched", "step", "--decay-epochs", "1", "--sched-on-updates", "--model-ema", "--model-ema-force-cpu"],
        ["--aug-splits", "3", "--jsd", "--aa", "augmix-m5-w4", "--resplit", "--mixup", "0", "--cutmix", "0"],
        ["--mixup", "0", "--cutmix", "0", "--smoothing", "0", "--repeated-aug", "--drop", "0.1", "--gp", "avgmax"],
        ["--epoch-repeats", "2", "--mixup-off-epoch", "1", "--mixup-mode", "elem", "--lr-noise", "0.3", "0.9"],
        ["--torchscript", "--save-images", "--log-interval", "1", "--start-epoch", "1"],
    ],
    ids=lambda flags: flags[0].strip("-"),
)
def test_options_train(train: Train, tmp_path: Path, flags: list[str]) -> None:
    train(*SHORT, *flags)
    rows = summary(tmp_path / "runs/a")
    assert rows[-1]["epoch"] == "1"
    assert all(float(row["train_loss"]) > 0 for row in rows)


def test_a_model_of_timms_with_batch_norms_is_compiled(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SMALL_MODEL", ["--model", "test_resnet", "--img-size", "32"])
    norms = ["--bn-momentum", "0.2", "--bn-eps", "1e-4", "--split-bn", "--aug-splits", "2", "--mixup", "0"]
    train(*SHORT, *norms, "--cutmix", "0", "--epochs", "1", "--torchcompile", "eager", "--drop-path", "0")
    names = read_state(tmp_path / "runs/a/last.pth.tar")["state_dict"]
    assert any("aux_bn" in name for name in names)


def test_a_run_without_a_name_goes_on_at_a_changed_rate(train: Train, tmp_path: Path) -> None:
    nameless = [*SHORT, "--experiment", "", "--sched", "step", "--decay-epochs", "90"]
    train(*nameless)
    (folder,) = (tmp_path / "runs").iterdir()
    result = train(*nameless, "--epochs", "3", "--lr", "1e-4", "--auto-resume")
    assert [f.name for f in (tmp_path / "runs").iterdir()] == [folder.name]
    assert any("--lr" in line and "0.0005" in line and "0.0001" in line for line in result.stderr.splitlines())
    assert [float(row["lr"]) for row in summary(folder)][1:] == pytest.approx([5e-4, 1e-4])


def test_bad_pictures_stop_the_run_or_are_listed(tmp_path: Path, pictures: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "train/red/3.png").write_bytes(b"")
    (data / "val/blue/1.png").write_text("not an image")
    stopped = run_here(data, *SHORT, cwd=tmp_path, status=2)
    assert "red/3.png" in stopped.stderr
    run_here(data, *SHORT, "--skip-bad-images", "--experiment", "b", cwd=tmp_path)
    listed = (tmp_path / "runs/b/bad_images.csv").read_text()
    assert "red/3.png" in listed and "blue/1.png" in listed
    assert summary(tmp_path / "runs/b")[-1]["bad_images"] == "2"


def test_train_and_validate_give_the_same_number(
    train: Train, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(*SHORT, "--crop-pct", "0.8")
    best = max(float(row["eval_top1"]) for row in summary(tmp_path / "runs/a"))
    assert validate([str(pictures), "--checkpoint", "runs/a/model_best.pth.tar", "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(("words", "accelerated"), [([], True), (["--model-kwargs", "accelerate=False"], False)])
def test_models_are_accelerated_unless_told_otherwise(words: list[str], accelerated: bool) -> None:
    args = train_parser().parse_args(["DIR", "--model", "DaViT_nano", *words])
    assert (why_plain(build_model(args, 3)) == {}) is accelerated


@pytest.mark.parametrize(
    ("flags", "epochs", "warned"),
    [("", 13, True), ("--cooldown-epochs 0", 3, True), ("--warmup-epochs 2", 13, False), ("--sched none", 3, False)],
)
def test_a_schedule_longer_than_its_epochs_and_a_warm_up_that_fills_it(
    flags: str, epochs: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    args = train_parser().parse_args(["DIR", "--epochs", "3", *flags.split()])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with caplog.at_level("INFO", "davit"):
        assert build_schedule(args, optimizer, steps_per_epoch=4)[1] == epochs
    assert any(str(epochs) in record.getMessage() for record in caplog.records) == (epochs == 13)
    assert any(record.levelname == "WARNING" for record in caplog.records) == warned
