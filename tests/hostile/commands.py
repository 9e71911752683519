"""Make the trials of commands beside training: flags of any value, files that are not what they say, small inputs."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from davit import complexity
from davit.checkpoint import __main__ as checkpoint_cli
from davit.checkpoint.names import LAYOUTS
from davit.data import __main__ as data_cli
from davit.data import digits, scenes
from davit.doctor import __main__ as doctor
from davit.visualize import __main__ as visualize

from .attack import REPOSITORY, Trial, kind, once
from .trials import _damaged, _png, _saved, _strip

_TEXTS = (
    "",
    "x",
    "-1",
    "0",
    "1",
    "a",
    "b",
    "\x1b[2J",
    "x" * 5000,
    "../..",
    "/",
    "/dev/null",
    "/dev/full",
    "/proc/1/x",
    "日本",
)
_TEXTS += (
    "nan",
    "1e400",
    "9" * 400,
    "a\nb",
    "%s%n",
    "$(touch canary)",
    "; touch canary",
    "'",
    '"',
    "--",
    "{}",
    "[]",
    ".",
)
Work = Callable[[], int | None]
Draw = Callable[[random.Random, Path], tuple[list[str], Work]]


def _any_file(rng: random.Random, lab: Path, good: Path) -> str:
    """Name a file: the good one, a damaged copy in this folder, or none."""
    way = rng.random()
    if way < 0.4:
        return str(good)
    name = rng.choice(("f.png", "f.pth", "f", "f.txt", "ä b.png", "f.safetensors"))
    if way < 0.6:
        Path(name).write_bytes(_damaged(rng, good.read_bytes()))
        return name
    if way < 0.7:
        Path(name).write_bytes(
            rng.choice((b"", b"\0" * 1000, rng.randbytes(3000), b"a,b\n1,2\n", _strip(rng), _png(1, 1)))
        )
        return name
    return rng.choice((*_TEXTS, str(lab), str(lab / "data"), str(lab / "absent.png")))


def _some(rng: random.Random, flags: dict[str, Callable[[], list[str]]]) -> list[str]:
    words = []
    for flag in rng.sample(sorted(flags), rng.randint(0, min(3, len(flags)))):
        words += [flag, *flags[flag]()]
    return words


def _visualize(rng: random.Random, lab: Path) -> tuple[list[str], Work]:
    pictures = [_any_file(rng, lab, lab / "good.png") for _ in range(rng.randint(0, 2))]
    words = [*pictures, "--checkpoint", _any_file(rng, lab, lab / "model.pth.tar")]
    words += _some(
        rng,
        {
            "--out": lambda: [
                rng.choice((*_TEXTS, "seen.png", "seen.gif", "seen", "new/seen.png", str(lab / "good.png" / "x")))
            ],
            "--class": lambda: [rng.choice(_TEXTS)],
            "--class-map": lambda: [_any_file(rng, lab, lab / "good.png")],
        },
    )
    if rng.random() < 0.3:
        for run in ("one", "two"):
            Path(run).mkdir()
            rows = "epoch,train_loss,eval_top1,seconds\n0,1.5,50,1\n1,nan,x,1\n"
            text = rng.choice(
                (
                    rows,
                    "",
                    "epoch\n",
                    "\0\0",
                    rows.replace("0,1.5", "0"),
                    rows * 50,
                    "a;b\n1;2\n",
                    "epoch,epoch\n1,1\n",
                )
            )
            (Path(run) / "summary.csv").write_text(text)
        words = ["--runs", "one", "two", *_some(rng, {"--out": lambda: [rng.choice((*_TEXTS, "c.png"))]})]
    return ["visualize", *words], lambda: visualize.main(words)


def _doctor(rng: random.Random, lab: Path) -> tuple[list[str], Work]:
    folder = Path("data")
    shutil.copytree(lab / "data", folder)
    every = sorted(folder.rglob("*.png"))
    for file in rng.sample(every, rng.randint(0, 3)):
        way = rng.randrange(6) if file.exists() else 5
        if way == 0:
            file.write_bytes(_damaged(rng, file.read_bytes()))
        elif way == 1:
            file.write_bytes(_strip(rng))
        elif way == 2:
            file.unlink()
            file.symlink_to(rng.choice((file.name, "..", "/dev/zero", "/absent")))
        elif way == 3:
            file.rename(file.with_name(rng.choice(("\x1b[2J.png", "a\nb.png", "x.JPG", ".hidden.png", "y.txt"))))
        elif way == 4:
            shutil.rmtree(file.parent, ignore_errors=True)
        else:
            (
                folder / rng.choice(("annotations.json", "data.yaml", "train.csv", "classes.txt", "labels.txt"))
            ).write_text(
                rng.choice(
                    ("", "{", "[]", "names: [a, b]\ntrain: /\nval: ..", "a,b\n", '{"images": 3}', "&a [*a]", "\0")
                )
            )
        every = sorted(file for file in folder.rglob("*.png") if file.is_file())
        if not every:
            break
    words = [rng.choice((str(folder), str(folder), str(folder), str(folder / "train"), *_TEXTS[:8]))]
    words += _some(rng, {"--json": list, "--all": list, "--output": lambda: [rng.choice(_TEXTS)]})
    return ["doctor", *words], lambda: doctor.main(words)


def _complexity(rng: random.Random, _: Path) -> tuple[list[str], Work]:
    models = (
        "DaViT_nano",
        "DaViT_nano",
        "DaViT_tiny",
        "davit_tiny",
        "resnet10t",
        "hf-hub:a/b",
        "local-dir:/",
        *_TEXTS,
    )
    sides = ("32", "33", "1", "0", "-3", "64", "1000000", "x", "nan", "3", "224")
    words = ["--model", rng.choice(models)]
    words += _some(
        rng,
        {
            "--input": lambda: [rng.choice(("3", "3", "1", "0", "4096")), rng.choice(sides), rng.choice(sides)],
            "--num-classes": lambda: [rng.choice(("1", "0", "10", "1000000", "x"))],
            "--format": lambda: [rng.choice(("json", "table", "xml"))],
        },
    )
    return ["complexity", *words], lambda: complexity.main(words)


def _convert(rng: random.Random, lab: Path) -> tuple[list[str], Work]:
    source = _any_file(rng, lab, lab / "model.pth.tar")
    if rng.random() < 0.3:
        odd: Any = rng.choice((None, [], {}, {"state_dict": {}}, {"state_dict": {"a": 1}}, 3, {"x": {"y": "z"}}))
        Path("odd.pth").write_bytes(_saved(odd))
        source = "odd.pth"
    target = rng.choice(("out.pth", "out.safetensors", "out.bin", "new/out.pt", "out.xyz", "out", source, *_TEXTS))
    words = ["convert", source, target, "--to", rng.choice((*LAYOUTS, *LAYOUTS, "x", ""))]
    words += _some(rng, {"--force": list, "--ema": lambda: [rng.choice(("auto", "never", "require", "x"))]})
    if rng.random() < 0.2:
        words = ["inspect", source]
    return ["checkpoint", *words], lambda: checkpoint_cli.main(words)


def _data(rng: random.Random, lab: Path) -> tuple[list[str], Work]:
    Path("file").write_text("x")
    Path("digits.tar").write_text("x")
    folder = rng.choice(("new", "new", "file", "file/below", str(lab / "good.png"), *_TEXTS))
    words = [rng.choice(("digits", "scenes", "scenes", "x")), folder]
    words += _some(rng, {"--as": lambda: [rng.choice((*digits.FORMS, *scenes.FORMS, "x", ""))]})

    def work() -> int:
        with mock.patch.object(scenes, "COUNTS", {"train": 2, "val": 2}):
            return data_cli.main(words)

    return ["data", *words], work


# ---- detection and segmentation ----

_DETECTOR = f"""
_base_ = {str(REPOSITORY / "mmdet/configs/davit_nano_maskrcnn_digits.py")!r}
model = dict(
    backbone=dict(embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2)),
    neck=dict(in_channels=[8, 16, 16, 16], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16),
    ),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=20)),
)
train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=4)]
log_level = "WARNING"
"""
_SEGMENTOR = f"_base_ = {str(REPOSITORY / 'tests/openmmlab/tiny_segmentor.py')!r}\n"
_SEGMENTOR += "train_cfg = dict(max_iters=2, val_interval=2)\ndefault_hooks = dict(checkpoint=dict(interval=2))\n"

_OPTIONS = (
    *("train_dataloader.batch_size", "train_dataloader.num_workers", "train_cfg.max_epochs", "train_cfg.max_iters"),
    *("model.backbone.variant", "model.backbone.embed_dims", "model.backbone.window_size", "model.backbone.depths"),
    *("model.backbone.drop_path_rate", "model.neck.out_channels", "model.roi_head.bbox_head.num_classes", "model"),
    *("optim_wrapper.optimizer.lr", "optim_wrapper.optimizer.type", "optim_wrapper.optimizer", "param_scheduler"),
    *("train_dataloader.dataset.ann_file", "train_dataloader.dataset.data_prefix.img", "val_evaluator.metric"),
    *(
        "train_dataloader.dataset.pipeline",
        "test_dataloader.dataset.pipeline.1.scale",
        "default_hooks.logger.interval",
    ),
    *("randomness.seed", "work_dir", "load_from", "resume", "log_level", "nonsense", "a.b.c", "train_dataloader", ""),
    *("model.test_cfg.rpn.nms_pre", "model.decode_head.num_classes", "model.type", "default_scope", "custom_imports"),
)
_VALUES = ("0", "1", "-1", "x", "", "None", "[]", "{}", "(1,2)", "[1,2,3]", "1e400", "nan", "0.5", "True", "9" * 30)
_VALUES += ("dict(type='x')", "__import__('os').system('touch canary')", "{'a':1}", "'", "[[[", "AdamW", "DaViT_tiny")


def _openmmlab_files(lab: Path) -> tuple[Path, Path]:
    """Write data and configs for both; return their folders below the lab."""

    def write(root: Path) -> None:
        with mock.patch.object(scenes, "COUNTS", {"train": 2, "val": 2}):
            scenes.write_scenes(root / "scenes")
        (root / "detector.py").write_text(_DETECTOR)
        (root / "segmentor.py").write_text(_SEGMENTOR)
        drawn = np.random.default_rng(2)
        for split in ("train", "val"):
            for part, most in (("images", 255), ("masks", 3)):
                folder = root / "masks" / part / split
                folder.mkdir(parents=True)
                for index in range(2):
                    shape = (48, 64, 3) if part == "images" else (48, 64)
                    Image.fromarray(drawn.integers(0, most, shape, dtype=np.uint8)).save(folder / f"{index}.png")

    root = once(lab / "openmmlab", write)
    return root / "scenes", root / "masks"


def _weights(lab: Path, config: Path) -> Path:
    """Save random weights of a config's model, once a lab."""

    def write(folder: Path) -> None:
        import torch
        from mmengine.registry import MODELS, init_default_scope

        from davit.openmmlab.config import read_config

        cfg = read_config(config)
        init_default_scope(cfg.default_scope)
        cfg.model.pop("pretrained", None)
        cfg.model.backbone.init_cfg = None
        torch.manual_seed(0)
        torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, folder / "weights.pth")

    return once(lab / f"weights-{config.stem}", write) / "weights.pth"


