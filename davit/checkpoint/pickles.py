"""Read what torch.save wrote, without running anything of it.

Pickles go through torch's restricted unpickler (``weights_only=True``). The few foreign classes that training
checkpoints are known to hold are replaced by stand-ins that do nothing, so that not even their constructors run;
anything else is refused by name.
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


def read_pickle(path: Path, foreign: bool = True) -> object:
    """Read a file of torch.save, today's format or that of PyTorch < 1.6, with its tensors on the CPU.

    Args:
        foreign: read the classes that have stand-ins, too.

    Raises:
        CheckpointError: it is damaged, or wants something that holds no weights; nothing of it has run.
    """
    stand_ins = set(_STAND_INS) - set(torch.serialization.get_safe_globals()) if foreign else set()
    try:
        # opened here, because torch.load would go by the suffix of a path
        with (
            torch.serialization.safe_globals(list(stand_ins)),
            path.open("rb") as stream,
            warnings.catch_warnings(),
        ):
            # a protocol other than torch's own is either read or refused
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        # a file that is damaged or crafted can make the reader fail in any way at all
        raise CheckpointError(f"{path} {_why_unreadable(path, error)}") from error


def _why_unreadable(path: Path, error: Exception) -> str:
    # the reader's own words, without torch's advice to switch the protection off
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    sentence = text.split("\n")[0][:160] or "no details"
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", text)
        if (named and named[1].startswith("torchao.")) or any(
            one.startswith("torchao.") for one in _foreign_names(path)
        ):
            return (
                "holds weights that torchao quantized, whose values are not stored as they are computed with; take "
                "the file from before quantize_(), or save the model's state_dict() before it."
            )
        if wanted := [named[1].rstrip(".")] if named else _foreign_names(path):
            return (
                f"asks to run or build {', '.join(map(repr, wanted[:3]))} when it is opened, which a checkpoint has "
                "no need to; nothing of it was run. Do not use the file if you do not know who made it; if you do, "
                "have its maker save only the weights: torch.save(model.state_dict(), path)."
            )
        if "operand" in text or "reduce" in text or "Can only" in text:
            return (
                f"is a pickle that does more than hold weights, or of a protocol unlike torch.save's ({sentence}); "
                "nothing of it was run. Do not use the file if you do not know who made it; if you do, have its maker "
                "save the weights with torch.save(model.state_dict(), path) and torch's default pickle protocol."
            )
    return (
        f"is cut short, damaged or not a checkpoint of PyTorch ({type(error).__name__}: {sentence}); fetch or save it "
        "again."
    )


# what the pickle of a state dict names
_WEIGHTS_NAMES = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter"
    r"|torch\.(Size|device|\w*Storage|\w*Tensor|bool|bfloat16|u?int\d+|(float|complex)\d+\w*)"
)


def _foreign_names(path: Path) -> list[str]:
    """List what a pickle of any protocol names beside weights, read from its opcodes without running them."""
    found: dict[str, None] = {}
    strings: list[str] = ["", ""]
    memo: dict[object, str] = {}
    # damage ends the reading with any error; what was found till then counts
    with path.open("rb") as file, contextlib.suppress(Exception):
        stream: IO[bytes] = file
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(file)
            stream = io.BytesIO(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
        for _ in range(5):  # the pickles of a file of PyTorch < 1.6
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found[str(argument).replace(" ", ".")] = None
                elif opcode.name == "STACK_GLOBAL":
                    found[".".join(strings[-2:])] = None
                elif opcode.name.endswith(("PUT", "MEMOIZE")):
                    memo[len(memo) if argument is None else argument] = strings[-1]
                elif opcode.name.endswith("GET"):
                    strings.append(memo[argument])
                elif isinstance(argument, str):
                    strings.append(argument)
    known = {entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__name__}" for entry in _STAND_INS}
    return [name for name in found if name not in known and not _WEIGHTS_NAMES.fullmatch(name)]


# ---- stand-ins for the classes that real checkpoints hold ----
#
# numpy's own constructors are no substitute: a crafted state of numpy.dtype can pass bytes off as object pointers.


class _NumpyDtype:
    """Stand in for numpy.dtype: remember which one it is, and build it only if it is numeric."""

    def __init__(self, code: object = None, *_: object):
        self.code, self.order = code, ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else ""

    def numeric(self) -> np.dtype[Any] | None:
        if isinstance(self.code, str) and re.fullmatch(r"[biufc?]\d*", self.code):
            return np.dtype(self.order + self.code)
        return None


class _NumpyArray:
    """Stand in for numpy.ndarray, without numpy's own unpickling; `value` is None unless the numbers are plain."""

    value: Any = None

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if (numeric := dtype.numeric()) is not None and isinstance(data, bytes):
            self.value = np.frombuffer(data, numeric).reshape(shape, order="F" if fortran else "C")


