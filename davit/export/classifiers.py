"""Make programs of a classifier's checkpoint: its logits, its features, its pyramid of maps."""

from __future__ import annotations

import importlib
import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_checkpoint, sha256_of
from ..engine.load_model import LoadedModel, ModelOptions, load_model
from ..kernels import plain
from ..model import DaViT
from ..predict.names import class_names
from ..pyramid import DaViTPyramid
from ..runtimes import Metadata
from ..variants import VARIANTS
from .options import ExportOptions
from .program import Program, Size

log = logging.getLogger(__name__)

_TAIL = ("norms.", "head.")
TOLERANCE = 1e-5
#: sizes of every check: odd, not square, smaller than a window of the last stages, more than one image
SIZES: tuple[Size, ...] = ((1, 33, 33), (2, 47, 101), (1, 96, 64), (3, 150, 75))


def classifier_program(source: str | Path | None, options: ExportOptions) -> Program:
    """Load a classifier and make the program that `options.task` names.

    Raises:
        ValueError: the checkpoint, the model and the options do not fit one another.
    """
    given = {"no_test_pool": True, **options.model_options}
    loaded = load_model(
        options.model, source or None, ModelOptions(**given), torch.device("cpu"),
        needs_head=options.task == "classification",
    )  # fmt: skip
    model = plain(loaded.model).float().eval().requires_grad_(False)
    module, names, axes = _outputs(model, loaded, options.task)
    size = tuple(int(side) for side in loaded.config["input_size"])
    facts = provenance(loaded, options)
    if loaded.thresholds is not None and options.task == "classification":
        facts["extra"]["thresholds"] = loaded.thresholds.tolist()  # each class has a probability by itself
    metadata = Metadata(
        task=options.task,
        model=loaded.name,
        input_size=size,  # type: ignore[arg-type]
        output_names=names,
        class_names=_class_names(loaded, options) if options.task == "classification" else None,
        mean=tuple(float(value) for value in loaded.config["mean"]),
        std=tuple(float(value) for value in loaded.config["std"]),
        crop_pct=float(loaded.config["crop_pct"]),
        crop_mode=str(loaded.config["crop_mode"]),
        interpolation=str(loaded.config["interpolation"]),
        decoding=vars(loaded.decoding),
        temperature=loaded.temperature if options.task == "classification" else 1.0,
        **facts,
    )
    sizes = ((2, size[1], size[2]), *SIZES)
    return Program(module, metadata, axes, sizes, TOLERANCE)


def provenance(loaded: LoadedModel, options: ExportOptions) -> dict[str, Any]:
    """Say where weights come from: the metadata's licence, checkpoint, sha256, function and versions."""
    cfg = getattr(loaded.model, "pretrained_cfg", None) or {}
    file = loaded.file
    return {
        "licence": options.licence or str(cfg.get("license") or ""),
        "checkpoint": file.name if file is not None else f"published weights of {loaded.name}",
        "sha256": sha256_of(file) if file is not None and file.is_file() else "",
        "function": loaded.checkpoint.function if loaded.checkpoint is not None and loaded.checkpoint.davit else "",
        "davit": importlib.import_module("davit").__version__,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "extra": {
            "weights": loaded.weights,
            "parameters": loaded.parameter_count,
            **({"labels": loaded.class_names} if loaded.class_names else {}),  # as the training's data calls them
        },
    }


class _Outputs(nn.Module):
    """Return the output of a model as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(images)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


class _Features(nn.Module):
    """Return what a model hands to its last layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model.forward_head(self.model.forward_features(images), pre_logits=True),)


def _outputs(
    model: Any, loaded: LoadedModel, task: str
) -> tuple[nn.Module, tuple[str, ...], Sequence[dict[int, str]]]:
    if task == "classification":
        if getattr(model, "num_classes", 0) < 1:
            raise ValueError(f"{loaded.name} was loaded without a classifier; `features=True` exports what it has.")
        return _Outputs(model), ("logits",), ({0: "batch"},)
    if task == "features":
        for part in ("forward_features", "forward_head"):
            if not hasattr(model, part):
                raise ValueError(f"{loaded.name} has no {part}(): its features cannot be told from its logits.")
        return _Features(model), ("features",), ({0: "batch"},)
    if task == "pyramid":
        pyramid = _pyramid(loaded)
        levels = [f"c{level + 2}" for level in pyramid.out_indices]
        steps = [info["reduction"] for info in pyramid.feature_info]
        axes = [{0: "batch", 2: f"height_{step}", 3: f"width_{step}"} for step in steps]
        return _Outputs(pyramid), tuple(levels), axes
    raise ValueError(f"`task={task}` is unknown; choose from classification, features, pyramid.")


def _pyramid(loaded: LoadedModel) -> DaViTPyramid:
    """Make the pyramid of a DaViT's stages, with the norms of its levels where the checkpoint has them.

    Raises:
        ValueError: it is another model, or one whose stages are not those of its arguments.
    """
    if loaded.name not in VARIANTS or not isinstance(loaded.model, DaViT):
        raise ValueError(f"`pyramid=True` is for DaViT's variants ({', '.join(VARIANTS)}), not {loaded.name}.")
    of_classifiers = ("num_classes", "global_pool", "drop_rate", "accelerate")
    kwargs = {name: value for name, value in loaded.kwargs.items() if name not in of_classifiers}
    stages = tuple(range(loaded.model.num_stages))
    pyramid = DaViTPyramid(**{**VARIANTS[loaded.name].model_kwargs(), **kwargs, "out_indices": stages})
    state = {name: value for name, value in plain(loaded.model).state_dict().items() if not name.startswith(_TAIL)}
    norms = {name for name in pyramid.state_dict() if name.startswith("norm")}
    if loaded.checkpoint is not None:
        report = load_checkpoint(pyramid, loaded.checkpoint, logger=logging.getLogger("davit.export.quiet"))
        norms &= set(report.missing)
    else:
        pyramid.load_state_dict(state, strict=False)
    if norms:
        log.warning(
            "The weights are a classifier's, which has no norms of the four maps: each is normalised to mean 0 and "
            "std 1 at every position, without weights, as at the start of a detector's training."
        )
    return pyramid.eval().requires_grad_(False)


def _class_names(loaded: LoadedModel, options: ExportOptions) -> tuple[str, ...] | None:
    """Name the classes as predict.py does; None where they would only be numbered."""
    count = int(loaded.model.num_classes)
    names = class_names(count, noted=loaded.described_names, source=options.class_map)
    if names == tuple(f"class {index}" for index in range(count)):
        log.warning("No names of the %d classes are known: readers will number them; give --class-map.", count)
        return None
    return tuple(names)
