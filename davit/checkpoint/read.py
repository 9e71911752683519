"""Read a checkpoint, whatever it is, without running anything that it contains; write one whole.

kinds.py reads a file, folders.py a folder of several, unwrap.py finds the weights in what they hold.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import safetensors.torch
import torch
from torch import Tensor

from ..files import read_small, write_atomically
from .adapters import WEIGHTS as ADAPTERS
from .folders import INDEX_SUFFIX, SINGLES, read_adapter_config, read_folder, read_shards
from .function import FUNCTION_ENTRY, noted_in, said_beside, said_by_config
from .kinds import read_file, why_a_part
from .names import CheckpointError
from .unwrap import Checkpoint, unwrap

_logger = logging.getLogger(__name__)

__all__ = [
    "FUNCTION_ENTRY",
    "Checkpoint",
    "Source",
    "files_of",
    "open_source",
    "read_checkpoint",
    "read_contents",
    "sha256_of",
    "unwrap",
    "write_checkpoint",
]

CONFIG = "config.json"
_MOST_CONFIG = 64 << 20  # bytes; the names of a million classes
WRITTEN = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin")

Source: TypeAlias = str | Path | Checkpoint | Mapping[str, Any]


def read_checkpoint(path: str | Path, ema: str = "auto") -> Checkpoint:
    """Read a file or a folder of weights, and find the weights in it.

    A file is .pth, .pth.tar, .pt, .bin, .ckpt or .safetensors. A folder is one of shards with an index (transformers,
    accelerate), of DeepSpeed, of a base with its LoRA adapters (peft), or has a ``model.safetensors``. Adapters are
    merged.

    For both the plain and the averaged weights of one file: `read_contents` once, and `unwrap` twice.

    Args:
        path: the file; its suffix does not matter.
        ema: which weights to take of a training checkpoint that has two: "auto" takes the running average
            if there is one, "always" insists on it, "never" takes the plain ones.

    Raises:
        CheckpointError: not a file, damaged, not a checkpoint, unsafe to open, or without weights.
    """
    path = Path(path)
    contents, header = read_contents(path)
    folder = path if path.is_dir() else path.parent
    checkpoint = unwrap(
        contents,
        str(path),
        ema,
        lambda: header.get("adapter_config") or read_adapter_config(folder),
        is_split="adapters" in header,
    )
    checkpoint.metadata.update(header)
    if checkpoint.davits and said_beside(checkpoint.metadata) is None:
        said = said_by_config(_config_in(folder))
        checkpoint.metadata.update({FUNCTION_ENTRY: said} if said else {})
    if path.name in SINGLES and any((path.parent / name).is_file() for name in ADAPTERS):
        _logger.warning("%s: the adapters beside it are not merged; give the folder, %s, to merge them", path, folder)
    _logger.info(
        "%s: %d tensors%s%s%s",
        path,
        len(checkpoint.state_dict),
        f" of {'/'.join(checkpoint.wrapper)!r}" if checkpoint.wrapper else "",
        " (the EMA weights)" if checkpoint.ema else "",
        "".join(f"; {note}" for note in checkpoint.notes),
    )
    return checkpoint


def _config_in(folder: Path) -> dict[str, Any]:
    """Read the config.json of a folder; empty where there is none that can be read: only what it says is asked."""
    try:
        config = json.loads(read_small(folder / CONFIG, _MOST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def open_source(source: Source, ema: str = "auto") -> Checkpoint:
    """Make a `Checkpoint` of a path, of a loaded checkpoint or of a state dict."""
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return unwrap(source, "the given state dict", ema)
    return read_checkpoint(source, ema)


def read_contents(path: str | Path, foreign: bool = True) -> tuple[Any, dict[str, Any]]:
    """Read a file or folder whole, with its checksums, on the CPU; return its contents and what is said beside them.

    Args:
        foreign: also read what other trainers put beside weights (numpy's numbers, ``argparse.Namespace`` ...), rather
            than tensors and plain values only.

    Raises:
        CheckpointError: not a file, damaged, not a checkpoint, or unsafe to open.
    """
    contents, header, _ = _read(Path(path), foreign)
    return contents, header


def _read(path: Path, foreign: bool) -> tuple[Any, dict[str, Any], tuple[Path, ...]]:
    if path.is_dir():
        return read_folder(path, foreign)
    if path.name.endswith(INDEX_SUFFIX) and path.is_file():
        return read_shards(path, foreign)
    if path.is_file() and (reason := why_a_part(path)) is not None:
        raise CheckpointError(reason)
    contents, header = read_file(path, foreign)
    return contents, header, (path,)


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files with the weights that `read_checkpoint` reads (errors as there)."""
    return _read(path, True)[2] if path.is_dir() or path.name.endswith(INDEX_SUFFIX) else (path,)


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], force: bool) -> None:
    """Write weights, and only weights, in one step: the file is whole or not there.

    A .safetensors file keeps the metadata in its header, and takes memory for two more copies of the weights while
    it is written. A PyTorch file is the plain state dict, or, if there is metadata to keep, a dict with the weights
    as its ``state_dict``.

    Args:
        path: its suffix chooses the format: .safetensors, or PyTorch's for .pth, .pth.tar, .pt and .bin.
        force: replace a file that is there.

    Raises:
        CheckpointError: unknown suffix, no such folder, or the file exists or cannot be written.
    """
    if not path.name.endswith(WRITTEN):
        raise CheckpointError(f"{path} has none of the suffixes that say what to write: {', '.join(WRITTEN)}.")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: the folder {path.parent} does not exist; create it first.")
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists and is not replaced; give another name, or --force (force=True).")
    packed = _packed(tensors)
    if (noted := noted_in(tensors)) not in (None, Checkpoint(str(path), packed).function):
        metadata = {FUNCTION_ENTRY: str(noted), **metadata}

    def write(stream: IO[bytes]) -> None:
        if path.suffix == ".safetensors":
            # as bytes, since safetensors opens and renames a file of its own, which would not be synced
            stream.write(safetensors.torch.save(packed, {"format": "pt", **metadata}))
        else:
            torch.save({"state_dict": packed, **metadata} if metadata else packed, stream)

    try:
        write_atomically(path, write)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}; check the space and the permissions.") from error


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor memory of its own: a view would be saved with all that it is a view of."""
    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    packed = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_alone = uses[storage.data_ptr()] == 1 and storage.nbytes() == tensor.nbytes and tensor.is_contiguous()
        packed[name] = tensor if is_alone else tensor.clone(memory_format=torch.contiguous_format)
    return packed
