"""Make the trials of each kind: numbers, recipes, class maps, checkpoints, images.

To add a kind: a function from a generator of random numbers and the lab's folder to an endless iterator of trials,
under `@kind(name, share)`. The lab holds data/ (two classes), good.png and its like, and model.pth.tar (a training's
checkpoint of a tiny model).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import pickle
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from davit import complexity
from davit.app.flags import app_parser
from davit.checkpoint import __main__ as checkpoint_cli
from davit.doctor import __main__ as doctor
from davit.doctor.flags import doctor_parser
from davit.engine.flags import train_parser, validate_parser
from davit.engine.train import main as train
from davit.engine.validate import main as validate
from davit.limits import NUMBERS, Limits
from davit.parsing.complexity import complexity_parser
from davit.predict.cli import main as predict
from davit.predict.flags import predict_parser
from davit.visualize import __main__ as visualize
from davit.visualize.flags import visualize_parser

from .attack import CANARY, Trial, kind

KWARGS = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
MODEL = ["--model", "DaViT_nano", "--img-size", "16", "--model-kwargs"]
MODEL += [f"{name}={value}".replace(" ", "") for name, value in KWARGS.items()]
SHORT = [*("--epochs", "2", "--warmup-epochs", "1", "--cooldown-epochs", "0", "--batch-size", "4"), "--workers=0"]
BLAME = ("damaged image", "Repair or remove the file", "could not be read")

# the values of the first attack, and then any
VALUES = ("0", "-1", "1", "1e30", "1e12", "-inf", "inf", "nan", "1e309", "0.5", "-0.5", "1000000000000", "")
MORE = (
    "1000",
    "65536",
    "x",
    "5e-324",
    "1e-300",
    "-0",
    "9" * 5000,
    "0x10",
    "1_000",
    "２",
    "1e5",
    "2147483648",
    "1,5",
    "--",
)


def build_lab(folder: Path) -> Path:
    """Make the data, the image and the checkpoint that trials start from."""
    lab = folder / "lab"
    torch.set_num_threads(1)
    os.environ.update(DAVIT_CACHE_DIR=str(folder / "cache"), CUDA_VISIBLE_DEVICES="", MPLBACKEND="agg")
    drawn = np.random.default_rng(0)
    for split, name, index in itertools.product(("train", "val"), ("a", "b"), range(4)):
        file = lab / "data" / split / name / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(file)
    noise = Image.fromarray(drawn.integers(0, 255, (40, 48, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm"):
        noise.save(lab / f"good.{suffix}")
    from davit import create_model

    model = create_model("DaViT_nano", num_classes=2, **KWARGS)
    torch.save({"state_dict": model.state_dict(), "args": _args(), "class_names": ["a", "b"]}, lab / "model.pth.tar")
    return lab


def _args(**changed: Any) -> dict[str, Any]:
    return {"model": "DaViT_nano", "img_size": 16, "model_kwargs": KWARGS, "num_classes": 2, **changed}


def predict_good(lab: Path) -> int:
    """Predict the ordinary image, whose memory others are compared with."""
    return predict([str(lab / "good.png"), "--checkpoint", str(lab / "model.pth.tar"), "--workers=0"])


# ---- numbers ----


def numeric(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """List the flags of a parser that take numbers."""
    return [action for action in parser._actions if isinstance(action.type, Limits)]


def _said(action: argparse.Action, values: Sequence[str]) -> list[str]:
    flag = action.option_strings[-1]
    limits = action.type
    assert isinstance(limits, Limits)
    if limits.nargs is None:
        return [f"{flag}={values[0]}"]
    count = limits.nargs if isinstance(limits.nargs, int) else len(values)
    return [flag, *itertools.islice(itertools.cycle(values), count)]


# what makes a run longer, not wrong: tried without training through it
_LONG = {"epochs", "warmup_epochs", "cooldown_epochs", "epoch_repeats", "lr_cycle_limit", "lr_cycle_mul", "recount"}


def commands(lab: Path) -> dict[str, tuple[argparse.ArgumentParser, Callable[[list[str]], int | None]]]:
    """Every command with numeric flags: its parser, and what runs it with more words."""
    data, picture, model = str(lab / "data"), str(lab / "good.png"), str(lab / "model.pth.tar")
    checkpoint = ["--checkpoint", model]

    def run_train(words: list[str]) -> int:
        first = words[0].lstrip("-").partition("=")[0].replace("-", "_")
        where = ["--dry-run"] if first in _LONG else ["--output", "runs", "--experiment", "x"]
        return train([data, *MODEL, *SHORT, *where, *words])

    def run_visualize(words: list[str]) -> int:
        return visualize.main([picture, *checkpoint, "--out", "seen.png", *words])

    def run_doctor(words: list[str]) -> int:
        return doctor.main([data, *words])

    return {
        "train": (train_parser(), run_train),
        "validate": (validate_parser(), lambda words: validate([data, *checkpoint, "--workers=0", *words])),
        "predict": (predict_parser(), lambda words: predict([picture, *checkpoint, "--workers=0", *words])),
        "visualize": (visualize_parser(), run_visualize),
        "complexity": (complexity_parser(), lambda words: complexity.main(["--model", "DaViT_nano", *words])),
        "doctor": (doctor_parser(), run_doctor),
        **_openmmlab(),
        "app": (app_parser(), lambda words: vars(app_parser().parse_args(words)) and 0),
    }


def _openmmlab() -> dict[str, tuple[argparse.ArgumentParser, Callable[[list[str]], int | None]]]:
    """The tools of mmdet/ and mmseg/, where they are installed: with a config that is not there."""
    try:
        from davit.openmmlab import cli, demo, flops
    except ImportError:
        return {}
    tools = {"mm train": (cli.train_main, 1), "mm test": (cli.test_main, 2)}
    tools |= {"mm get_flops": (flops.main, 1), "mm image_demo": (demo.main, 3)}
    found = {}
    for name, (main, files) in tools.items():
        with mock.patch.object(argparse.ArgumentParser, "parse_args", autospec=True, side_effect=SystemExit) as parse:
            with contextlib.suppress(SystemExit):
                main(["x"])
            parser = parse.call_args.args[0]
        words = ["absent.py"] * files
        found[name] = parser, lambda more, main=main, words=words: main([*words, *more])
    return found


@kind("numbers", 0.34)
def numbers(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """Every numeric flag with every value of the first attack in random order, then any values and pairs of flags."""
    found = commands(lab)

    def trial(name: str, words: list[str]) -> Trial:
        statuses = (0, 1, 2) if name == "doctor" else (0, 2, 3) if name == "train" else (0, 2)
        work = found[name][1]
        return Trial(f"{name} {' '.join(words)[:200]}", lambda: work(words), statuses, hides=BLAME)

    grid = [
        (name, action, value) for name, (parser, _) in found.items() for action in numeric(parser) for value in VALUES
    ]
    rng.shuffle(grid)
    grid.sort(key=lambda one: one[0] != "train")  # where most can go wrong
    early, late = grid[: len(grid) // 2], grid[len(grid) // 2 :]
    rng.shuffle(late)
    for name, action, value in itertools.chain(early, late):
        yield trial(name, _said(action, [value, value]))
    while True:
        name = rng.choice(["train", "train", "validate", "predict", "complexity"])
        words = []
        for action in rng.sample(numeric(found[name][0]), rng.randint(1, min(3, len(numeric(found[name][0]))))):
            words += _said(action, [_any_number(rng, action.dest) for _ in range(rng.randint(1, 4))])
        yield trial(name, words)


def _any_number(rng: random.Random, name: str) -> str:
    limits = NUMBERS.get(name, NUMBERS["seed"])
    near = (limits.least, limits.most, limits.least - 1, limits.most + 1, (limits.least + limits.most) / 2)
    ways = (
        lambda: rng.choice(VALUES + MORE),
        lambda: repr(rng.choice(near)),
        lambda: str(int(rng.choice(near))),
        lambda: repr(rng.choice((-1, 1)) * 10 ** rng.uniform(-12, 12)),
        lambda: str(rng.randint(-2, 64)),
    )
    return rng.choice(ways)()


# ---- recipes ----

_NO_NETWORK = {
    "pretrained",
    "dataset_download",
    "dataset",
    "torchcompile",
    "log_wandb",
    "help",
    "output",
    "config",
    "device",
}


def _any_value(rng: random.Random, depth: int = 0) -> str:
    """Write any value as YAML."""
    plain = (
        *(
            ".inf",
            "-.inf",
            ".nan",
            "null",
            "~",
            "[]",
            "{}",
            "true",
            "off",
            "''",
            "abc",
            "0",
            "1",
            "-1",
            "0.5",
            "1e5",
            "1e400",
        ),
        *(
            "2026-99-99",
            "2026-11-26",
            "0x7fffffffffffffff",
            "9" * 400,
            "9" * 5000,
            "!!binary abc",
            "!!set {a, b}",
            "1:30:00",
        ),
        *(
            "[[[]]]",
            "[null, null]",
            "[.inf, .nan]",
            "[1, a]",
            "{a: .inf}",
            "{1: 2}",
            "{[1]: 2}",
            "&a [*a]",
            "*b",
            '"\\0"',
        ),
        *(
            '"\\e[2J"',
            "'" + "x" * 5000 + "'",
            "!!python/object/apply:os.system [touch canary]",
            "!!str",
            "- a",
            "@",
            "%",
            "`",
        ),
        *(
            "[" * 3000 + "]" * 3000,
            "{a: " * 3000 + "}" * 3000,
            "[" * 40 + "]" * 40,
            "[0.1, 0.9, 0.5]",
            "[1, 2, 3, 4, 5]",
        ),
    )
    if depth < 3 and rng.random() < 0.2:
        return "[" + ", ".join(_any_value(rng, depth + 1) for _ in range(rng.randint(0, 4))) + "]"
    return rng.choice(plain)


def _bomb(levels: int, merge: bool) -> str:
    if merge:
        lines = ["b0: &b0 {k0: 1, k1: 1}"]
        lines += [f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    else:
        lines = ["b0: &b0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"mean: *b{levels - 1}"])


@kind("recipes", 0.14)
def recipes(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """A recipe with values of any kind for one to three flags, nests, bombs, damage."""
    keys = sorted({action.dest for action in train_parser()._actions} - _NO_NETWORK)
    kwargs = [
        *KWARGS,
        "mlp_ratio",
        "drop_path_rate",
        "patch_size",
        "in_chans",
        "num_classes",
        "qkv_bias",
        "ffn",
        "nonsense",
    ]
    while True:
        lines = []
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.3:
                lines.append(f"model-kwargs: {{{rng.choice(kwargs)}: {_any_value(rng)}}}")
            else:
                lines.append(f"{rng.choice(keys).replace('_', '-')}: {_any_value(rng)}")
        text = "\n".join(lines)
        if rng.random() < 0.1:
            text = _bomb(rng.randint(3, 12), rng.random() < 0.5)
        data = text.encode()
        if rng.random() < 0.1:
            data = _damaged(rng, data)

        def work(data: bytes = data) -> int:
            Path("r.yaml").write_bytes(data)
            where = ["--output", "runs", "--experiment", "x", "--dry-run"]
            return train([str(lab / "data"), "-c", "r.yaml", *MODEL[:4], *SHORT, *where])

        yield Trial(repr(text[:200]), work, (0, 2, 3), hides=BLAME)


# ---- class maps ----


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


@kind("class maps", 0.1)
def class_maps(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """Texts of any encoding and line ends, dictionaries with indices of any kind, files that are none."""
    texts = [
        "a\nb\n",
        "a\r\nb\r\n",
        "\n\na\n\nb\n\n",
        "a\nb\na\n",
        "b\n",
        "c\nd\n",
        "a b\n",
        "",
        "\n",
        "a\0\nb\n",
        "a\rb\r",
    ]
    texts += [
        "x" * 100_000 + "\nb\n",
        "\n" * 100_000 + "a\nb",
        "\x1b[2J\na\nb\n",
        "a\nb\n" + "\n".join(map(str, range(5000))),
    ]
    encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32")
    indices = (
        0,
        1,
        -1,
        10**12,
        2**70,
        0.5,
        math.nan,
        math.inf,
        "1",
        None,
        True,
        [0],
        999_999,
        1_000_000,
        10**4000,
        b"0",
    )
    names = ("a", "b", "c", 1, None, "", b"a", "\x1b[2J", "x" * 10_000, ("a",))
    while True:
        suffix = rng.choice((".txt", ".txt", ".pkl", ".pkl", ".TXT", ".csv", ""))
        if suffix in (".txt", ".TXT"):
            data = rng.choice(texts).encode(rng.choice(encodings))
        else:
            held: Any = {rng.choice(names): rng.choice(indices) for _ in range(rng.randint(0, 3))}
            held = rng.choice(
                [held, {**held, "a": 0, "b": 1}, {"a": rng.choice(indices), "b": 0}, [held], _Runs(), {"a": _Runs()}]
            )
            data = pickle.dumps(held, protocol=rng.randint(0, 5))
        if rng.random() < 0.25:
            data = _damaged(rng, data)
        special = rng.choice(("fifo", "folder", "socket", "device", "link")) if rng.random() < 0.08 else ""

        def work(data: bytes = data, name: str = f"map{suffix}", special: str = special) -> int:
            _place(Path(name), data, special)
            where = ["--dry-run", "--class-map", str(Path(name).absolute())]
            return train([str(lab / "data"), *MODEL, *SHORT, *where])

        yield Trial(f"{special or data[:120]!r} as map{suffix}", work, hides=BLAME)


def _place(path: Path, data: bytes, special: str) -> None:
    """Write a file, or put something in its place that is none."""
    if special == "fifo":
        os.mkfifo(path)
    elif special == "folder":
        path.mkdir()
    elif special == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif special == "device":
        path.symlink_to("/dev/zero")
    elif special == "link":
        path.symlink_to(path.name)
    else:
        path.write_bytes(data)


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat, or overwrite some bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(changed) + 1)
        way = rng.randrange(6)
        if way == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            del changed[at:]
        elif way == 2:
            changed[at:at] = rng.randbytes(rng.randint(1, 64))
        elif way == 3:
            changed[at : at + rng.randint(1, 256)] = b""
        elif way == 4:
            changed[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        else:
            changed += changed[at : at + 1000]
    return bytes(changed)


# ---- checkpoints ----


def _odd_args(rng: random.Random) -> dict[str, Any]:
    """Notes of a training of which one is odd."""
    big = rng.choice(
        (10**6, 10**12, 2**70, -1, 0, 3000, 5000, 20_000, math.inf, math.nan, "x", None, [1], {}, 1e308, True)
    )
    kwargs = rng.choice(
        (*KWARGS, "mlp_ratio", "patch_size", "in_chans", "num_classes", "drop_path_rate", "nonsense", "depth")
    )
    return rng.choice(
        (
            {"input_size": [3, big, big]},
            {"input_size": [big, 16, 16]},
            {"input_size": rng.choice((big, [3, 16], [3, 16, 16, 16], [], "abc"))},
            {"img_size": big},
            {"crop_pct": rng.choice((big, 1e-9, 1e-300, 0.001))},
            {"num_classes": big},
            {"mean": rng.choice((big, [big] * 3, [0.5, 0.5], [[0.5]]))},
            {"std": rng.choice((big, [big] * 3, [0, 0, 0], [1e-320] * 3))},
            {
                "model": rng.choice(
                    (big, "DaViT_giant", "vit_giant_patch14_dinov2", "no", "", "../x", "hf-hub:a/b", "\x1b[2J")
                )
            },
            {"model_kwargs": {**KWARGS, kwargs: rng.choice((big, [big, big], [8, big]))}},
            {
                "model_kwargs": rng.choice(
                    (big, [1], "x", {1: 2}, {"embed_dims": [10**6, 10**6]}, {"depths": [10**5, 1]})
                )
            },
            {"bit_depth": big},
            {"percentiles": rng.choice((big, [1], [99, 1], ["a", "b"]))},
            {"in_chans": big},
            {"gp": rng.choice((big, "max", "none"))},
            {"interpolation": rng.choice((big, "cubic", ""))},
            {"crop_mode": rng.choice((big, "round", "squash"))},
        )
    )


def _saved(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def _lying_safetensors(rng: random.Random, weights: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    data = save(weights)
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    way = rng.randrange(5)
    if way == 0:
        entry["shape"] = rng.choice(([10**6, 10**6], [2**62], [-1, 4], [0], []))
    elif way == 1:
        entry["data_offsets"] = rng.choice(([0, 2**63], [-8, 8], [8, 0], [0, 0]))
    elif way == 2:
        entry["dtype"] = rng.choice(("F64", "BOOL", "F8_E4M3", "X", ""))
    elif way == 3:
        return struct.pack("<Q", rng.choice((0, 2**63, 2**40, 1, size + 10**6))) + data[8:]
    else:
        header = {"__metadata__": {"a": "b" * 10_000}} if rng.random() < 0.5 else [header]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _other_zip(rng: random.Random, data: bytes) -> bytes:
    """Change the archive around the pickle: its members, their names, and what the pickle does."""
    found = zipfile.ZipFile(io.BytesIO(data))
    stream = io.BytesIO()
    way = rng.randrange(4)
    with zipfile.ZipFile(stream, "w") as made:
        for member in found.namelist():
            held = found.read(member)
            if member.endswith("data.pkl") and way == 0:
                held = pickle.dumps({"state_dict": _Runs()}, protocol=2)
            elif member.endswith("data.pkl") and way == 1:
                held = _damaged(rng, held)
            elif way == 2 and rng.random() < 0.3:
                member = "../" * 5 + member
            elif way == 3 and rng.random() < 0.2:
                continue
            made.writestr(member, held)
    return stream.getvalue()


@kind("checkpoints", 0.115)
def checkpoints(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """Damage of bytes, headers that lie, notes with odd values, pickles that would run code."""
    good = (lab / "model.pth.tar").read_bytes()
    state = torch.load(io.BytesIO(good), weights_only=True)
    while True:
        way = rng.choice(("damage", "notes", "notes", "notes", "safetensors", "zip", "pickle", "tensors", "special"))
        notes, suffix, special = {}, ".pth.tar", ""
        if way == "damage":
            data = _damaged(rng, good)
        elif way == "notes":
            notes = _odd_args(rng)
            data = _saved({**state, "args": _args(**notes)})
        elif way == "safetensors":
            suffix, data = ".safetensors", _lying_safetensors(rng, state["state_dict"])
        elif way == "zip":
            data = _other_zip(rng, good)
        elif way == "pickle":
            data = pickle.dumps(
                rng.choice((_Runs(), {"state_dict": _Runs()}, [1], "x", {})), protocol=rng.randint(0, 5)
            )
        elif way == "tensors":
            weights = dict(state["state_dict"])
            name = rng.choice(list(weights))
            wide = torch.zeros(()).expand(rng.choice(((10**5, 10**5), (10**9,), (0,), ())))
            weights[name] = rng.choice((wide, weights[name] * math.nan, weights[name].bool(), weights[name][None]))
            data = _saved(
                {**state, "state_dict": weights, "class_names": rng.choice((["\x1b[2J", "b"], 3, ["a"], None))}
            )
        else:
            data, special = b"", rng.choice(("fifo", "folder", "socket", "device", "link"))
        command = rng.choice(("predict", "predict", "validate", "inspect", "resume", "start"))

        def work(data: bytes = data, name: str = f"c{suffix}", command: str = command, special: str = special) -> int:
            _place(Path(name), data, special)
            if command == "predict":
                return predict([str(lab / "good.png"), "--checkpoint", name, "--workers=0"])
            if command == "validate":
                return validate([str(lab / "data"), "--checkpoint", name, "--workers=0"])
            if command == "inspect":
                return checkpoint_cli.main(["inspect", name])
            how = ["--resume", name] if command == "resume" else ["--initial-checkpoint", name]
            return train([str(lab / "data"), *MODEL, *SHORT, "--output", "runs", "--experiment", "x", *how])

        yield Trial(f"{command} {special or way} {notes or ''}", work, (0, 1, 2, 3), hides=("\x1b[2J",), seconds=30)


# ---- images ----


def _png(width: int, height: int, rows: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _strip(rng: random.Random) -> bytes:
    long = rng.choice((500, 5000, 20_000, 100_000, 1_000_000))
    size = (long, 1) if rng.random() < 0.5 else (1, long)
    stream = io.BytesIO()
    Image.new(rng.choice(("RGB", "L", "1", "P", "RGBA", "I;16")), size).save(stream, "PNG")
    return stream.getvalue()


@kind("pictures", 0.09)
def pictures(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """A damaged image, header or strip between whole ones through predict: the whole ones are always answered."""
    suffixes = ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm")
    while True:
        suffix, special = rng.choice(suffixes), ""
        good = (lab / f"good.{suffix}").read_bytes()
        way = rng.choice(("damage", "damage", "cut", "header", "strip", "other", "special"))
        if way == "damage":
            data = _damaged(rng, good)
        elif way == "cut":
            data = good[: rng.randrange(len(good))]
        elif way == "header":
            sides = (1, 65_535, 10**6, 2**31 - 1, 2**32 - 1, 0, 30_000)
            suffix, data = (
                "png",
                _png(
                    rng.choice(sides),
                    rng.choice(sides),
                    rng.randbytes(rng.choice((0, 1000))),
                    rng.choice((1, 8, 16, 3)),
                ),
            )
        elif way == "strip":
            suffix, data = "png", _strip(rng)
        elif way == "other":
            data = rng.choice(
                (b"", b"\0" * 10_000, rng.randbytes(5000), b"<svg></svg>", b"%!PS\nshowpage\n", good[:8])
            )
        else:
            data, special = b"", rng.choice(("fifo", "folder", "socket", "device", "link"))

        def work(data: bytes = data, name: str = f"bad.{suffix}", special: str = special) -> int:
            _place(Path(name), data, special)
            pictures = [str(lab / "good.png"), name, str(lab / "good.jpg")]
            return predict([*pictures, "--checkpoint", str(lab / "model.pth.tar"), "--workers=0", "--format", "csv"])

        statuses = (2,) if special in ("folder", "link") else (0, 1)
        prints = () if special in ("folder", "link") else ("good.png", "good.jpg")
        shown = f"{special or way} {suffix} {data[:40]!r} of {len(data)} bytes"
        yield Trial(shown, work, (0, 1, 2) if special else statuses, prints=prints, seconds=30, megabytes=300)
