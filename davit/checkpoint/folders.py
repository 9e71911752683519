"""Read the folders that trainers save weights in: shards with an index, DeepSpeed's, a base with adapters.

Nothing outside the folder is read, and no file that no index or known name leads to.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import read_small
from ..limits import short
from ..text import as_line, some
from . import adapters
from .kinds import SUFFIXES, read_file
from .names import CheckpointError

_logger = logging.getLogger(__name__)

INDEX_SUFFIX = ".index.json"
# in the order in which they are preferred
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin", "model.bin", "pytorch_model.safetensors")
_OF_DEEPSPEED = re.compile(r"(?:(?P<zero>zero_pp_rank_(?P<data>\d+)_))?mp_rank_(?P<model>\d+)_model_states\.pt")
_MOST_INDEX = 1 << 26  # bytes of an index
_MOST_SHARDS = 1000
_MOST_BYTES = 1 << 36  # of all shards together
_MOST_FOLDERS = 100  # within a folder, of which it is asked whether they hold a checkpoint
_MOST_LISTED = 100_000  # files of a folder that are looked at


def read_folder(
    folder: Path, foreign: bool = True, is_tagged: bool = False
) -> tuple[Any, dict[str, Any], tuple[Path, ...]]:
    """Read the weights that a folder holds: contents, what lies beside them, and the files that were read.

    Args:
        is_tagged: the folder was found by DeepSpeed's ``latest``, of which it has no other.

    Raises:
        CheckpointError: the folder is no such, lacks a part, or has its weights in pieces that are not joined here.
    """
    names = _names_in(folder)
    index = next((name for name in _INDICES if name in names), None)
    index = index or next((name for name in sorted(names) if name.endswith(INDEX_SUFFIX)), None)
    if adapters.CONFIG in names:
        return _read_adapters(folder, names, foreign)
    if index is not None and not _is_whole_beside(folder, index, names):
        return read_shards(folder / index, foreign)
    if ".metadata" in names and (folder / ".metadata").is_file():
        raise CheckpointError(
            f"{folder} was written by torch.distributed.checkpoint, in pieces with a pickle that says where they are, "
            "which is not run here. Join them: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{folder} OUTPUT.pth, and give OUTPUT.pth (a folder of accelerate's: accelerate merge-weights)."
        )
    if "latest" in names and not is_tagged and (tagged := _tagged(folder)) is not None:
        return read_folder(tagged, foreign, is_tagged=True)
    if states := sorted(name for name in names if _OF_DEEPSPEED.fullmatch(name)):
        return _read_deepspeed(folder, states, foreign)
    for name in SINGLES:
        if name in names:
            contents, header = read_file(folder / name, foreign)
            return contents, header, (folder / name,)
    there = sorted(name for name in names if name.endswith(SUFFIXES))
    if not there:
        inner = [folder / name for name in sorted(names)[:_MOST_FOLDERS] if (folder / name).is_dir()]
        there = [f"{path.name}/" for path in inner if holds_one_checkpoint(path)]
    raise CheckpointError(
        f"{folder} is a folder, not a checkpoint; give "
        + (f"one of these in it: {some(there, 5)}." if there else "the file itself.")
    )


def holds_one_checkpoint(folder: Path) -> bool:
    """Tell whether the files of a folder hold one model's weights together, rather than one model each."""
    names = _names_in(folder)
    return (
        bool({*SINGLES, ".metadata", adapters.CONFIG} & names)
        or any(name.endswith(INDEX_SUFFIX) or _OF_DEEPSPEED.fullmatch(name) for name in names)
        or ("latest" in names and _tagged(folder) is not None)
    )


def _is_whole_beside(folder: Path, index: str, names: set[str]) -> bool:
    """Tell whether the weights that an index names also lie in one file, which all readers take first; say so."""
    whole = index.removesuffix(INDEX_SUFFIX)
    if whole not in names:
        return False
    _logger.warning("%s has its weights in %s and in the files of %s: taking %s", folder, whole, index, whole)
    return True


def _names_in(folder: Path) -> set[str]:
    names: set[str] = set()
    try:
        for file in folder.iterdir():
            names.add(file.name)
            if len(names) > _MOST_LISTED:
                raise CheckpointError(f"{folder} has more than {_MOST_LISTED:,} files; give the checkpoint itself.")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror}; check its permissions.") from error
    return names


# ---- shards with an index ----


