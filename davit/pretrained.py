"""Find weights by what a user calls them: files, folders, repositories of the Hugging Face hub, published weights.

`resolve` turns the name of a source into a file, and never falls back to published weights. The names are timm's:

    FILE                         a checkpoint of any kind that `davit.checkpoint` reads
    FOLDER, local-dir:FOLDER     of a training run (its best checkpoint), in timm's format (config.json and weights),
                                 or of a checkpoint in several files
    hf-hub:OWNER/NAME[@REVISION] a repository of the hub in timm's format

`read_source` reads such a source together with what its config.json says. `load_configured` does what timm's
``pretrained_cfg`` asks for.

The published weights are the three ImageNet-1k models of the authors, on the hub in timm's port. A file put by hand
into the weights folder is used first (`weights_folder`; its name is as `Published.local_path` says, for instance
``davit_tiny.msft_in1k.safetensors``), then the hub's own cache, then the hub. Their hashes are those that the hub's
pages of the files show (Git LFS details). None is known for DaViT_base, whose files are therefore used unchecked.
"""

from __future__ import annotations

import json
import logging
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models import adapt_input_conv
from torch import nn

from .checkpoint import (
    ADAPTER_CONFIG,
    Checkpoint,
    CheckpointError,
    LoadReport,
    holds_one_checkpoint,
    load_checkpoint,
    read_checkpoint,
    sha256_of,
    unwrap,
)
from .checkpoint.function import said_beside, said_by_config
from .checkpoint.read import CONFIG, FUNCTION_ENTRY
from .choices import MULTILABEL
from .commands import USER_ERROR
from .counterparts import our_counterpart
from .files import read_small
from .limits import short
from .text import as_line, nearest, some

_logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "DAVIT_WEIGHTS_DIR"
ARCHITECTURE_ENTRY = "architecture"  # in a checkpoint's metadata: the one that its config.json names
DESCRIPTIONS_ENTRY = "class_descriptions"  # likewise: what its classes' names mean, by name
BEST_OF_A_RUN = ("model_best.pth.tar", "last.pth.tar", "previous.pth.tar")  # the first that is there

_SOURCES = {"hf-hub": "hf-hub", "hf_hub": "hf-hub", "local-dir": "local-dir"}  # timm's older name among them
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-_]+):(.*)", re.DOTALL)
_LIKE_A_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_MOST_CONFIG = 64 << 20  # bytes; the names of a million classes
_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_WEIGHTS = (*_HUB_WEIGHTS, "pytorch_model.pth", "model.pth")
_INDEXES = tuple(f"{name}.index.json" for name in _HUB_WEIGHTS)  # of weights in several files
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin")  # where none has a usual name
_PICTURES = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")


class PretrainedError(RuntimeError):
    """Say why weights of the hub cannot be used, and how to get them by hand."""

    exit_status = USER_ERROR


class _UnreachableError(PretrainedError):
    """The hub cannot be asked, and the cache does not have the file."""


# ---- sources ----


@dataclass(frozen=True)
class ResolvedSource:
    """Name the file behind a source.

    Attributes:
        file: with the weights; a folder where they are in several files.
        config: what config.json says, where the source is in timm's format.
        origin: what to call the source in a message.
    """

    file: Path
    config: dict[str, Any] | None
    origin: str


def resolve(source: str | Path, cache_dir: str | Path | None = None) -> ResolvedSource:
    """Find the file with the weights of a source, downloaded where it is of the hub; never published weights instead.

    Args:
        source: as the head of this module lists them.
        cache_dir: of the hub's files, in place of the user's cache.

    Raises:
        ValueError: the name is malformed, or the source holds no weights that can be told (`CheckpointError`).
        PretrainedError: the hub does not have it, or cannot be reached.
    """
    kind, rest = split_source(source)
    if kind == "hf-hub":
        return _resolve_hub(rest, cache_dir)
    path = Path(rest).expanduser()
    if path.is_dir():
        return _resolve_folder(path)
    if kind == "local-dir":
        raise CheckpointError(f"{source}: there is no folder {path}; check the path.")
    if not path.exists() and _LIKE_A_REPOSITORY.fullmatch(rest) and not rest.endswith(_SUFFIXES):
        raise CheckpointError(
            f"{rest} does not exist; check the path, or write hf-hub:{rest} for the repository of the hub."
        )
    beside = path.with_name(CONFIG)
    is_weights = path.name in _WEIGHTS and beside.is_file()
    return ResolvedSource(path, _read_config(beside) if is_weights else None, str(source))


