"""Write a model as a folder in timm's format: weights, config.json and a model card, all checked before they are kept.

A DaViT is written as timm's own port of it wherever that computes the same function, so that timm and transformers
read it without davit; any other model as itself.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ..checkpoint import CheckpointError, convert_with_report, write_checkpoint
from ..checkpoint.names import FLORENCE2_FUNCTION
from ..checkpoint.read import FUNCTION_ENTRY
from ..choices import MULTILABEL
from ..counterparts import TIMM_DAVITS, NoCounterpartError, timm_counterpart
from ..engine.load_model import LoadedModel, ModelOptions, load_model
from ..files import write_bytes
from ..kernels import plain
from ..limits import short
from ..predict.names import names_in
from ..pretrained import CONFIG, DESCRIPTIONS_ENTRY
from ..text import as_utf8, in_bytes, some
from ..variants import VARIANTS
from .card import Card, results_of, write_card

log = logging.getLogger(__name__)

WEIGHTS, CARD = "model.safetensors", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
DIFFERENT = 3  # exit status
TOLERANCE = 1e-5  # of logits, and of their size where it is above 1
_PICTURES = 2  # of the check
_NOT_OF_MODEL_ARGS = ("num_classes", "accelerate", "drop_rate", "drop_path_rate", "weight_init")


class DifferentError(RuntimeError):
    """The exported model computes something else than the one it was made of; nothing was written."""

    exit_status = DIFFERENT


@dataclass(frozen=True)
class ExportOptions:
    """Say how a model is exported.

    Attributes:
        model: the architecture; None leaves it to the checkpoint.
        model_options: how it is built and how images are prepared.
        architecture: "timm" insists on timm's port of a DaViT, "davit" keeps ours, "auto" takes timm's where it can.
        class_map: a file or data folder with the class names, in place of the checkpoint's.
        name: of the model, in the card; None for that of the folder.
        license, data, description: for the card.
        source: how the card calls the model.
    """

    model: str | None = None
    model_options: ModelOptions = field(default_factory=lambda: ModelOptions(no_test_pool=True))
    architecture: str = "auto"
    class_map: str | None = None
    name: str | None = None
    license: str = ""
    data: str = ""
    description: str = ""
    source: str = "hf-hub:OWNER/NAME"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: name to size in bytes.
        architecture: in config.json.
        needs_davit: why timm and transformers need davit to read it; empty where they do not.
        difference: largest difference of the logits, of the model read back and the one it was made of.
        card: the text of the model card.
    """

    folder: Path
    files: Mapping[str, int]
    architecture: str
    needs_davit: str
    difference: float
    card: str

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} ({in_bytes(size)})" for name, size in self.files.items())
        return (
            f"{self.architecture}: {sizes}; read back by timm, its logits differ by at most {self.difference:.2g}"
            + (f". It needs davit: {self.needs_davit}" if self.needs_davit else "")
            + "."
        )


def export(
    checkpoint: str | Path, folder: str | Path, options: ExportOptions | None = None, *, force: bool = False
) -> Exported:
    """Write a checkpoint as a folder in timm's format: model.safetensors, config.json and README.md, and no pickle.

    The folder is read back by timm, and compared with the model in logits on drawn images, before it gets its name.

    Args:
        checkpoint: any source that `davit.load` takes for a classifier.
        force: replace an earlier export.

    Raises:
        ValueError: the checkpoint cannot be loaded or expressed, or the folder exists (`CheckpointError`).
        DifferentError: what was written computes something else; nothing is left of it.
        OSError: the folder cannot be written.
    """
    options = options or ExportOptions()
    folder = Path(folder)
    _check_destination(folder, force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside the folder, so that a rename suffices
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        exported = write_folder(checkpoint, partial, options, options.name or folder.absolute().name)
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder, **{name: value for name, value in vars(exported).items() if name != "folder"})