def read_shards(index: Path, foreign: bool = True) -> tuple[dict[str, Tensor], dict[str, Any], tuple[Path, ...]]:
    """Read the shards that an index names (``weight_map``: tensor to file), every tensor accounted for.

    Raises:
        CheckpointError: the index is none or leads out of its folder; a shard is missing, or they do not agree.
    """
    written = _read_json(index)
    weight_map = written.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} has no weight_map, which says in which file each tensor is (it has "
            f"{some(written, 5) or 'nothing'}); save the model again."
        )
    shards: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain_name(file):
            raise CheckpointError(
                f"{index} says that {as_line(name)} is in {short(file)}, which is no file of its own folder; nothing "
                "was read. Do not use it if you do not know who made it."
            )
        shards.setdefault(file, set()).add(name)
    if len(shards) > _MOST_SHARDS:
        raise CheckpointError(f"{index} names {len(shards):,} files, and at most {_MOST_SHARDS:,} are read.")
    files = {file: index.parent / file for file in sorted(shards)}
    if missing := [file for file, path in files.items() if not path.is_file()]:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of the {len(files)} files that {index.name} names: "
            f"{some(missing, 3)}; fetch them, too."
        )
    size = sum(path.stat().st_size for path in files.values())
    if size > _MOST_BYTES:
        raise CheckpointError(
            f"the files that {index} names have {size:,} bytes, and at most {_MOST_BYTES:,} are read."
        )
    tensors: dict[str, Tensor] = {}
    for file, path in files.items():
        contents, _ = read_file(path, foreign)
        held = contents if isinstance(contents, Mapping) else {}
        if odd := [name for name, value in held.items() if not isinstance(value, Tensor)]:
            raise CheckpointError(f"{path} holds {as_line(odd[0])}, which is no tensor: it is not a shard of weights.")
        if lacking := sorted(shards[file] - held.keys()):
            raise CheckpointError(
                f"{path} lacks {some(lacking, 3)}, which {index.name} says are in it; save them again."
            )
        if again := sorted(held.keys() - shards[file]):
            elsewhere = [name for name in again if name in weight_map]
            raise CheckpointError(
                f"{path} holds {some(again, 3)}, "
                + (
                    f"which {index.name} says are in {weight_map[elsewhere[0]]}"
                    if elsewhere
                    else f"of which {index.name} says nothing"
                )
                + ": which value is meant cannot be known; save the model again."
            )
        tensors |= held
    # in the order of the index, which is not that of the files
    return {name: tensors[name] for name in weight_map}, _plain_header(written.get("metadata")), tuple(files.values())


def _is_plain_name(name: str) -> bool:
    return bool(name) and not set(name) & {"/", "\\", "\0", ":"} and name not in (".", "..") and len(name) < 256


def _plain_header(metadata: object) -> dict[str, Any]:
    return (
        {name: value for name, value in metadata.items() if isinstance(value, int | str | float)}
        if isinstance(metadata, dict)
        else {}
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size; a name that is there twice is an error."""
    try:
        value = json.loads(read_small(path, _MOST_INDEX), object_pairs_hook=_once)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path.") from error
    except (ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is no JSON that can be used ({text}); fetch or save it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {short(value)}, not names and values; fetch or save it again.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it names {short(twice)} twice")
    return found


# ---- DeepSpeed ----


def _tagged(folder: Path) -> Path | None:
    """Follow DeepSpeed's ``latest``, which names the folder of the newest state."""
    try:
        tag = read_small(folder / "latest", 4096).decode().strip()
    except (OSError, ValueError):
        return None
    if not _is_plain_name(tag):
        raise CheckpointError(
            f"{folder / 'latest'} names {short(tag)}, which is no folder in {folder}; nothing was read."
        )
    tagged = folder / tag
    if not tagged.is_dir():
        raise CheckpointError(f"{folder / 'latest'} names {short(tag)}, which is not in {folder}; fetch it, too.")
    if tagged.resolve() == folder.resolve():
        raise CheckpointError(
            f"{folder / 'latest'} leads back to its own folder; give the folder of the state itself."
        )
    return tagged


def _read_deepspeed(folder: Path, states: list[str], foreign: bool) -> tuple[Any, dict[str, Any], tuple[Path, ...]]:
    found = [_OF_DEEPSPEED.fullmatch(name) for name in states]
    parts = {int(one["model"]) for one in found if one}
    if len(parts) > 1:
        raise CheckpointError(
            f"{folder} holds the states of {len(parts)} processes that had parts of the model each ("
            f"{some(states, 3)}); have DeepSpeed save it whole: model_engine.save_16bit_model(OUTPUT_DIR)."
        )
    # each process of data parallelism writes the same weights, or under ZeRO-3 placeholders, which `unwrap` refuses
    contents, header = read_file(folder / states[0], foreign)
    return contents, header, (folder / states[0],)


# ---- adapters ----


def read_adapter_config(folder: Path) -> dict[str, Any] | None:
    """Read peft's ``adapter_config.json``, None where there is none."""
    path = folder / adapters.CONFIG
    return _read_json(path) if path.is_file() else None


def _read_adapters(folder: Path, names: set[str], foreign: bool) -> tuple[Any, dict[str, Any], tuple[Path, ...]]:
    """Read a folder of peft's ``save_pretrained``, with the weights of the model beside the adapters."""
    config = _read_json(folder / adapters.CONFIG)
    own = next((name for name in adapters.WEIGHTS if name in names), None)
    index = next((name for name in _INDICES if name in names), None)
    base = next((name for name in SINGLES if name in names), None)
    if own is None and base is None and index is None:
        raise CheckpointError(
            f"{folder} has an {adapters.CONFIG} and no weights ({' or '.join((*adapters.WEIGHTS, *SINGLES[:2]))}); "
            "fetch them, too."
        )
    files: tuple[Path, ...] = ()
    contents: Any = {}
    header: dict[str, Any] = {}
    if index is not None and not _is_whole_beside(folder, index, names):
        contents, header, files = read_shards(folder / index, foreign)
    elif base is not None:
        contents, header = read_file(folder / base, foreign)
        files = (folder / base,)
    if own is not None:
        added, _ = read_file(folder / own, foreign)
        files = (*files, folder / own)
        if not isinstance(contents, Mapping) or not isinstance(added, Mapping):
            raise CheckpointError(f"{folder / own} and {base} do not hold weights by name; save the model again.")
        contents = adapters.joined(contents, added) if contents else dict(added)
        header["adapters"] = own
    return contents, {**header, "adapter_config": config}, files
