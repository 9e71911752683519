"""Hold features with the names of their images; write them as .npz or .parquet, and read them back."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..data import DataError
from ..files import open_regular, write_atomically
from ..text import as_utf8, original
from .flags import SUFFIXES

_ENTRY = "davit"  # of a Parquet file's own metadata


@dataclass(frozen=True)
class Embeddings:
    """The features of images.

    Attributes:
        names: of the files, in order; bytes that are no UTF-8 are lone surrogates, as `open` takes them.
        features_NC: float32, a row for each name.
        metadata: which model and weights, and how images were prepared.
    """

    names: tuple[str, ...]
    features_NC: NDArray[np.float32]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features_NC.ndim != 2 or len(self.names) != len(self.features_NC):
            shape = self.features_NC.shape
            raise ValueError(
                f"features of shape {shape} do not go with {len(self.names)} names: a row each is needed."
            )

    def __len__(self) -> int:
        return len(self.names)

    def nearest(self, vector_C: NDArray[Any], count: int = 10) -> list[tuple[int, float]]:
        """Find the images whose features are most like a vector: their places, and the cosines, the largest first.

        Of equal ones the first comes first. All, where there are fewer than `count`.
        """
        unit_NC = _to_length_one(self.features_NC.astype(np.float64))
        cosine_N = unit_NC @ _to_length_one(np.asarray(vector_C, np.float64)[None])[0]
        order = np.argsort(-cosine_N.round(6), kind="stable")[:count]  # copies of an image differ by rounding alone
        return [(int(place), float(cosine_N[place])) for place in order]


def _to_length_one(vectors_NC: NDArray[Any]) -> NDArray[Any]:
    lengths_N1 = np.linalg.norm(vectors_NC, axis=1, keepdims=True)
    return vectors_NC / np.where(lengths_N1 > 0, lengths_N1, 1)


def weights_sha256(model: nn.Module) -> str:
    """Compute the SHA-256 of a model's weights: of the name, type, shape and bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if len(flat) else b"")
    return digest.hexdigest()


def require_suffix(file: str | Path) -> None:
    """Raise `ValueError` for a file of another suffix, and `DataError` for one that needs a package not installed."""
    suffix = Path(file).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{file} ends in {suffix or 'no suffix'}; embeddings are written as {' or '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        _pyarrow(file)


def _pyarrow(file: str | Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{file} needs a package that is not installed: pip install pyarrow, or name a file that ends in .npz"
        ) from error
    return pyarrow, parquet


def write_embeddings(file: str | Path, embeddings: Embeddings) -> None:
    """Write embeddings in one step, in the format of the suffix.

    .npz holds `names` (texts), `features` (N, C) and `metadata` (JSON), without pickles. .parquet has the columns
    `name` and `features` (lists of C numbers), and the JSON as "davit" in the schema's metadata; names are written by
    `davit.text.as_utf8`, so that those of other bytes are text, and `davit.text.original` gives them back.

    Raises:
        ValueError: another suffix.
        DataError: pyarrow is needed and not installed.
        OSError: the file cannot be written.
    """
    require_suffix(file)
    about = json.dumps(dict(embeddings.metadata), ensure_ascii=True)
    features_NC = np.ascontiguousarray(embeddings.features_NC, dtype=np.float32)
    if Path(file).suffix.lower() == ".npz":
        names = np.array(embeddings.names, dtype=np.str_)

        def write(stream: IO[bytes]) -> None:
            np.savez(stream, names=names, features=features_NC, metadata=np.array(about))

    else:
        pyarrow, parquet = _pyarrow(file)
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features_NC.reshape(-1)), features_NC.shape[1])
        names_column = pyarrow.array([as_utf8(name) for name in embeddings.names], pyarrow.string())
        table = pyarrow.table({"name": names_column, "features": column})
        table = table.replace_schema_metadata({_ENTRY.encode(): about.encode()})

        def write(stream: IO[bytes]) -> None:
            parquet.write_table(table, stream)

    write_atomically(file, write)


def read_embeddings(file: str | Path) -> Embeddings:
    """Read what `write_embeddings` wrote; nothing from the file is run.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    require_suffix(file)
    read = _read_npz if Path(file).suffix.lower() == ".npz" else _read_parquet
    try:
        names, features_NC, about = read(Path(file))
        metadata = json.loads(about)
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no JSON object")
        return Embeddings(names, features_NC, metadata)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} holds no embeddings that python -m davit.embed wrote: {error}") from error


def _read_npz(file: Path) -> tuple[tuple[str, ...], NDArray[np.float32], str]:
    with open_regular(file) as stream, np.load(stream, allow_pickle=False) as arrays:
        features_NC = arrays["features"]
        if features_NC.dtype != np.float32:
            raise ValueError(f"its features are {features_NC.dtype}, not float32")
        return tuple(map(str, arrays["names"].tolist())), features_NC, str(arrays["metadata"])


def _read_parquet(file: Path) -> tuple[tuple[str, ...], NDArray[np.float32], str]:
    pyarrow, parquet = _pyarrow(file)
    with open_regular(file) as stream:
        try:
            table = parquet.read_table(stream)
        except pyarrow.ArrowException as error:
            raise ValueError(str(error)) from error
    width = getattr(table.schema.field("features").type, "list_size", None)
    if width is None:
        raise ValueError("its features are no lists of one length")
    features_NC = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    about = (table.schema.metadata or {}).get(_ENTRY.encode(), b"")
    return tuple(map(original, table["name"].to_pylist())), features_NC.astype(np.float32, copy=False), about.decode()