def split_source(source: str | Path) -> tuple[str | None, str]:
    """Split "hf-hub:OWNER/NAME@REVISION" and "local-dir:DIR" into kind and rest; kind is None for a path.

    Raises:
        ValueError: nothing follows the colon, or it is the address of something else.
    """
    text = str(source)
    match = _SCHEME.fullmatch(text)
    if match is None or Path(text).exists():
        return None, text
    scheme, rest = match[1].lower(), match[2]
    ways = "a file, a folder, hf-hub:OWNER/NAME[@REVISION] or local-dir:DIR"
    if scheme not in _SOURCES:
        if rest.startswith("//"):
            raise ValueError(f"{text} is an address, which is not fetched; download it, and give {ways}.")
        if near := nearest(scheme, _SOURCES.values(), cutoff=0.5):
            raise ValueError(f"{text} begins with an unknown source {match[1]!r}; did you mean {near[0]}:{rest}?")
        return None, text
    if not rest.strip():
        raise ValueError(f"{text!r} names nothing after the colon; give {ways}.")
    return _SOURCES[scheme], rest


def folder_of(source: str | Path | None) -> Path | None:
    """Return the folder that a source names, None for a file, the hub or nothing."""
    kind, rest = (None, "") if source is None else split_source(source)
    path = Path(rest).expanduser()
    return path if rest and kind != "hf-hub" and path.is_dir() else None


def read_source(source: str | Path, ema: str = "auto", cache_dir: str | Path | None = None) -> Checkpoint:
    """Read the weights of a source, as `read_resolved` does; errors also as `resolve`."""
    return read_resolved(resolve(source, cache_dir), ema)


def read_resolved(found: ResolvedSource, ema: str = "auto") -> Checkpoint:
    """Read the weights of a source, and put what its config.json says into the checkpoint's metadata.

    The metadata then has ``args`` (model, model_kwargs, num_classes, how images are prepared) and ``class_names``,
    as a checkpoint of a training has.

    Raises:
        CheckpointError: as `read_checkpoint`, and where config and weights contradict each other.
    """
    checkpoint = read_checkpoint(found.file, ema)
    if found.config is not None:
        checkpoint.origin = found.origin
        _check_function(checkpoint, found.config)
        checkpoint.metadata.update(_noted(found.config, found.origin))
        _check_classes(checkpoint, found.config)
    return checkpoint


def holds_one_model(folder: Path) -> bool:
    """Tell whether a folder is one model in timm's format or in several files, rather than one of checkpoints."""
    return (folder / CONFIG).is_file() or holds_one_checkpoint(folder)


def _resolve_folder(folder: Path) -> ResolvedSource:
    """Find the weights of a folder: in timm's format, in several files, or of a training run."""
    origin = str(folder)
    config = _read_config(folder / CONFIG) if (folder / CONFIG).is_file() else None
    has_weights = any((folder / name).is_file() for name in _WEIGHTS)
    is_several = any((folder / name).is_file() for name in (ADAPTER_CONFIG, *_INDEXES))
    if holds_one_checkpoint(folder) and (is_several or not has_weights):
        return ResolvedSource(folder, config, origin)  # in several files, which `read_checkpoint` puts together
    if config is not None or has_weights:
        return ResolvedSource(_weights_in(folder), config, origin)
    best = next((folder / name for name in BEST_OF_A_RUN if (folder / name).is_file()), None) or best_of_mm(folder)
    if best is not None:
        _logger.info("%s is the folder of a run: taking %s", folder, best.name)
        return ResolvedSource(best, None, origin)
    files = _checkpoints_in(folder)
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} holds {len(files)} checkpoints ({some((file.name for file in files), 5)}) and nothing says "
            "which is meant; give one of these files."
        )
    return ResolvedSource(files[0] if files else folder, None, origin)  # a folder is `read_checkpoint`'s to judge


