"""Read one file, whatever it is: the first bytes decide, never its suffix; pickles.py reads those that are pickles."""

import codecs
import contextlib
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ..files import open_regular
from .names import CheckpointError
from .pickles import read_pickle

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
_PART = re.compile(r"(?P<stem>.+)-0*(?P<number>\d{1,6})-of-0*(?P<count>\d{1,6})\.[a-z.]+")


def read_file(path: Path, foreign: bool = True) -> tuple[Any, dict[str, Any]]:
    """Read a file whole, with its checksums, on the CPU; return its contents and what a header says beside them.

    Args:
        foreign: as in `davit.checkpoint.read_contents`.

    Raises:
        CheckpointError: not a file, damaged, not a checkpoint, or unsafe to open.
    """
    _check_is_file(path)
    kind = _kind_of(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "zip":
        _check_zip(path)
    return read_pickle(path, foreign), {}


def why_a_part(path: Path) -> str | None:
    """Say that a file is one of several that hold a model's weights together; None where it is not."""
    part = _PART.fullmatch(path.name)
    if part is None or int(part["count"]) < 2:
        return None
    return (
        f"{path} is part {part['number']} of the {part['count']} files that hold these weights together; give their "
        f"folder, {path.parent}, with the index that names them all."
    )


def _check_is_file(path: Path) -> None:
    try:
        if path.is_file() and path.stat().st_size:
            return
        folder = path if path.is_dir() else path.parent
        files = (file.name for file in folder.glob("*") if file.name.endswith(SUFFIXES) and file.is_file())
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
        with open_regular(path) as stream:
            start = stream.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions.") from error
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000:
        return "safetensors"
    if start.startswith(b"\x80") or re.match(rb"\(*[ci][\w.]+\n[\w.]+\n", start):
        return "pickle"  # the second form is that of protocol 0
    raise CheckpointError(f"{path} {_other_kind(start, path.suffix)}")


_TORCH_SAVE = "torch.save(model.state_dict(), 'weights.pth')"


def _other_kind(start: bytes, suffix: str = "") -> str:
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
    if start.startswith((b"GGUF", b"GGJT", b"GGML")):
        return (
            "is a GGUF file: weights quantized for llama.cpp, whose values are not those of a DaViT as PyTorch "
            f"computes it; get the model from before its conversion as .safetensors, or save it: {_TORCH_SAVE}."
        )
    if suffix == ".onnx" or (start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x3a", b"\x1a")):
        return (
            "is an ONNX model: a program, whose weights are not read as a checkpoint's; run one of `davit.export` by "
            "davit.runtimes.open_exported, and for weights give the checkpoint that it was exported from "
            f"({_TORCH_SAVE})."
        )
    if start.startswith(b"\x89HDF"):
        return (
            "is an HDF5 file (of Keras or h5py), not of PyTorch; get DaViT's weights as .safetensors or .pth, or save "
            f"them from PyTorch: {_TORCH_SAVE}."
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
                f"{path} is a program saved by {kind}, not only weights, so it is not opened here (one of "
                "`davit.export` by davit.runtimes.open_exported); if you trust it, "
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
