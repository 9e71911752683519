"""Make programs of MMDetection's detectors and MMSegmentation's segmentors: a config and a checkpoint of the whole."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.read import sha256_of
from ..kernels import plain
from ..pretrained import best_of_mm, folder_of
from ..runtimes import Metadata
from ..text import install_extra, some
from .detectors import Normalised, detector_graph
from .options import ExportOptions
from .program import Outputs, Program, Size, largest_relative
from .segmentors import segmentor_graph
from .suppression import onnx_translations

#: Of boxes, scores and masks, by their size; and the share of objects, or of pixels, that may differ by more.
TOLERANCE = 1e-3
SIZES: tuple[Size, ...] = ((1, 128, 96), (2, 61, 131), (1, 224, 160))
SUPPRESSING = ("onnx", "openvino", "tensorrt")  # formats whose operators have NonMaxSuppression
_LEFT_OUT = ("LoadAnnotations", "LoadPanopticAnnotations")
_PACKED = ("PackDetInputs", "PackSegInputs")


def of_openmmlab(source: str | Path | None, options: ExportOptions) -> tuple[str | Path, Path] | None:
    """Return the config and the checkpoint of a detector or segmentor; None where the source is something else.

    Raises:
        ValueError: a config is named without a checkpoint, or a work folder has several configs.
    """
    folder = folder_of(source)
    best = best_of_mm(folder) if folder is not None else None
    if options.config is not None:
        if source is None or (folder is not None and best is None):
            raise ValueError(f"`config={options.config}` needs the checkpoint of a detector or segmentor.")
        return options.config, best or Path(str(source))
    if best is None or folder is None or not (configs := sorted(folder.glob("*.py"))):
        return None
    if len(configs) > 1:
        raise ValueError(f"{folder} has the configs {some((one.name for one in configs), 5)}; name one by `config`.")
    return configs[0], best


def openmmlab_program(config: str | Path, checkpoint: Path, options: ExportOptions, to: str = "onnx") -> Program:
    """Build a detector or segmentor and make its program.

    Raises:
        ValueError: the config and the checkpoint do not fit one another, or the model has a part that an export
            does not write.
    """
    try:
        from ..openmmlab.predictor import Predictor
    except ImportError as error:
        raise ValueError(
            f"{checkpoint} is of a detector or segmentor, which needs OpenMMLab's packages ({error}): "
            f"{install_extra('openmmlab')}"
        ) from error
    predictor = Predictor(config, checkpoint, device="cpu")
    model: Any = plain(predictor.model).float().eval()
    is_segmentor = predictor.cfg.default_scope == "mmseg"
    if is_segmentor and options.int8 is not None:
        raise ValueError(
            f"`int8={options.int8.data}` is for classifiers and detectors: nothing measures here what it costs a "
            "segmentor. Leave it out."
        )
    if not (is_segmentor or options.raw) and to not in SUPPRESSING:
        raise ValueError(
            f"`to={to}` has no operator that suppresses overlapping boxes: choose from {', '.join(SUPPRESSING)}, or "
            "`raw=True` for RetinaNet."
        )
    if options.fp16 and not is_segmentor:
        raise ValueError("`fp16=True`: float16 has no room for places of boxes; a detector is exported in float32.")
    images, mean, std = _preparation(model.data_preprocessor, predictor.bands, is_segmentor)
    write = segmentor_graph if is_segmentor else detector_graph
    module, names = write(model, images, raw=options.raw)
    facts = {
        "resize": _resize_rule(predictor.steps),
        "pad": {"divisor": images.divisor, "value": images.value},
        "as_stored": predictor.as_stored,
        "as_float": predictor.as_float,
        "palette": [list(colour) for colour in predictor.palette],
        "config": Path(config).name,
        "raw": options.raw,
    }
    if is_segmentor:
        facts["align_corners"] = bool(model.align_corners)
        facts["threshold"] = float(model.decode_head.threshold) if model.out_channels == 1 else None
        model_name = f"{type(model).__name__} of {type(model.decode_head).__name__}"
    else:
        model_name = type(model).__name__
        if "masks" in names:
            facts["mask_threshold"] = float(model.roi_head.test_cfg.mask_thr_binary)
    resize = facts["resize"]
    width, height = resize["scale"] if resize and resize.get("scale") else (224, 224)
    metadata = Metadata(
        task="segmentation" if is_segmentor else "detection",
        model=f"{model_name} on {type(model.backbone).__name__}",
        input_size=(predictor.bands, int(height), int(width)),
        output_names=names,
        class_names=predictor.classes,
        mean=mean,
        std=std,
        interpolation="bilinear",
        decoding=vars(predictor.decoding),
        licence=options.licence,
        checkpoint=checkpoint.name,
        sha256=sha256_of(checkpoint),
        davit=importlib.import_module("davit").__version__,
        versions={"python": platform.python_version(), "torch": torch.__version__},
        extra=facts,
    )
    compare = segments_differ if is_segmentor else largest_relative if options.raw else detections_differ
    return Program(
        module.eval(),
        metadata,
        _axes(names, options.raw),
        SIZES,
        TOLERANCE,
        compare=compare,
        images=blots(predictor.bands, options.preprocess == "uint8"),
        is_proven=False,
        onnx_translations=onnx_translations(),
    )


def _axes(names: tuple[str, ...], raw: bool) -> list[dict[int, str]]:
    """Name the free axes of each output."""
    sides = {0: "batch", 1: "height", 2: "width"}
    if names == ("logits",):
        return [{0: "batch", 2: "height", 3: "width"}]
    if "logits" in names:
        return [sides, {0: "batch", 2: "rows", 3: "columns"}]
    return [{0: "batch", 1: "anchors"} if raw else {0: "batch"} for _ in names]


def _preparation(
    preprocessor: Any, bands: int, is_segmentor: bool
) -> tuple[Normalised, tuple[float, ...], tuple[float, ...]]:
    """Read a data_preprocessor: what is done in the graph, and the mean and std of RGB from 0 to 1."""
    padding = {"size_divisor": getattr(preprocessor, "pad_size_divisor", 1)}
    value = float(getattr(preprocessor, "pad_value", 0) or 0)
    if is_segmentor:  # it pads in training, and in tests by its test_cfg alone
        padding, value = dict(preprocessor.test_cfg or {}), float(preprocessor.pad_val)
        if padding.get("size"):
            raise ValueError(
                f"data_preprocessor.test_cfg.size={padding['size']} pads images to one size; an export takes any: "
                "leave it out, or give size_divisor."
            )
    mean, std = [0.0] * bands, [1.0] * bands
    if preprocessor._enable_normalize:
        mean, std = (getattr(preprocessor, name).flatten().expand(bands).tolist() for name in ("mean", "std"))
    reverse = bands == 3 and not preprocessor._channel_conversion  # the network reads BGR
    if reverse:
        mean, std = mean[::-1], std[::-1]
    images = Normalised(int(padding.get("size_divisor") or 1), value, reverse)
    return images, tuple(one / 255 for one in mean), tuple(one / 255 for one in std)


def _resize_rule(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Read a test pipeline behind its loader: how images are resized; None where they are not.

    Raises:
        ValueError: it does something else.
    """
    rule: dict[str, Any] | None = None
    for step in steps:
        kind = str(step["type"] if isinstance(step["type"], str) else step["type"].__name__).split(".")[-1]
        if kind in (*_LEFT_OUT, *_PACKED):
            continue
        usual = step.get("interpolation", "bilinear") == "bilinear" and step.get("backend", "cv2") == "cv2"
        if kind != "Resize" or rule is not None or not usual:
            words = ", ".join(f"{name}={value!r}" for name, value in step.items() if name != "type")
            raise ValueError(
                f"the test pipeline has {kind}({words}), and an export knows one bilinear Resize by cv2, "
                f"{', '.join((*_LEFT_OUT, *_PACKED))}."
            )
        scale, factor = step.get("scale"), step.get("scale_factor")
        scale = [scale, scale] if isinstance(scale, int) else scale
        factor = [factor, factor] if isinstance(factor, float) else factor
        rule = {
            "scale": [int(side) for side in scale] if scale else None,
            "scale_factor": [float(one) for one in factor] if factor and not scale else None,
            "keep_ratio": bool(step.get("keep_ratio", False)),
        }
    return rule


