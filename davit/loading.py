"""Teach `davit.load` the folders of detectors and segmentors, whose room it may not import itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError
from .predict.predictor import OTHER_LOADERS
from .pretrained import best_of_mm
from .text import some

_OPTIONS = ("device", "score_threshold")


def load_detector(folder: Path, options: Mapping[str, Any]) -> Any:
    """Load the best detector or segmentor of a work folder of MMDetection or MMSegmentation; None for other folders.

    Args:
        options: device and score_threshold.

    Returns:
        A `davit.openmmlab.predictor.Predictor`.

    Raises:
        ValueError: the folder has several configs, OpenMMLab is not installed, or an option is for classifiers.
    """
    best, configs = best_of_mm(folder), sorted(folder.glob("*.py"))  # MMEngine writes its config there
    if best is None or not configs:
        return None
    if unknown := sorted(set(options).difference(_OPTIONS)):
        raise ValueError(
            f"{folder} is of a detector or segmentor, whose config says how it is built: load() takes "
            f"{' and '.join(_OPTIONS)} for it, not {', '.join(unknown)}."
        )
    if len(configs) > 1:
        raise CheckpointError(
            f"{folder} has checkpoints of a detector or segmentor and the configs "
            f"{some((file.name for file in configs), 5)}; name one: "
            f"davit.openmmlab.predictor.Predictor(CONFIG, {str(best)!r})."
        )
    try:
        from .openmmlab.predictor import Predictor
    except ImportError as error:
        raise ValueError(
            f"{folder} is of a detector or segmentor, which needs OpenMMLab's packages ({error}); see mmdet/README.md."
        ) from error
    return Predictor(configs[0], best, **options)


if load_detector not in OTHER_LOADERS:
    OTHER_LOADERS.append(load_detector)