def _weights_in(folder: Path) -> Path:
    """Find the weights beside a config.json, by the order of names in which timm looks for them.

    Raises:
        CheckpointError: there are none.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    files = sorted(
        _checkpoints_in(folder), key=lambda file: [file.name.endswith(suffix) for suffix in _SUFFIXES][::-1]
    )
    if not files:
        raise CheckpointError(
            f"{folder} holds {CONFIG} and no weights ({_WEIGHTS[0]} or another of {', '.join(_SUFFIXES)}); fetch the "
            "whole repository (git lfs pull, hf download)."
        )
    if len(files) > 1:
        _logger.warning("%s holds several weights (%s): taking the first", folder, some(file.name for file in files))
    return files[0]


def _checkpoints_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("[!.]*") if file.name.endswith(_SUFFIXES) and file.is_file())


def best_of_mm(folder: Path) -> Path | None:
    """Find the best checkpoint in a work folder of MMDetection or MMSegmentation, else the last; None elsewhere."""
    best = [file for file in folder.glob("best_*.pth") if re.fullmatch(r"best_.+_(epoch|iter)_\d+\.pth", file.name)]
    if best:
        return max(best, key=lambda file: (_number_of(file), file.name))
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        last = folder / Path(pointer.read_text(encoding="utf-8", errors="replace").strip()).name
        if last.is_file():  # the folder may have been moved
            return last
    numbered = [file for file in folder.glob("*.pth") if re.fullmatch(r"(epoch|iter)_\d+\.pth", file.name)]
    return max(numbered, key=_number_of, default=None)


def _number_of(file: Path) -> int:
    return int((re.findall(r"\d+", file.stem) or ["0"])[-1])


# ---- config.json, timm's description of a model ----


def _read_config(file: Path, origin: str = "") -> dict[str, Any] | None:
    """Read timm's config.json; None for one of transformers', whose weights speak for themselves.

    Raises:
        CheckpointError: it is no such file.
    """
    name = origin or str(file)
    try:
        config = json.loads(read_small(file, _MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} cannot be read as JSON ({error}); fetch or write it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{name} holds a {type(config).__name__}, and a description of a model is expected.")
    if isinstance(config.get("architecture"), str):
        _check_config(config, name)
        return config
    if isinstance(config.get("model_type"), str):
        return None
    raise CheckpointError(
        f"{name} is none of timm's: it names no `architecture` (it has {some(config, 5) or 'nothing'}). For the "
        "weights alone give their file; timm.models.save_for_hf and `python -m davit.hub export` write such folders."
    )


def _check_config(config: dict[str, Any], name: str) -> None:
    """Raise a `CheckpointError` for a value whose type is not the one that timm writes."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "pretrained_cfg": dict,
        "model_args": dict,
        "num_classes": int,
        "label_names": (list, dict),
        "label_descriptions": dict,
    }
    of_pictures: dict[str, type | tuple[type, ...]] = {
        "input_size": list,
        "mean": (list, int, float),
        "std": (list, int, float),
        "crop_pct": (int, float),
        "crop_mode": str,
        "interpolation": str,
        **{key: kinds[key] for key in ("num_classes", "label_names", "label_descriptions")},
    }
    inner = config.get("pretrained_cfg")
    wrong = [(key, config[key]) for key, kind in kinds.items() if _is_other(config.get(key), kind)]
    if isinstance(inner, dict):
        wrong += [(key, inner[key]) for key, kind in of_pictures.items() if _is_other(inner.get(key), kind)]
        size = inner.get("input_size")
        if isinstance(size, list) and not (len(size) == 3 and all(type(side) is int and side > 0 for side in size)):
            wrong.append(("input_size", size))
    if wrong:
        key, value = wrong[0]
        raise CheckpointError(f"{name} says {key}: {short(value)}, which is not what timm writes there; correct it.")


def _is_other(value: object, kind: type | tuple[type, ...]) -> bool:
    return value is not None and (not isinstance(value, kind) or isinstance(value, bool))


def _said(config: Mapping[str, Any], key: str) -> Any:
    """Return what a config says: at its top, or else in its ``pretrained_cfg``; older ones have no such part."""
    inner = config.get("pretrained_cfg") or config
    return config[key] if config.get(key) is not None else inner.get(key)


