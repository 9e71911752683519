"""Load whatever predicts by the name of its weights: a classifier, a detector or a segmentor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError
from .predict import load as load_classifier
from .pretrained import best_of_mm, split_source
from .text import some

_OF_DETECTORS = ("device", "score_threshold")


def load(checkpoint: str | Path | None = None, model: str | None = None, **options: Any) -> Any:
    """Load a model that is ready for pictures: ``davit.load(SOURCE).predict(PICTURE)``.

    Args:
        checkpoint: a file in any layout that `davit.checkpoint` reads; the folder of a run (its best checkpoint), also
            of MMDetection or MMSegmentation; a folder in timm's format; ``hf-hub:OWNER/NAME[@REVISION]`` or
            ``local-dir:DIR``; None for published weights of `model`.
        model: the architecture of a classifier; None leaves it to the checkpoint.
        options: of a classifier those of `davit.predict.load`: device, names, img_size, crop_pct, ema, amp, ...; of a
            detector or segmentor device and score_threshold.

    Returns:
        A `davit.predict.Predictor`, or for the folder of a detector or segmentor a
        `davit.openmmlab.predictor.Predictor`.

    Raises:
        ValueError: the checkpoint, the model and the options do not fit one another; an option is unknown.
        PretrainedError: weights of the hub could not be fetched.
    """
    folder = _folder_of(checkpoint)
    best = best_of_mm(folder) if folder is not None else None
    if folder is None or best is None:
        return load_classifier(checkpoint, model, **options)
    if unknown := sorted({*options, *(["model"] if model else [])}.difference(_OF_DETECTORS)):
        raise ValueError(
            f"{folder} is of a detector or segmentor, whose config says how it is built: load() takes "
            f"{' and '.join(_OF_DETECTORS)} for it, not {', '.join(unknown)}."
        )
    config = _config_in(folder)
    try:
        from .openmmlab.predictor import Predictor
    except ImportError as error:
        raise ValueError(
            f"{folder} is of a detector or segmentor, which needs OpenMMLab's packages ({error}); see mmdet/README.md."
        ) from error
    return Predictor(config, best, **options)


def _folder_of(checkpoint: str | Path | None) -> Path | None:
    if checkpoint is None:
        return None
    kind, rest = split_source(checkpoint)
    path = Path(rest).expanduser()
    return path if kind != "hf-hub" and path.is_dir() else None


def _config_in(folder: Path) -> Path:
    """Find the config that MMEngine wrote into a work folder."""
    configs = sorted(folder.glob("*.py"))
    if len(configs) != 1:
        found = f"holds the configs {some((file.name for file in configs), 5)}" if configs else "holds no config (*.py)"
        raise CheckpointError(
            f"{folder} has checkpoints of a detector or segmentor and {found}; name it: "
            "davit.openmmlab.predictor.Predictor(CONFIG, CHECKPOINT)."
        )
    return configs[0]