def blots(bands: int, as_bytes: bool) -> Callable[[Size, torch.Generator], Tensor]:
    """Return what draws images for the check: coloured blots with sharp and soft edges, that heads react to."""

    def draw(size: Size, generator: torch.Generator) -> Tensor:
        batch, height, width = size
        coarse = torch.randn(batch, bands, -(-height // 24) + 1, -(-width // 24) + 1, generator=generator)
        soft = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        sharp = F.interpolate(coarse.flip(2).sign(), (height, width))
        drawn = soft + sharp + 0.2 * torch.randn(batch, bands, height, width, generator=generator)
        return drawn.mul(50).add(120).round().clamp(0, 255).to(torch.uint8) if as_bytes else drawn

    return draw


def segments_differ(found: Outputs, wanted: Outputs) -> float:
    """Return the share of pixels whose labels differ, or the relative difference of logits if that is larger."""
    if len(found) == 1:
        return largest_relative(found, wanted)
    if found[0].shape != wanted[0].shape:
        return float("inf")
    return max(float((found[0] != wanted[0]).double().mean()), largest_relative(found[1:], wanted[1:]))


def detections_differ(found: Outputs, wanted: Outputs) -> float:
    """Return by how much detections differ: boxes by the longest side, scores and masks as they are.

    Each object is compared with the one of the other list that is most like it, whatever their order, as objects of
    equal scores may change places. One object in a hundred may have no counterpart, with a score close to the limit.
    """
    worst = 0.0
    for picture in range(wanted[0].shape[0]):
        ours, theirs = ([one[picture] for one in outputs] for outputs in (found, wanted))
        ours, theirs = ([one[side[2] >= 0] for one in side] for side in (ours, theirs))
        costs = _costs(ours, theirs)
        spare = (len(theirs[2]) + 50) // 100
        for nearest in (costs.amin(0) if costs.shape[0] else torch.full((costs.shape[1],), torch.inf),
                        costs.amin(1) if costs.shape[1] else torch.full((costs.shape[0],), torch.inf)):  # fmt: skip
            left = nearest.sort().values[: max(0, len(nearest) - spare)]
            worst = max(worst, float(left[-1]) if len(left) else 0.0)
    return worst


def _costs(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Return (objects of ours, objects of theirs): how unlike each pair is; infinite between classes."""
    longest = max(float(theirs[0].abs().max()) if theirs[0].numel() else 0.0, 1.0)
    costs = (ours[0][:, None] - theirs[0][None]).abs().amax(-1) / longest
    costs = torch.maximum(costs, (ours[1][:, None] - theirs[1][None]).abs())
    if len(ours) > 3:
        costs = torch.maximum(costs, (ours[3][:, None] - theirs[3][None]).abs().flatten(2).amax(-1))
    return costs.masked_fill(ours[2][:, None] != theirs[2][None], torch.inf)