def _noted(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Put what a config says into the words of a training's checkpoint."""
    architecture, model_args = str(config["architecture"]), dict(config.get("model_args") or {})
    name, kwargs = our_counterpart(architecture, model_args) or (architecture, model_args)
    if not timm.is_model(name):
        _logger.debug("%s is of the architecture %s, which timm does not know", origin, name)
    size = _said(config, "input_size")
    bands = kwargs.pop("in_chans", None)
    if bands is not None and size is not None:
        size = [bands, *size[1:]]
    elif bands is not None and bands != 3:
        kwargs["in_chans"] = bands
    num_classes = kwargs.pop("num_classes", None)
    args = {
        "model": name,
        "model_kwargs": kwargs,
        "num_classes": num_classes if num_classes is not None else _said(config, "num_classes"),
        **{key: _said(config, key) for key in _PICTURES},
        "input_size": size,
    }
    if _said(config, "task") == MULTILABEL:
        args["task"] = MULTILABEL
    noted: dict[str, Any] = {
        ARCHITECTURE_ENTRY: architecture,
        "args": {key: value for key, value in args.items() if value is not None},
    }
    if names := _label_names(config):
        noted["class_names"] = names
        noted[DESCRIPTIONS_ENTRY] = _said(config, "label_descriptions") or {}
    if function := said_by_config(config):  # the names of such weights need not tell
        noted[FUNCTION_ENTRY] = function
    return noted


def _label_names(config: Mapping[str, Any]) -> list[str]:
    """Name the classes in the order of the outputs; none where the config has no names."""
    names = _said(config, "label_names") or _said(config, "labels")
    if isinstance(names, dict):  # number to name, where some have none
        numbered = {int(key): str(value) for key, value in names.items() if re.fullmatch(r"\d{1,9}", str(key))}
        count = int(_said(config, "num_classes") or 0) or 1 + max(numbered, default=-1)
        if unused := [key for key in names if not re.fullmatch(r"\d{1,9}", str(key)) or int(key) >= count]:
            _logger.warning(
                "label_names has %s beside the numbers of classes (0 to %d): not used; write number: name.",
                *(some(map(short, unused), 3), count - 1),
            )
        names = [numbered.get(index, f"class {index}") for index in range(count)] if numbered else []
    return list(map(str, names)) if isinstance(names, list) else []


def _check_function(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    said, noted = said_by_config(config), said_beside(checkpoint.metadata)
    if said and noted and said != noted:
        raise CheckpointError(
            f"{checkpoint.origin} has the channel attention {said!r} by its {CONFIG}, and its weights are for "
            f"{noted!r}: they do not belong together; correct the architecture there, or give the weights' file alone."
        )


def _check_classes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    said = _said(config, "num_classes")
    found = checkpoint.davit
    heads = [name for key, name in found.names.items() if key.slot == "head.fc"] if found else []
    widths = {checkpoint.state_dict[name].shape[0] for name in heads if checkpoint.state_dict[name].dim()}
    if said and widths and widths != {said}:
        raise CheckpointError(
            f"{checkpoint.origin} says {said} classes in its {CONFIG}, and its weights are for {min(widths)}: they do "
            "not belong together; correct num_classes there, or give the file of the weights alone."
        )


def check_architecture(checkpoint: Checkpoint) -> None:
    """Raise a `CheckpointError` where the config.json of a source names a model that neither timm nor we know."""
    architecture = checkpoint.metadata.get(ARCHITECTURE_ENTRY)
    if isinstance(architecture, str):
        _check_architecture(architecture, checkpoint.origin)


def _check_architecture(architecture: str, origin: str) -> None:
    if not timm.is_model(architecture):
        near = some(nearest(architecture, timm.list_models(), 3))
        raise CheckpointError(
            f"{origin} is of the architecture {as_line(architecture)!r}, which neither timm {timm.__version__} nor "
            f"davit has{f' (near ones: {near})' if near else ''}; upgrade timm, or give `model=NAME` and the file "
            "of the weights."
        )


def noted_in(source: str) -> dict[str, Any]:
    """Return what the config.json of a source says, in the words of a training's flags: model, model_kwargs, mean ...

    Raises:
        ValueError, PretrainedError: as `config_of`.
    """
    return dict(_noted(config_of(source), source)["args"])


def config_of(source: str, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """Return what the config.json of ``hf-hub:OWNER/NAME[@REVISION]`` or ``local-dir:DIR`` says.

    Raises:
        ValueError: the name is malformed, or it has no such file, or one that names an unknown model.
        PretrainedError: the hub does not have it, or cannot be reached.
    """
    kind, rest = split_source(source)
    if kind == "hf-hub":
        config = _read_config(hub_file(rest, CONFIG, cache_dir), f"{CONFIG} of {source}")
    else:
        config = _read_config(Path(rest).expanduser() / CONFIG)
    if config is None:
        raise CheckpointError(f"{source}: its {CONFIG} is of transformers, not of timm; give the file of its weights.")
    _check_architecture(config["architecture"], source)
    return config


# ---- the hub ----


def _resolve_hub(name: str, cache_dir: str | Path | None) -> ResolvedSource:
    origin = f"hf-hub:{name}"
    config_file = hub_file(name, CONFIG, cache_dir)
    config = _read_config(config_file, f"{CONFIG} of {origin}")
    inner = (config or {}).get("pretrained_cfg")
    chosen = inner.get("hf_hub_filename") if isinstance(inner, dict) else None
    return ResolvedSource(_hub_weights(name, chosen, cache_dir), config, origin)


def _hub_weights(name: str, chosen: object, cache_dir: str | Path | None) -> Path:
    """Fetch the weights of a repository: one file, or several with their index, whose folder is returned."""
    if chosen:
        if Path(str(chosen)).is_absolute() or ".." in Path(str(chosen)).parts:
            raise CheckpointError(f"hf-hub:{name} names the weights {chosen!r}, which is no file of the repository.")
        return hub_file(name, str(chosen), cache_dir)
    unreachable: PretrainedError | None = None
    for file in (*_HUB_WEIGHTS, *_INDEXES):
        try:
            found = _hub_file_if_there(name, file, cache_dir)
        except _UnreachableError as error:  # another one may be in the cache
            unreachable = unreachable or error
            continue
        if found is not None:
            return _hub_shards(name, found, cache_dir) if file in _INDEXES else found
    if unreachable is not None:
        raise unreachable
    raise PretrainedError(
        f"hf-hub:{name} holds no weights ({' or '.join(_HUB_WEIGHTS)}); look at "
        f"{huggingface_hub.constants.ENDPOINT}/{name.partition('@')[0]}/tree/main for what it has."
    )


def _hub_shards(name: str, index: Path, cache_dir: str | Path | None) -> Path:
    try:
        files = sorted(set(json.loads(read_small(index, _MOST_CONFIG))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index.name} of hf-hub:{name} is no index of weights ({error}).") from error
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index.name} of hf-hub:{name} names {short(file)}, which is no file beside it.")
        hub_file(name, file, cache_dir)
    return index.parent


def hub_file(name: str, file: str, cache_dir: str | Path | None = None) -> Path:
    """Fetch a file of a repository of the hub, or find it in the cache.

    Args:
        name: OWNER/NAME, or OWNER/NAME@REVISION for a branch, a tag or a commit.

    Raises:
        ValueError: the name is malformed.
        PretrainedError: there is no such repository, revision or file, or the hub cannot be reached.
    """
    found = _hub_file_if_there(name, file, cache_dir)
    if found is None:
        raise PretrainedError(
            f"hf-hub:{name} has no {file}; look at {huggingface_hub.constants.ENDPOINT}/{name.partition('@')[0]}, "
            "or at its revision, for what it has."
        )
    return found


def _hub_file_if_there(name: str, file: str, cache_dir: str | Path | None) -> Path | None:
    """Fetch a file, None where the repository has no such file."""
    repository, revision = _split_repository(name)
    where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    cached = huggingface_hub.try_to_load_from_cache(repository, file, **where)
    is_commit = revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision)
    if isinstance(cached, str) and is_commit:
        return Path(cached)
    try:
        # asks once; the download itself would try for half a minute where there is no network
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file, revision=revision))
        return Path(huggingface_hub.hf_hub_download(repository, file, **where))
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PretrainedError(_why_not_there(name, error)) from error
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # the hub's client lets any error of its transport through
        if isinstance(cached, str):
            _logger.info("hf-hub:%s: %s as it is in the cache (the hub: %s)", name, file, type(error).__name__)
            return Path(cached)
        if isinstance(error, EntryNotFoundError) or cached is not None:  # the cache remembers what is not there, too
            return None
        raise _UnreachableError(_why_unreachable(name, file, cache_dir, error)) from error


