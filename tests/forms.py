"""A folder of classes in the other forms in which people have data sets."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

SPLITS = ("train", "val")


def pictures_of(root: Path, split: str) -> list[Path]:
    """The files of a split, in no useful order."""
    return sorted((root / split).glob("*/*"), key=lambda file: (file.stem[::-1], file.parent.name))


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of such members, in their order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def as_csv(root: Path, out: Path) -> Path:
    """Images in one folder, and a table for each split."""
    (out / "pictures").mkdir(parents=True)
    for split in SPLITS:
        lines = ["path,label"]
        for file in pictures_of(root, split):
            name = f"{split}-{file.parent.name}-{file.name}"
            (out / "pictures" / name).write_bytes(file.read_bytes())
            lines.append(f"pictures/{name},{file.parent.name}")
        (out / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return out


def as_shards(root: Path, out: Path, shards: int = 9) -> Path:
    """WebDataset's shards: an image and its class by name."""
    for split in SPLITS:
        files = pictures_of(root, split)
        for number in range(shards):
            members = []
            for file in files[number::shards]:
                key = f"{file.parent.name}-{file.stem}"
                members += [(f"{key}.cls", file.parent.name.encode()), (f"{key}{file.suffix}", file.read_bytes())]
            write_tar(out / f"{split}-{number:06d}.tar", members)
    return out


def as_tar(root: Path, out: Path) -> Path:
    """One tar of the whole folder."""
    out.mkdir(parents=True)
    with tarfile.open(out / "all.tar", "w") as tar:
        tar.add(root, arcname=".")
    return out / "all.tar"


def as_parquet(root: Path, out: Path) -> Path:
    """Hugging Face's layout."""
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    (out / "data").mkdir(parents=True)
    for split in SPLITS:
        parquet.write_table(table_of(pyarrow, root, split), out / "data" / f"{split}-00000-of-00001.parquet")
    return out


def table_of(pyarrow: Any, root: Path, split: str) -> Any:
    """The images of a split as `datasets` puts them into a table."""
    names = sorted({file.parent.name for file in pictures_of(root, "train")})
    rows = [
        {
            "image": {"bytes": file.read_bytes(), "path": f"{file.parent.name}-{file.name}"},
            "label": names.index(file.parent.name),
        }
        for file in pictures_of(root, split)
    ]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", picture), ("label", pyarrow.int64())], metadata=about)
    return pyarrow.Table.from_pylist(rows, schema=schema)


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "csv": as_csv,
    "shards": as_shards,
    "tar": as_tar,
    "parquet": as_parquet,
}
