"""Write the embedded samples, scikit-learn's 1,797 handwritten digits, as folders, tables or shards."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..text import install_extra, some
from .errors import DataError, require_choice

Array = NDArray[np.uint8]

_COUNTS = {"train": 1437, "val": 360}
_SHARDS = {"train": 9, "val": 2}
_SPLIT_SEED = 0
_STALE_SECONDS = 600  # a writer needs about a second; an unfinished folder this old has no writer any more


def write_digits(root: str | Path | None = None, form: str = "folder") -> Path:
    """Lay the digits out as root/{train,val}/{0..9}/NNNN.png, or in another form, once, and return the folder.

    Every image keeps its 8x8 pixels, scaled from 0..16 to 0..255, as greyscale PNG; NNNN is its index in
    scikit-learn's data. A fifth of each class is held out as val. An existing folder is counted and used.

    Args:
        form: "folder"; "csv" (pictures/NNNN.png, and a table of paths and labels for each split); "tar" (WebDataset's
            shards, nine of train and two of val); or "parquet" (data/SPLIT-00000-of-00001.parquet, as Hugging Face's
            `datasets` lays them out; it needs pyarrow).

    Raises:
        DataError: `root` (default: see `write_once`) holds something else, or a package is missing.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the test part.
    """
    require_choice("form", form, FORMS)
    write, missing = FORMS[form]
    return write_once("digits" if form == "folder" else f"digits-{form}", root, write, missing)


def write_once(
    name: str, root: str | Path | None, write: Callable[[Path], None], missing: Callable[[Path], str]
) -> Path:
    """Lay a made data set out in a folder, unless it is there, and return the folder.

    It is written beside `root` and renamed: a killed writer, or several at once, leave it whole or absent. By default
    `root` is $DAVIT_DATA_DIR/NAME, else data/NAME under the current folder. `missing` says what a folder lacks of what
    `write` writes into it, "" for nothing. Raises `DataError` if `root` holds something else.
    """
    root = Path(root) if root is not None else Path(os.environ.get("DAVIT_DATA_DIR") or "data") / name
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        root.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        beside = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
        try:
            write(beside)
            try:
                beside.rename(root)
            except OSError:  # another process was first
                if not root.exists():
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    if lacking := missing(root):
        raise DataError(
            f"{root} is not the whole data set of {name}: {lacking}. Remove the folder to have it written again, "
            "or set DAVIT_DATA_DIR to another place."
        )
    return root


def load_glyphs() -> dict[str, list[tuple[int, int, Array]]]:
    """Load (index, label, 8 x 8 pixels of 0 to 255) of the digits of 'train' and of 'val', a fifth of each class."""
    from sklearn.datasets import load_digits  # a second of import that only the first run pays
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    train, val = train_test_split(
        np.arange(len(pixels)), test_size=_COUNTS["val"], random_state=_SPLIT_SEED, stratify=digits.target
    )
    return {
        split: [(int(i), int(digits.target[i]), pixels[i]) for i in members]
        for split, members in (("train", train), ("val", val))
    }


def _write(folder: Path) -> None:
    for split, glyphs in load_glyphs().items():
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
        for index, label, pixels in glyphs:
            Image.fromarray(pixels).save(folder / split / str(label) / f"{index:04d}.png")


def _missing(root: Path) -> str:
    for split, count in _COUNTS.items():
        files = [file for file in root.glob(f"{split}/[0-9]/*.png") if file.stat().st_size > 0]
        if len(files) != count:
            return f"{split} holds {len(files)} of {count} images"
    return ""


def _write_csv(folder: Path) -> None:
    (folder / "pictures").mkdir(parents=True)
    for split, glyphs in load_glyphs().items():
        for index, _, pixels in glyphs:
            (folder / "pictures" / f"{index:04d}.png").write_bytes(_png(pixels))
        rows = [f"pictures/{index:04d}.png,{label}\n" for index, label, _ in glyphs]
        (folder / f"{split}.csv").write_text("path,label\n" + "".join(rows))


def _write_tar(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split, glyphs in load_glyphs().items():
        for number in range(_SHARDS[split]):
            with tarfile.open(folder / f"{split}-{number:06d}.tar", "w") as shard:
                for index, label, pixels in glyphs[number :: _SHARDS[split]]:
                    for ending, data in (("cls", str(label).encode()), ("png", _png(pixels))):
                        member = tarfile.TarInfo(f"{index:04d}.{ending}")
                        member.size = len(data)
                        shard.addfile(member, io.BytesIO(data))


def _write_parquet(folder: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"parquet needs a package that is not installed: {install_extra('parquet')}") from error
    features = {"image": {"_type": "Image"}, "label": {"names": [str(n) for n in range(10)], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", picture), ("label", pyarrow.int64())], metadata=about)
    (folder / "data").mkdir(parents=True)
    for split, glyphs in load_glyphs().items():
        rows = [
            {"image": {"bytes": _png(pixels), "path": f"{index:04d}.png"}, "label": label}
            for index, label, pixels in glyphs
        ]
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file)


def _png(pixels: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _lacks(*names: str) -> Callable[[Path], str]:
    """Make the check that these files are there and not empty."""

    def lacking(root: Path) -> str:
        gone = [name for name in names if not (root / name).is_file() or not (root / name).stat().st_size]
        return f"{some(gone)} is not there" if gone else ""

    return lacking


_TABLES = [f"{split}.csv" for split in _COUNTS]
_TARS = [f"{split}-{number:06d}.tar" for split, count in _SHARDS.items() for number in range(count)]
_PARQUETS = [f"data/{split}-00000-of-00001.parquet" for split in _COUNTS]
FORMS: dict[str, tuple[Callable[[Path], None], Callable[[Path], str]]] = {
    "folder": (_write, _missing),
    "csv": (_write_csv, _lacks(*_TABLES, *(f"pictures/{index:04d}.png" for index in range(sum(_COUNTS.values()))))),
    "tar": (_write_tar, _lacks(*_TARS)),
    "parquet": (_write_parquet, _lacks(*_PARQUETS)),
}


def _remove_stale(root: Path) -> None:
    for folder in root.parent.glob(f".{root.name}.*.partial"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