def _split_repository(name: str) -> tuple[str, str | None]:
    repository, at, revision = name.strip().partition("@")
    if (at and not revision) or "@" in revision:
        raise ValueError(f"hf-hub:{name} has a malformed revision; write hf-hub:OWNER/NAME@REVISION, with one @.")
    try:
        huggingface_hub.utils.validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"hf-hub:{name} names no repository; write hf-hub:OWNER/NAME ({error}).") from error
    if revision and not re.fullmatch(r"[\w][\w./+-]*", revision):
        raise ValueError(f"hf-hub:{name} has the revision {revision!r}, which is no branch, tag or commit.")
    return repository, revision or None


def _why_not_there(name: str, error: Exception) -> str:
    repository, _, revision = name.partition("@")
    page = f"{huggingface_hub.constants.ENDPOINT}/{repository}"
    if isinstance(error, GatedRepoError):
        return f"hf-hub:{name} is gated: accept its conditions at {page}, and log in by `hf auth login` (or HF_TOKEN)."
    if isinstance(error, RevisionNotFoundError):
        return (
            f"hf-hub:{name}: the repository has no revision {revision!r}; {page}/commits/main lists commits, and "
            "without @ the branch main is taken."
        )
    return (
        f"hf-hub:{name}: the hub shows no such repository. Check the name (hf-hub:OWNER/NAME); if it is private, log "
        "in by `hf auth login` or set HF_TOKEN to a token that may read it."
    )