def _import_openmmlab(_: Path) -> None:
    """Import what the tools of mmdet/ and mmseg/ import when they look up the parts of a config."""
    from davit.openmmlab import cli, demo, flops  # noqa: F401

    for library, part in itertools.product(("mmdet", "mmseg"), ("datasets", "engine", "evaluation", "models")):
        importlib.import_module(f"{library}.{part}")
        importlib.import_module(f"{library}.visualization")


def _openmmlab(rng: random.Random, lab: Path) -> tuple[list[str], Work]:
    from davit.openmmlab import cli, demo, flops

    data, masks = _openmmlab_files(lab)
    is_detector = rng.random() < 0.6
    config = lab / "openmmlab" / ("detector.py" if is_detector else "segmentor.py")
    root = str(data if is_detector else masks)
    tool = rng.choice(("train", "train", "test", "test", "flops", "demo", "demo"))
    way = rng.random()
    words: list[str] = []
    if way < 0.5:
        words += [
            "--cfg-options",
            *(f"{rng.choice(_OPTIONS)}={rng.choice(_VALUES)}" for _ in range(rng.randint(1, 2))),
        ]
    elif way < 0.6:
        words += ["--classes", *rng.sample(("0", "1", "x", "\x1b[2J", "auto", "", "ground"), rng.randint(1, 3))]
    given = str(config)
    if rng.random() < 0.15:
        Path("odd.py").write_text(
            rng.choice(
                (
                    "",
                    "x",
                    "model = 3",
                    "_base_ = 'absent.py'",
                    "_base_ = './odd.py'",
                    "\0",
                    "model = dict(",
                    "import x",
                )
            )
        )
        given = rng.choice(("odd.py", "absent.py", root, "odd.txt", "/dev/null"))
    checkpoint = None if rng.random() < 0.6 else _any_file(rng, lab, lab / "model.pth.tar")
    picture = _any_file(rng, lab, lab / "good.png")
    if rng.random() < 0.4:
        Path("strip.png").write_bytes(_strip(rng))
        picture = "strip.png"

    def work() -> int:
        weights = checkpoint or str(_weights(lab, config))
        if tool == "flops":
            return flops.main([given, *more, *words])
        if tool == "demo":
            return demo.main([picture, given, weights, "--out-dir", "drawn", *more, *words])
        base = ["--data-root", root, "--work-dir", "work"]
        if tool == "train":
            return cli.train_main([given, *base, *more, *words])
        return cli.test_main([given, weights, *base, *more, *words])

    shape = {"--shape": lambda: [rng.choice(("64", "0", "33", "x", "100000")) for _ in range(rng.randint(1, 2))]}
    score = {
        "--score-thr": lambda: [rng.choice(("0", "0.5", "nan", "2", "x"))],
        "--device": lambda: [rng.choice(_TEXTS)],
    }
    training = {
        "--resume": lambda: [_any_file(rng, lab, lab / "model.pth.tar")],
        "--load-from": lambda: [_any_file(rng, lab, lab / "model.pth.tar")],
        "--seed": lambda: [rng.choice(("0", "-1", "x", "4294967296"))],
        "--no-validate": list,
        "--auto-scale-lr": list,
        "--skip-bad-images": list,
        "--amp": list,
        "--launcher": lambda: [rng.choice(("pytorch", "slurm", "none", "mpi"))],
    }
    testing = {
        "--eval": lambda: rng.sample(("bbox", "segm", "mIoU", "x", ""), rng.randint(1, 2)),
        "--out": lambda: [rng.choice(("out.json", "out", "out.pkl", "/dev/full", "", "new/out.json"))],
        "--format-only": list,
        "--show-dir": lambda: [rng.choice(("shown", "", "/dev/null", "/proc/x"))],
        "--aug-test": list,
    }
    more = _some(rng, {"flops": shape, "demo": score, "train": training, "test": testing}[tool])
    said = [f"mm {tool}", config.stem, given[-20:], str(checkpoint)[:40], picture[-40:], *more, *words]
    return said, work