def _numpy_scalar(dtype: _NumpyDtype, data: bytes = b"") -> object:
    numeric = dtype.numeric()
    return None if numeric is None else np.frombuffer(data, numeric)[0].item()


class _Ignored:
    """Stand in for an object that nobody needs here, such as a logger's history."""

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _ignored_method(owner: object, name: str) -> None:
    """Stand in for getattr, by which a pickle names a method; only ignored objects may have one."""
    if owner is not _Ignored:
        raise pickle.UnpicklingError(f"unsupported GLOBAL builtins.getattr for {name!r}")


def _joined_path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


def _joined_windows_path(*parts: str) -> str:
    return str(PureWindowsPath(*parts))


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}


class _Configured:
    """Stand in for a node of omegaconf: `value` is what it holds."""

    value: Any = None

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.value = state.get("_content", state.get("_val"))


_OF_OMEGACONF = (
    *("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode"),
    *("nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode", "nodes.PathNode"),
    *("nodes.BytesNode", "nodes.EnumNode", "nodes.InterpolationResultNode"),
)
_OF_OPTIM = (
    *("adam.Adam", "adamw.AdamW", "sgd.SGD", "rmsprop.RMSprop", "radam.RAdam", "nadam.NAdam", "lbfgs.LBFGS"),
    *("lr_scheduler.CosineAnnealingLR", "lr_scheduler.ReduceLROnPlateau", "lr_scheduler.OneCycleLR"),
    *("lr_scheduler.StepLR", "lr_scheduler.MultiStepLR", "lr_scheduler.ExponentialLR", "lr_scheduler.LinearLR"),
    *("lr_scheduler.LambdaLR", "lr_scheduler.SequentialLR", "lr_scheduler.CosineAnnealingWarmRestarts"),
)
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
    # numpy's metrics and random states, under the names of numpy 1 and 2
    (_NumpyDtype, "numpy.dtype"),
    (_NumpyArray, "numpy.ndarray"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_NumpyArray, "numpy.core.multiarray._reconstruct"),
    (_NumpyArray, "numpy._core.multiarray._reconstruct"),
    # config trees, dicts with attributes: torch's unpickler can fill an OrderedDict and give it attributes
    (collections.OrderedDict, "yacs.config.CfgNode"),
    (collections.OrderedDict, "addict.addict.Dict"),
    (collections.OrderedDict, "easydict.EasyDict"),
    (collections.OrderedDict, "mmcv.utils.config.ConfigDict"),
    (collections.OrderedDict, "mmengine.config.config.ConfigDict"),
    (collections.OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (collections.OrderedDict, "lightning.pytorch.utilities.parsing.AttributeDict"),
    (collections.OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (collections.OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    # Hydra's configurations, which Lightning stores as a model's arguments
    *((_Configured, f"omegaconf.{place}") for place in _OF_OMEGACONF),
    (str, "typing.Any"),
    # a module's arguments that make an optimizer; nothing of them is called
    (_Ignored, "functools.partial"),
    *((_Ignored, f"torch.optim.{place}") for place in _OF_OPTIM),
    (str, "peft.utils.peft_types.PeftType"),
    (str, "peft.utils.peft_types.TaskType"),
    # OpenMMLab's training logs refer to their own methods
    (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_ignored_method, "builtins.getattr"),
]

NOT_PLAIN = object()


def plain_value(value: object, depth: int = 0, budget: Iterator[int] | None = None) -> Any:
    """Return the value without stand-ins and foreign classes, or `NOT_PLAIN` if it holds tensors or objects."""
    # a dict may hold itself, or a few lists hold one another so often that they are billions of values
    budget = budget or iter(range(100_000))
    if next(budget, None) is None or depth > 20:
        return NOT_PLAIN
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, _NumpyArray):
        return value.value
    if isinstance(value, _Configured):
        return plain_value(value.value, depth + 1, budget)
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        value = vars(value)
    if isinstance(value, Mapping):
        items = {key: plain_value(inner, depth + 1, budget) for key, inner in value.items()}
        return NOT_PLAIN if any(inner is NOT_PLAIN for inner in items.values()) else items
    if isinstance(value, list | tuple | set):
        inners = [plain_value(inner, depth + 1, budget) for inner in value]
        kind = next(kind for kind in (list, tuple, set) if isinstance(value, kind))
        return NOT_PLAIN if any(inner is NOT_PLAIN for inner in inners) else kind(inners)
    return NOT_PLAIN