def _why_unreachable(name: str, file: str, cache_dir: str | Path | None, error: Exception) -> str:
    repository, revision = _split_repository(name)
    cache = Path(cache_dir or huggingface_hub.constants.HF_HUB_CACHE)
    folder = cache / f"models--{repository.replace('/', '--')}"
    refs = sorted(str(ref.relative_to(folder / "refs")) for ref in (folder / "refs").rglob("*") if ref.is_file())
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE keeps the hub from being asked"
    else:
        why = f"the hub cannot be reached ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    has = f"; of this repository it has the revisions {', '.join(refs)}" if refs else ""
    return (
        f"hf-hub:{name}: {why}, and the cache {cache} does not have {file} of it{has}. Go online once, or fetch it "
        f"elsewhere by `hf download {repository}{f' --revision {revision}' if revision else ''}` for local-dir:DIR."
    )


# ---- what timm's pretrained_cfg asks for ----


def asks_for_published(variant: str, cfg: Mapping[str, Any]) -> bool:
    """Tell whether timm's ``pretrained_cfg`` is the variant's own, which names the published weights."""
    others = ("source", "state_dict", "file", "hf_hub_filename")
    published = PUBLISHED.get(variant)
    return published is not None and cfg.get("hf_hub_id") == published.hub_id and not any(map(cfg.get, others))


def load_configured(
    model: nn.Module, cfg: Mapping[str, Any], cache_dir: str | Path | None = None
) -> LoadReport | None:
    """Load the weights that timm's ``pretrained_cfg`` names into a model, with the audit of `load_checkpoint`.

    As in timm, ``source`` decides where it is "hf-hub" or "local-dir"; else the first that is there of ``state_dict``,
    ``file``, ``hf_hub_id`` and ``url``. A head for another number of classes than the config's starts again, and is
    reported.

    Args:
        cfg: the fields of timm's `PretrainedCfg`.
        cache_dir: of the hub's and of downloaded files, in place of the user's caches.

    Returns:
        The report, or None where the model has a loader of its own and ``custom_load`` asks for it.

    Raises:
        ValueError: no weights are named, or they do not fit (`CheckpointError`).
        PretrainedError: they cannot be fetched.
    """
    weights, is_whole = _weights_of(cfg, cache_dir)
    if cfg.get("custom_load") and isinstance(weights, Path) and hasattr(model, "load_pretrained"):
        model.load_pretrained(str(weights))  # type: ignore[operator]
        return None
    is_file = isinstance(weights, Path)
    checkpoint = read_checkpoint(weights) if is_file else unwrap(weights, "pretrained_cfg's state_dict")
    _drop_first_classes(checkpoint, cfg, model)
    _adapt_stem(checkpoint, model)
    report = load_checkpoint(model, checkpoint)
    wanted, has = cfg.get("num_classes"), getattr(model, "num_classes", None)
    if is_whole and has and wanted == has and "head.weight" in report.missing:
        raise CheckpointError(
            f"{report.origin} is for {wanted} classes by its {CONFIG}, and its weights have "
            f"{report.missing['head.weight']}: they do not belong together. Give `num_classes` other than {wanted} "
            "for a new head."
        )
    return report