def write_folder(checkpoint: str | Path, folder: Path, options: ExportOptions, name: str) -> Exported:
    """Write an export into an empty folder, and check it; arguments and errors as in `export`."""
    loaded = load_model(options.model, checkpoint or None, options.model_options, torch.device("cpu"))
    if getattr(loaded.model, "num_classes", 0) < 1:
        raise ValueError(f"{checkpoint} is of a model without a classifier, and only classifiers are exported.")
    form = _form_of(loaded, options.architecture)
    metadata = {FUNCTION_ENTRY: form.function} if form.function else {}
    write_checkpoint(folder / WEIGHTS, form.tensors, metadata, force=False)
    config = _config(loaded, form, options)
    write_bytes(folder / CONFIG, f"{json.dumps(config, indent=2, ensure_ascii=False)}\n".encode())
    difference = _check(loaded.model, folder, config["pretrained_cfg"]["input_size"])
    results = results_of(loaded.checkpoint) if loaded.checkpoint is not None else []
    card = write_card(
        Card(
            name=name,
            config=config,
            parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
            results=results,
            needs_davit=form.needs_davit,
            license=as_utf8(options.license) or str(config["pretrained_cfg"].get("license", "")),
            data=as_utf8(options.data),
            description=as_utf8(options.description),
            source=options.source,
            weights="the running average (EMA) of training" if loaded.weights == "EMA" else "",
        )
    )
    write_bytes(folder / CARD, card.encode())
    sizes = {file: (folder / file).stat().st_size for file in FILES}
    return Exported(folder, sizes, form.architecture, form.needs_davit, difference, card)


# ---- as which model ----


@dataclass(frozen=True)
class _Form:
    """The names under which a model is written.

    Attributes:
        model_args: of config.json; num_classes is never among them, in_chans and global_pool only where they are not
            the usual ones (transformers hands num_classes over twice otherwise).
        function: whose channel attention the weights were trained with, where their names do not tell; else empty.
    """

    architecture: str
    model_args: dict[str, Any]
    tensors: Mapping[str, Tensor]
    first_conv: Any
    classifier: Any
    needs_davit: str = ""
    function: str = ""


def _form_of(loaded: LoadedModel, wanted: str) -> _Form:
    state = plain(loaded.model).state_dict()
    usual = {"in_chans": 3, "global_pool": "avg"}
    unusual = {key: value for key, value in loaded.kwargs.items() if usual.get(key, value) != value}
    kwargs = {key: value for key, value in loaded.kwargs.items() if key not in (*usual, *_NOT_OF_MODEL_ARGS)}
    cfg = getattr(loaded.model, "pretrained_cfg", None) or {}
    if loaded.name not in VARIANTS:
        args = _as_json({**kwargs, **unusual}, loaded.name)
        return _Form(loaded.name, args, state, cfg.get("first_conv"), cfg.get("classifier"))
    if wanted == "davit":
        reason = "it was asked for as a model of davit's"
    else:
        try:
            architecture, model_args = timm_counterpart(loaded.name, {**kwargs, **unusual})
            return _as_timms(loaded, state, architecture, {**model_args, **unusual})
        except (NoCounterpartError, CheckpointError) as error:
            if wanted == "timm":
                raise
            reason = f"timm has no model that computes what this one does ({error})"
    args = _as_json({**kwargs, **unusual}, loaded.name)
    return _Form(loaded.name, args, state, "patch_embeds.0.proj", "head", needs_davit=reason)


def _as_timms(
    loaded: LoadedModel, state: Mapping[str, Tensor], architecture: str, model_args: Mapping[str, Any]
) -> _Form:
    tensors, _ = convert_with_report(state, "timm", loaded.name)
    is_named = any("_block." in name for name in tensors)
    if is_named != TIMM_DAVITS[architecture]["named_blocks"]:
        model_args = {**model_args, "named_blocks": is_named}
    is_fl = {**TIMM_DAVITS[architecture], **model_args}["channel_attn_v2"]
    function = FLORENCE2_FUNCTION if is_fl and not is_named else ""
    return _Form(architecture, _as_json(model_args, architecture), tensors, "stem.conv", "head.fc", function=function)


