"""Reading what torch.save wrote, without running anything of it.

Pickles go through torch's restricted unpickler (``weights_only=True``). The few foreign classes that
training checkpoints are known to carry are replaced by inert stand-ins, so that not even their constructors
run; anything else is refused by name.
"""

import argparse
import collections
import contextlib
import io
import pickle
import pickletools
import re
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np
import torch

from .names import CheckpointError


def read_pickle(path: Path) -> object:
    """The contents of a file of torch.save, today's format or that of PyTorch < 1.6, tensors on the CPU.

    Raises:
        CheckpointError: it is damaged, or wants something that holds no weights; nothing of it has run.
    """
    stand_ins = set(_STAND_INS) - set(torch.serialization.get_safe_globals())
    try:
        # opened here, because torch.load would go by the suffix of a path
        with (
            torch.serialization.safe_globals(list(stand_ins)),
            path.open("rb") as stream,
            warnings.catch_warnings(),
        ):
            # a protocol other than torch's own is either read or named in the error
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        # a file that is damaged or crafted can make the reader fail in any way at all
        raise CheckpointError(f"{path} {_why_unreadable(path, error)}") from error


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", text)
        wanted = [named[1].rstrip(".")] if named else _foreign_globals(path)
        if wanted:
            return (
                f"asks to run or build {', '.join(map(repr, wanted[:3]))} when it is opened, which a "
                "checkpoint has no need to; nothing of it was run. Do not use the file if you do not know "
                "who made it; if you do, have its maker save only the weights: "
                "torch.save(model.state_dict(), path)."
            )
        if "operand" in text or "reduce" in text or "Can only" in text:
            return (
                f"is a pickle that does more than hold weights ({_first_sentence(text)}); nothing of it was "
                "run. Save the weights again with torch.save(model.state_dict(), path) and torch's default "
                "pickle protocol."
            )
    if "legacy .tar" in text:
        return "is a checkpoint of PyTorch 0.1; save it again with a newer one."
    return (
        f"is cut short, damaged or not a checkpoint of PyTorch ({type(error).__name__}: "
        f"{_first_sentence(text)}); fetch or save it again."
    )


def _first_sentence(text: str) -> str:
    """The reader's own words, without torch's advice to switch the protection off."""
    if "WeightsUnpickler error:" in text:
        text = text.split("WeightsUnpickler error:", 1)[1]
    return text.strip().split("\n")[0][:160] or "no details"


# what the pickle of a state dict names
_WEIGHTS_NAMES = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter"
    r"|torch\.(Size|device|\w*Storage|\w*Tensor|bool|bfloat16|u?int\d+|(float|complex)\d+\w*)"
)


def _foreign_globals(path: Path) -> list[str]:
    """The functions and classes a pickle names that weights have no need of, found without running it."""
    stream: IO[bytes] = path.open("rb")
    if zipfile.is_zipfile(path):
        with stream, zipfile.ZipFile(stream) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            stream = io.BytesIO(archive.read(name))
    allowed = {name for stand_in in _STAND_INS if isinstance(stand_in, tuple) for name in stand_in[1:]}
    found: dict[str, None] = {}
    # the end, or damage (such as an absurd length): what was found till then
    with stream, contextlib.suppress(ValueError, MemoryError, OverflowError):
        for _ in range(8):  # a checkpoint of PyTorch < 1.6 is several pickles, then the data
            for name in _globals_of_next_pickle(stream):
                found[name] = None
    return [name for name in found if name not in allowed and not _WEIGHTS_NAMES.fullmatch(name)]


def _globals_of_next_pickle(stream: IO[bytes]) -> Iterator[str]:
    strings = ["", ""]
    memo: dict[object, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1]
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = strings[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            strings.append(memo.get(argument, ""))
        elif isinstance(argument, str):
            strings.append(argument)


# -- stand-ins for the classes that real checkpoints carry


class _NumpyDtype:
    """Stands in for numpy.dtype: remembers which, and builds only numeric ones."""

    def __init__(self, code: object = None, *_: object):
        self.code, self.order = code, ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else ""

    def numeric(self) -> np.dtype[Any] | None:
        if isinstance(self.code, str) and re.fullmatch(r"[biufc?]\d*", self.code):
            return np.dtype(self.order + self.code)
        return None


class _NumpyArray:
    """Stands in for numpy.ndarray, built without numpy's own unpickling."""

    value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if (numeric := dtype.numeric()) is not None and isinstance(data, bytes):
            self.value = np.frombuffer(data, numeric).reshape(shape, order="F" if fortran else "C")


def _numpy_array(*_: object) -> _NumpyArray:
    return _NumpyArray()


def _numpy_scalar(dtype: _NumpyDtype, data: bytes = b"") -> object:
    numeric = dtype.numeric()
    return None if numeric is None else np.frombuffer(data, numeric)[0].item()


class _Ignored:
    """Stands in for an object that nobody needs here, such as a logger's history."""

    def __setstate__(self, state: object) -> None:
        pass


def _ignored_method(owner: object, name: str) -> None:
    """Stands in for getattr, by which a pickle names a method; only ignored objects may have one."""
    if owner is not _Ignored:
        raise pickle.UnpicklingError(f"unsupported GLOBAL builtins.getattr for {name!r}")


def _joined_path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


def _joined_windows_path(*parts: str) -> str:
    return str(PureWindowsPath(*parts))


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,  # timm's args
    types.SimpleNamespace,
    (_joined_path, "pathlib.PosixPath"),
    (_joined_path, "pathlib.PurePosixPath"),
    (_joined_path, "pathlib._local.PosixPath"),  # Python 3.13's name for it
    (_joined_path, "pathlib._local.PurePosixPath"),
    (_joined_windows_path, "pathlib.WindowsPath"),
    (_joined_windows_path, "pathlib._local.WindowsPath"),
    (str, "torch.torch_version.TorchVersion"),
    (_empty_dict, "collections.defaultdict"),
    (dict, "builtins.dict"),
    (list, "builtins.list"),
    # metrics and random states
    (_NumpyDtype, "numpy.dtype"),
    (_NumpyArray, "numpy.ndarray"),
    *(
        stand_in
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for stand_in in ((_numpy_scalar, f"{module}.scalar"), (_numpy_array, f"{module}._reconstruct"))
    ),
    # config trees, dicts with attributes: torch's unpickler can fill an OrderedDict and give it attributes
    *(
        (collections.OrderedDict, name)
        for name in (
            "yacs.config.CfgNode",
            "addict.addict.Dict",
            "easydict.EasyDict",
            "mmcv.utils.config.ConfigDict",
            "mmengine.config.config.ConfigDict",
        )
    ),
    # OpenMMLab's training logs refer to their own methods
    (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_ignored_method, "builtins.getattr"),
]

NOT_PLAIN = object()


def plain_value(value: object, depth: int = 0) -> Any:
    """The value without stand-ins and foreign classes, or `NOT_PLAIN` where it holds tensors or objects."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, _NumpyArray):
        return value.value
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        value = vars(value)
    if depth > 20:  # a dict that holds itself
        return NOT_PLAIN
    if isinstance(value, Mapping):
        items = {key: plain_value(inner, depth + 1) for key, inner in value.items()}
        return NOT_PLAIN if any(inner is NOT_PLAIN for inner in items.values()) else items
    if isinstance(value, list | tuple | set):
        inners = [plain_value(inner, depth + 1) for inner in value]
        kind = next(kind for kind in (list, tuple, set) if isinstance(value, kind))
        return NOT_PLAIN if any(inner is NOT_PLAIN for inner in inners) else kind(inners)
    return NOT_PLAIN