def _weights_of(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> tuple[Any, bool]:
    """Find the weights that a ``pretrained_cfg`` names: a path or tensors, and whether they are a whole model's."""
    source, hub_id, filename = cfg.get("source") or "", cfg.get("hf_hub_id"), cfg.get("hf_hub_filename")
    if source == "hf-hub":
        if not hub_id:
            raise ValueError("pretrained_cfg says source='hf-hub' and no hf_hub_id; name OWNER/NAME there.")
        return _hub_weights(str(hub_id), filename, cache_dir), True
    if source == "local-dir":
        folder = Path(str(cfg.get("file") or ""))
        if not cfg.get("file") or not folder.is_dir():
            raise CheckpointError(f"local-dir:{cfg.get('file') or ''}: there is no such folder; check the path.")
        return _resolve_folder(folder).file, True
    if cfg.get("state_dict"):
        return cfg["state_dict"], False
    if cfg.get("file"):
        return resolve(cfg["file"], cache_dir).file, False
    if hub_id:
        return _hub_weights(str(hub_id), filename, cache_dir), False
    if cfg.get("url"):
        return _download_url(cfg["url"], cache_dir), False
    raise ValueError(
        f"pretrained=True, and nothing says which weights: {_none_published(str(cfg.get('architecture')))} Or name "
        "some by pretrained_cfg_overlay=dict(file=...), or hf_hub_id, url or state_dict."
    )


def _drop_first_classes(checkpoint: Checkpoint, cfg: Mapping[str, Any], model: nn.Module) -> None:
    """Leave out the outputs before ``label_offset``, such as that of a class "background"."""
    offset = cfg.get("label_offset") or 0
    if offset > 0 and cfg.get("num_classes") == getattr(model, "num_classes", None) and checkpoint.davit:
        for key, name in checkpoint.davit.names.items():
            if key.slot == "head.fc":
                checkpoint.state_dict[name] = checkpoint.state_dict[name][offset:]


def _adapt_stem(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Adapt the input convolution to the model's number of channels; from three `load_checkpoint` does it."""
    wanted = getattr(model, "in_chans", None)
    for key, name in checkpoint.davit.names.items() if checkpoint.davit and wanted else ():
        weight = checkpoint.state_dict[name]
        if (
            (key.slot, key.param) == ("stem.proj", "weight")
            and weight.dim() == 4
            and weight.shape[1] not in (3, wanted)
        ):
            checkpoint.state_dict[name] = adapt_input_conv(wanted, weight, base_chans=weight.shape[1])
            _logger.warning("%s: adapted from %d to %d input channels", checkpoint.origin, weight.shape[1], wanted)


def _download_url(url: Any, cache_dir: str | Path | None) -> Path:
    """Fetch a file by its address into torch's folder, where a file of its name is taken for it, as in timm."""
    address, name = url if isinstance(url, tuple | list) else (url, "")
    name = name or Path(urllib.parse.urlparse(str(address)).path).name
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / name
    if file.is_file():
        _logger.info("%s: using %s, which was fetched before", address, file)
        return file
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(str(address), str(file), progress=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise PretrainedError(
            f"{address} cannot be fetched ({type(error).__name__}: {error}); fetch it by hand and put it at {file}, "
            "or name a file: pretrained_cfg_overlay=dict(file=...)."
        ) from error
    return file


# ---- published weights ----


@dataclass(frozen=True)
class Published:
    """Name the files of a hub repository with the weights of one variant; any will do, the first is preferred.

    Attributes:
        files: name to SHA-256 in hex, or None if that is not known.
    """

    hub_id: str
    files: dict[str, str | None]

    def local_path(self, name: str) -> Path:
        """Return where a file fetched by hand is looked for: in the folder that holds those of all variants."""
        return weights_folder() / (self.hub_id.split("/")[-1] + Path(name).suffix)


PUBLISHED: dict[str, Published] = {
    "DaViT_tiny": Published(
        "timm/davit_tiny.msft_in1k",
        {
            "model.safetensors": "085937207d2e51c1d1e0a3ee5f3156994cce718dc02aef7fa8cec502784adda8",
            "pytorch_model.bin": "8e5dd07e74925c9cc3831bb0f2acb06aabbb39b918ce93597e741f61f6325753",
        },
    ),
    "DaViT_small": Published(
        "timm/davit_small.msft_in1k",
        {
            "model.safetensors": "cef0f04c734989efdb4a76aef07a4cea8a968cdf74059d8bc15f38b74df25e8f",
            "pytorch_model.bin": "b96bf0cd3817365d1f23ea990979627aab01dc1ee1c6ea8a0caa50dec4625e22",
        },
    ),
    "DaViT_base": Published("timm/davit_base.msft_in1k", {"model.safetensors": None, "pytorch_model.bin": None}),
}


def weights_folder() -> Path:
    """Return where weights fetched by hand are looked for: $DAVIT_WEIGHTS_DIR, or else torch's downloads."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "checkpoints"


def fetch_pretrained(variant: str, cache_dir: str | Path | None = None) -> Path:
    """Return the file with a variant's published weights, downloaded if it is not here yet.

    Args:
        cache_dir: of the hub's files, in place of the user's cache.

    Raises:
        ValueError: no weights of this variant are published; names those that have some.
        PretrainedError: no network, or a file that is not the published one.
    """
    published = PUBLISHED.get(variant)
    if published is None:
        raise ValueError(_none_published(variant))
    for name in published.files:
        if (path := published.local_path(name)).is_file():
            return _verified(path, name, variant)
    for name in published.files:
        cached = huggingface_hub.try_to_load_from_cache(published.hub_id, name, cache_dir=cache_dir)
        if isinstance(cached, str):
            return _verified(Path(cached), name, variant)
    return _download(published, variant, cache_dir)


def load_pretrained(
    model: nn.Module, variant: str, file: str | Path | None = None, cache_dir: str | Path | None = None
) -> LoadReport:
    """Load the published weights of a variant into a model, with the rules of `load_checkpoint`.

    Args:
        file: weights to use in place of the published ones; their hash is not checked.
        cache_dir: as in `fetch_pretrained`.

    Raises:
        ValueError: nothing is published for this variant, or the weights do not fit (`CheckpointError`).
        PretrainedError: the published weights could not be fetched.
    """
    return load_checkpoint(model, fetch_pretrained(variant, cache_dir) if file is None else file)


def _none_published(variant: str) -> str:
    return (
        f"no pretrained weights of {variant!r} are published; there are some for {', '.join(PUBLISHED)}. "
        "Use pretrained=False, and load_checkpoint for weights of your own."
    )


def _download(published: Published, variant: str, cache_dir: str | Path | None) -> Path:
    reason: Exception | None = None
    for name in published.files:
        try:
            # asks once; the download itself would try for half a minute where there is no network
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(published.hub_id, name))
            path = Path(huggingface_hub.hf_hub_download(published.hub_id, name, cache_dir=cache_dir))
        except RemoteEntryNotFoundError as error:
            reason = error  # this file is not published, the next may be
        except Exception as error:  # the hub's client lets any error of its transport through
            reason = error
            break
        else:
            return _verified(path, name, variant)
    text = f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"
    raise PretrainedError(
        f"the pretrained weights of {variant} could not be downloaded ({text}). {_by_hand(published)}"
    ) from reason


def _verified(path: Path, name: str, variant: str) -> Path:
    published = PUBLISHED[variant]
    if (known := published.files[name]) is None:
        _logger.info("%s: using %s; its hash is not known, so it is not checked", variant, path)
    elif (digest := sha256_of(path)) != known:
        raise PretrainedError(
            f"{path} is not the published weights of {variant}: its sha256 is {digest}, theirs is "
            f"{known}. It is damaged or another file: delete it and try again; to use it as it is, "
            f"load it by its path (file={path!s}, or load_checkpoint). {_by_hand(published)}"
        )
    return path


def _by_hand(published: Published) -> str:
    first, *others = published.files
    elsewhere = " or ".join(f"{name} as {published.local_path(name).name}" for name in others)
    return (
        f"To fetch them by hand: get {first} of {published.hub_id} at "
        f"{huggingface_hub.hf_hub_url(published.hub_id, first)} and put it at "
        f"{published.local_path(first)} (or {elsewhere}; set {FOLDER_VARIABLE} for another folder)."
    )
