"""Read a checkpoint, whatever it is, without running anything that it contains; write one whole.

The first bytes of a file decide what it is, never its suffix; pickles.py reads those that are pickles.
"""

import codecs
import contextlib
import hashlib
import logging
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeAlias

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..files import write_atomically
from .function import FUNCTION_ENTRY, likely_function, noted_in, said_beside, with_note
from .names import DAVIT_FUNCTION, CheckpointError, Recognised, find
from .pickles import NOT_PLAIN, plain_value, read_pickle

_logger = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin")
EMA_CHOICES = ("auto", "always", "never")
EMA_WRAPPERS = ("state_dict_ema", "model_ema")
PLAIN_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "net", "backbone")
_DEEPEST_WRAPPER = 6


@dataclass
class Checkpoint:
    """Hold the weights of a checkpoint and what was beside them.

    Attributes:
        origin: the file, or what to call the weights in a message.
        state_dict: the weights under the names they have in the file.
        wrapper: the entries that held them, outermost first; empty if the weights are the whole file.
        ema: whether they are the running average of training (EMA).
        metadata: the plain values beside them: epoch, args, metric ...
        skipped: entries beside them that are no plain values: optimizer, scaler, the other weights ...
    """

    origin: str
    state_dict: dict[str, Tensor]
    wrapper: tuple[str, ...] = ()
    ema: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @cached_property
    def davits(self) -> list[Recognised]:
        """Every DaViT among the weights, recognised once."""
        return find(self.state_dict)

    @property
    def davit(self) -> Recognised | None:
        """The DaViT whose weights these are; None for another architecture, and for two DaViTs."""
        return self.davits[0] if len(self.davits) == 1 else None

    @property
    def function(self) -> str:
        """The channel attention that the weights were trained with: "davit", "florence2", or both joined by "+"."""
        likely = likely_function(self.davit, self.state_dict) if self.davit else DAVIT_FUNCTION
        return said_beside(self.metadata) or likely

    def noted(self) -> dict[str, Tensor]:
        """Return the weights, with what the file says about their channel attention noted, if it says something."""
        said = said_beside(self.metadata)
        return self.state_dict if said is None else with_note(self.state_dict, said)


Source: TypeAlias = str | Path | Checkpoint | Mapping[str, Any]


def read_checkpoint(path: str | Path, ema: str = "auto") -> Checkpoint:
    """Read a .pth, .pth.tar, .pt or .safetensors file and find the weights in it.

    For both the plain and the averaged weights of one file: `read_contents` once, and `unwrap` twice.

    Args:
        path: the file; its suffix does not matter.
        ema: which weights to take of a training checkpoint that has two: "auto" takes the running average
            if there is one, "always" insists on it, "never" takes the plain ones.

    Raises:
        CheckpointError: not a file, damaged, not a checkpoint, unsafe to open, or without weights.
    """
    contents, header = read_contents(path)
    checkpoint = unwrap(contents, str(path), ema)
    checkpoint.metadata.update(header)
    _logger.info(
        "%s: %d tensors%s%s",
        path,
        len(checkpoint.state_dict),
        f" of {'/'.join(checkpoint.wrapper)!r}" if checkpoint.wrapper else "",
        " (the EMA weights)" if checkpoint.ema else "",
    )
    return checkpoint


def open_source(source: Source, ema: str = "auto") -> Checkpoint:
    """Make a `Checkpoint` of a path, of a loaded checkpoint or of a state dict."""
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return unwrap(source, "the given state dict", ema)
    return read_checkpoint(source, ema)


def unwrap(contents: object, origin: str, ema: str = "auto") -> Checkpoint:
    """Find the weights in the contents of a file (arguments and errors as in `read_checkpoint`)."""
    if ema not in EMA_CHOICES:
        raise ValueError(f"ema={ema!r} is not one of {', '.join(map(repr, EMA_CHOICES))}.")
    wrappers = PLAIN_WRAPPERS if ema == "never" else EMA_WRAPPERS + PLAIN_WRAPPERS
    wrapper: list[str] = []
    metadata: dict[str, Any] = {}
    skipped: list[str] = []
    level = contents
    for _ in range(_DEEPEST_WRAPPER):
        if isinstance(level, torch.nn.Module):
            level = level.state_dict()
        if not isinstance(level, Mapping):
            raise CheckpointError(
                f"{origin} holds a {type(level).__name__}, not weights by name; save the model's state_dict() instead."
            )
        entry = next((name for name in wrappers if _leads_to_weights(level.get(name))), None)
        tensors = {} if entry else {str(name): value for name, value in level.items() if isinstance(value, Tensor)}
        for name, value in level.items():
            if name != entry and str(name) not in tensors:
                plain = plain_value(value)
                if plain is NOT_PLAIN:
                    skipped.append(str(name))
                else:
                    metadata[str(name)] = plain
        if entry is None:
            break
        wrapper.append(entry)
        level = level[entry]
    else:
        raise CheckpointError(f"{origin} nests its weights endlessly ({'/'.join(wrapper)}): it is damaged.")
    if not tensors:
        held = ", ".join(str(name) for name in list(level)[:5]) or "nothing"
        raise CheckpointError(
            f"{origin} holds no tensors (it holds {held}), so there is nothing to load; give the file that "
            "the weights were saved in."
        )
    is_ema = any(name in EMA_WRAPPERS for name in wrapper)
    if ema == "always" and not is_ema:
        raise CheckpointError(
            f"{origin} has no EMA weights ({' or '.join(EMA_WRAPPERS)}), and ema='always' insists on them; "
            "use ema='auto' to take the plain ones where there are no others."
        )
    if (noted := noted_in(level)) is not None:
        metadata[FUNCTION_ENTRY] = noted
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    return Checkpoint(origin, tensors, tuple(wrapper), is_ema, metadata, tuple(skipped))