_COMMANDS: tuple[Draw, ...] = (_visualize, _doctor, _complexity, _convert, _data)


@kind("commands", 0.04)
def commands(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """Run visualize, doctor, complexity, checkpoint and data with odd words and files."""
    while True:
        draw, seed = rng.choice(_COMMANDS), rng.randrange(2**32)
        yield _trial(draw, lab, seed, (0, 1, 2), 800)


@kind("openmmlab", 0.015, _import_openmmlab)
def openmmlab(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """Run the tools of mmdet/ and mmseg/ with odd flags, options of configs, configs, checkpoints and images."""
    while True:
        yield _trial(_openmmlab, lab, rng.randrange(2**32), (0, 2, 3), 1500)


def _trial(draw: Draw, lab: Path, seed: int, statuses: tuple[int, ...], megabytes: int) -> Trial:
    """Make a trial whose words are drawn, and whose files are written, where it runs."""

    def work() -> int | None:
        words, go = draw(random.Random(seed), lab)
        sys.stdout.write(f"{json.dumps(words)[:600]}\n")
        sys.stdout.flush()
        return go()

    return Trial(
        f"{draw.__name__.strip('_')} seed {seed}", work, statuses, hides=("\x1b[2J",), seconds=90, megabytes=megabytes
    )