def _as_json(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(json.dumps(dict(arguments), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} was built with {short(dict(arguments))}, which config.json cannot hold ({error})."
        ) from error


def _config(loaded: LoadedModel, form: _Form, options: ExportOptions) -> dict[str, Any]:
    """Describe the model as timm's config.json does."""
    num_classes, size = int(loaded.model.num_classes), [int(side) for side in loaded.config["input_size"]]
    names = _names(loaded, options.class_map, num_classes)
    descriptions = (loaded.checkpoint.metadata.get(DESCRIPTIONS_ENTRY) if loaded.checkpoint else None) or {}
    descriptions = {name: descriptions[name] for name in names if name in descriptions}
    pretrained_cfg: dict[str, Any] = {
        "custom_load": False,
        "input_size": size,
        "fixed_input_size": False,
        "interpolation": loaded.config["interpolation"],
        "crop_pct": float(loaded.config["crop_pct"]),
        "crop_mode": loaded.config["crop_mode"],
        "mean": [float(value) for value in loaded.config["mean"]],
        "std": [float(value) for value in loaded.config["std"]],
        "num_classes": num_classes,
        "pool_size": [-(-side // 32) for side in size[1:]],
        "first_conv": form.first_conv,
        "classifier": form.classifier,
    }
    if loaded.name not in VARIANTS:
        own = getattr(loaded.model, "pretrained_cfg", None) or {}
        pretrained_cfg |= {key: own[key] for key in ("fixed_input_size", "pool_size") if key in own}
    if options.license:
        pretrained_cfg["license"] = as_utf8(options.license)
    if options.description:
        pretrained_cfg["description"] = as_utf8(options.description)
    return {
        "architecture": form.architecture,
        "num_classes": num_classes,
        "num_features": int(loaded.model.num_features),
        "global_pool": loaded.kwargs.get("global_pool", "avg"),
        **({"label_names": names} if names else {}),
        **({"task": MULTILABEL} if loaded.is_multilabel else {}),
        **({"label_descriptions": descriptions} if descriptions else {}),
        **({"model_args": form.model_args} if form.model_args else {}),
        "pretrained_cfg": pretrained_cfg,
    }


def _names(loaded: LoadedModel, class_map: str | None, num_classes: int) -> list[str]:
    """Name the classes; none where they are not known, and for ImageNet's thousand, which every reader knows."""
    names = names_in(Path(class_map), num_classes) if class_map else loaded.class_names
    names = [as_utf8(name) for name in names or []]
    if not names or len(names) != num_classes:
        if num_classes != 1000:
            log.warning(
                "No names of the %d classes are known: readers will number them; give --class-map.", num_classes
            )
        return []
    return [] if names == ImageNetInfo("imagenet-1k").label_names() else names


# ---- the check, and the place ----


def _check(model: nn.Module, folder: Path, input_size: list[int]) -> float:
    """Read a folder back by timm, and return the largest difference of its logits.

    Raises:
        DifferentError: it is above the tolerance, or not a number.
    """
    with _quiet("timm"):
        again = plain(timm.create_model(f"local-dir:{folder}", pretrained=True)).eval()
    bands, height, width = input_size
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for size in {(height, width), (height - height // 5, width)}:  # the second is a multiple of no window
        try:
            images = torch.randn(_PICTURES, bands, *size, generator=generator)
            with torch.inference_mode():
                ours, theirs = plain(model)(images).double(), again(images).double()
        except Exception as error:
            if size == (height, width):
                raise DifferentError(
                    f"the exported model cannot be run by timm ({type(error).__name__}: {error}); nothing was written."
                ) from error
            continue  # a model for one size of images
        if not torch.isfinite(ours).all():
            raise DifferentError(
                "the model's own outputs are not finite: its weights are damaged; nothing was written."
            )
        difference = float((ours - theirs).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
            raise DifferentError(
                f"read back by timm, the model gives logits that differ by {difference:.3g}, and {TOLERANCE:g} is "
                "allowed: it computes something else than the one it was made of (was davit/model.py edited?). "
                "--architecture davit exports it as it is here. Nothing was written."
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a package's loggers say nothing below a warning."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_destination(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder.")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and not force:
        raise ValueError(f"{folder} exists and is not replaced; give another name, or --force.")
    if others := [name for name in there if name not in FILES and not name.startswith(".")]:
        raise ValueError(
            f"{folder} holds other things than an earlier export ({some(others, 4)}), and would be uploaded with "
            "them; give another name."
        )


def _put_in_place(partial: Path, folder: Path) -> None:
    """Give the finished folder its name; in a folder that is there its files are replaced, all or none."""
    if not folder.exists():
        partial.chmod(0o777 & ~_umask())  # a temporary folder is closed to others
        partial.rename(folder)
        return
    # New weights beside the earlier names would be a wrong order of classes: so config.json goes first and comes last,
    # and an error puts the earlier files back.
    order, earlier = (CONFIG, WEIGHTS, CARD), partial / "earlier"
    earlier.mkdir()
    try:
        for file in order:
            if (folder / file).exists():
                os.replace(folder / file, earlier / file)  # noqa: PTH105 (Path.replace says less)
        for file in reversed(order):
            os.replace(partial / file, folder / file)  # noqa: PTH105
    except BaseException:
        (folder / CONFIG).unlink(missing_ok=True)
        for file in reversed(order):
            if (earlier / file).exists():
                os.replace(earlier / file, folder / file)  # noqa: PTH105
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