def _leads_to_weights(value: object) -> bool:
    level = {id(value): value} if isinstance(value, torch.nn.Module | Mapping) else {}
    for _ in range(_DEEPEST_WRAPPER + 1):
        if any(isinstance(one, torch.nn.Module | Tensor) for one in level.values()):
            return True
        # each once, as a crafted dict may hold one a thousand times
        level = {id(inner): inner for one in level.values() if isinstance(one, Mapping) for inner in one.values()}
    return False


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
    if not path.name.endswith(_SUFFIXES):
        raise CheckpointError(f"{path} has none of the suffixes that say what to write: {', '.join(_SUFFIXES)}.")
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


# ---- what kind of file it is ----


def read_contents(path: str | Path, foreign: bool = True) -> tuple[Any, dict[str, Any]]:
    """Read a file whole, with its checksums, on the CPU; return its contents and what a header says beside them.

    Args:
        foreign: also read what other trainers put beside weights (numpy's numbers, ``argparse.Namespace`` ...), rather
            than tensors and plain values only.

    Raises:
        CheckpointError: not a file, damaged, not a checkpoint, or unsafe to open.
    """
    path = Path(path)
    _check_is_file(path)
    kind = _kind_of(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "zip":
        _check_zip(path)
    return read_pickle(path, foreign), {}


def _check_is_file(path: Path) -> None:
    try:
        if path.is_file() and path.stat().st_size:
            return
        folder = path if path.is_dir() else path.parent
        files = (file.name for file in folder.glob("*") if file.name.endswith(_SUFFIXES) and file.is_file())
        there = ", ".join(sorted(files)[:5])
        if path.is_file():
            problem = (
                "is empty (0 bytes): the download or the save that made it did not finish; fetch or save it again"
            )
        elif path.is_dir():
            problem = (
                f"is a folder, not a checkpoint; give {f'one of its files: {there}' if there else 'the file itself'}"
            )
        elif path.exists():
            problem = "is not a regular file; give the path of a checkpoint"
        else:
            problem = f"does not exist; {f'in that folder there is {there}' if there else 'check the path'}"
    except OSError as error:
        problem = f"cannot be opened: {error.strerror}; check the path and its permissions"
    raise CheckpointError(f"{path} {problem}.")


def _kind_of(path: Path) -> str:
    """Tell "zip", "pickle" or "safetensors" from the first bytes.

    Raises:
        CheckpointError: it is none of them; says what it is instead, as far as can be told.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions.") from error
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000:
        return "safetensors"
    if start.startswith(b"\x80") or re.match(rb"\(*[ci][\w.]+\n[\w.]+\n", start):
        return "pickle"  # the second form is that of protocol 0
    raise CheckpointError(f"{path} {_other_kind(start)}")


def _other_kind(start: bytes) -> str:
    """Say what a file that is no checkpoint is, and what to do about it: the rest of a sentence."""
    if start.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, a few lines of text in place of the weights; run 'git lfs pull' in that "
            "repository, or download the file itself."
        )
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", start, re.IGNORECASE):
        return (
            "is a web page saved under the name of a checkpoint: the download returned a login or a "
            "confirmation page (Google Drive does for large files); download it in a browser, or with a "
            "tool that confirms."
        )
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # a character may be cut at the end
        if not re.search(r"[\x00-\x08\x0e-\x1f]", text):
            return f"is a text file that begins with {text[:40]!r}, not a checkpoint; check the path."
    return (
        "is no checkpoint in a known format (PyTorch or safetensors): if it is an archive (gzip, 7z, tar), unpack it; "
        "if another program's (Keras, numpy), get DaViT's weights as .pth or .safetensors; if it is damaged, fetch or "
        "save it again."
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as opened:
            return tensors, opened.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} begins as a safetensors file but cannot be read ({error}): it is cut short or damaged; "
            "fetch or save it again."
        ) from error


def _check_zip(path: Path) -> None:
    """Raise a `CheckpointError` unless the archive is whole and one of torch.save's."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = _damaged_member(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is cut short or damaged: it begins as a PyTorch checkpoint, but its end, the list of "
            "its contents, is missing; fetch or save it again."
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {damaged!r} in it is wrong; fetch or save it again."
        )
    members = {name.split("/", 1)[-1] for name in names}
    for member, kind, weights in (
        ("constants.pkl", "TorchScript", "torch.jit.load(path).state_dict()"),
        ("archive_format", "torch.export", "torch.export.load(path).state_dict"),
    ):
        if member in members:
            raise CheckpointError(
                f"{path} is a program saved by {kind}, not only weights, so it is not opened here; if you trust it, "
                f"save its weights: torch.save({weights}, 'weights.pth')."
            )
    if "data.pkl" not in members:
        raise CheckpointError(
            f"{path} is a zip archive, but not one of PyTorch's (it holds {', '.join(sorted(members)[:3])}); "
            "unpack it and give the checkpoint itself."
        )


def _damaged_member(archive: zipfile.ZipFile) -> str | None:
    """Return the first member whose checksum is wrong (torch.load does not look); 0 stands for none."""
    for member in archive.infolist():
        if member.CRC != 0:
            try:
                with archive.open(member) as stream:
                    while stream.read(1 << 20):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError):
                return member.filename
    return None
