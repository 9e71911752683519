"""Write embeddings in both formats and read them back, by our reader and by the lines of the manual."""

import hashlib
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from davit.data import DataError
from davit.embed import Embeddings, read_embeddings, weights_sha256, write_embeddings

NAMES = (
    "a/b.png",
    "日本.png",
    os.fsdecode(b"caf\xe9.png"),
    "new\nline.png",
    "back\\x41slash.png",
    "a/b.png",
    "x" * 300,
)


def some(names: tuple[str, ...] = NAMES, width: int = 3) -> Embeddings:
    values = np.arange(len(names) * width, dtype=np.float32).reshape(len(names), width)
    return Embeddings(names, values, {"model": "DaViT_nano", "preprocessing": {"mean": [0.5]}, "checkpoint": "é"})


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ()], ids=["many", "one", "none"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, names: tuple[str, ...]) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    written = some(names)
    write_embeddings(tmp_path / f"e{suffix}", written)
    read = read_embeddings(tmp_path / f"e{suffix}")
    assert (read.names, dict(read.metadata)) == (names, dict(written.metadata))
    assert read.features_NC.dtype == np.float32 and np.array_equal(read.features_NC, written.features_NC)
    assert [file.name for file in tmp_path.iterdir()] == [f"e{suffix}"]


def test_numpy_alone_reads_it_without_pickles(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.npz", some())
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        names, features, metadata = file["names"].tolist(), file["features"], json.loads(str(file["metadata"]))
    assert tuple(names) == NAMES and os.fsencode(names[2]) == b"caf\xe9.png"
    assert features.shape == (7, 3) and features.dtype == np.float32
    assert metadata["model"] == "DaViT_nano"


def test_pyarrow_alone_reads_it(tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    write_embeddings(tmp_path / "e.parquet", some())
    table = parquet.read_table(tmp_path / "e.parquet")
    features = np.stack(table["features"].to_pylist()).astype(np.float32)
    assert np.array_equal(features, some().features_NC)
    assert table["name"].to_pylist()[:3] == ["a/b.png", "日本.png", "caf\\xe9.png"]
    assert json.loads(table.schema.metadata[b"davit"])["model"] == "DaViT_nano"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_embeddings(tmp_path / "e.npz", some())
    before = (tmp_path / "e.npz").read_bytes()

    def fail(stream: Any, **_: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError):
        write_embeddings(tmp_path / "e.npz", some(NAMES[:2]))
    assert (tmp_path / "e.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_without_pyarrow_parquet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for use in (lambda file: write_embeddings(file, some()), read_embeddings):
        with pytest.raises(DataError, match="pip install pyarrow"):
            use(tmp_path / "e.parquet")
    write_embeddings(tmp_path / "e.npz", some())


@pytest.mark.parametrize("name", ["e.npy", "e", "e.csv"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="npz"):
        write_embeddings(tmp_path / name, some())


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("run.txt"),)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PAR1", pickle.dumps(_Trap()), None])
def test_what_holds_no_embeddings_is_refused(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / f"e{suffix}").write_bytes(content)
    with pytest.raises(DataError):
        read_embeddings(tmp_path / f"e{suffix}")
    assert not Path("run.txt").exists()


@pytest.mark.parametrize(
    "arrays",
    [
        {"features": np.zeros((2, 3), np.float32)},
        {"names": np.array(["a"]), "features": np.zeros((2, 3), np.float32), "metadata": np.array("{}")},
        {"names": np.array(["a"]), "features": np.zeros((1, 3)), "metadata": np.array("{}")},
        {"names": np.array(["a"]), "features": np.zeros((1, 3), np.float32), "metadata": np.array("[1]")},
        {"names": np.array([_Trap()]), "features": np.zeros((1, 3), np.float32), "metadata": np.array("{}")},
    ],
    ids=range(5),
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(DataError):
        read_embeddings(tmp_path / "e.npz")


def test_another_parquet_file_is_refused(tmp_path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"name": ["a"], "features": [1.0]}), tmp_path / "e.parquet")
    with pytest.raises(DataError):
        read_embeddings(tmp_path / "e.parquet")


def test_nearest_ones_by_their_cosine() -> None:
    rows = np.float32([[1, 0], [3, 3], [0, 2], [10, 0], [0, 0], [-1, 0]])
    found = Embeddings(tuple("abcdef"), rows, {}).nearest(np.float32([2, 0]), 10)
    assert [place for place, _ in found] == [0, 3, 1, 2, 4, 5]  # of the copies the first comes first
    assert [cosine for _, cosine in found] == pytest.approx([1, 1, 0.5**0.5, 0, 0, -1])
    assert len(Embeddings(tuple("abcdef"), rows, {}).nearest(rows[0], 2)) == 2


def test_the_hash_is_of_names_types_shapes_and_values() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    one = weights_sha256(network)
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert one == digest.hexdigest()
    assert weights_sha256(network.bfloat16()) != one
    network.float()[0].bias.data[0] += 1  # type: ignore[union-attr, operator]
    assert weights_sha256(network) != one
