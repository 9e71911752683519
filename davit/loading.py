"""Load a trained model of any kind for images: a classifier, a detector or a segmentor."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import predict
from .checkpoint import CheckpointError
from .detect.heads import is_detector
from .engine.load_model import ModelOptions
from .predict.detector import TASKS, ExportedDetector
from .pretrained import best_of_mm, folder_of
from .runtimes import is_exported, open_exported
from .text import install_extra, some

_OPTIONS = ("device", "score_threshold")  # of a detector or segmentor


def load(
    checkpoint: str | Path | None = None,
    model: str | None = None,
    *,
    device: str = "auto",
    names: str | Path | None = None,
    **options: Any,
) -> Any:
    """Load a model that is ready for images: ``davit.load(SOURCE).predict(IMAGE)``.

    Args:
        checkpoint: a file in any layout that `davit.checkpoint` reads; the folder of a run (its best checkpoint), also
            of MMDetection or MMSegmentation; a folder in timm's format; ``hf-hub:OWNER/NAME[@REVISION]`` or
            ``local-dir:DIR``; None for published weights of `model`.
        model: the architecture; None leaves it to the checkpoint.
        device: auto, cpu, cuda or cuda:N.
        names: a class map or a data folder, for class names other than the checkpoint's.
        options: how the model is built and how images are prepared, such as img_size, crop_pct, ema="never",
            amp=True, num_classes, model_kwargs: those of `davit.engine.load_model.ModelOptions`. Of a detector or
            segmentor score_threshold alone. Of an exported file also threads: how many compute at once.

    Returns:
        A `davit.predict.Predictor`; for a detector of `davit det train --head` a `davit.detect.predictor.Predictor`,
        for the folder of a detector or segmentor of OpenMMLab a `davit.openmmlab.predictor.Predictor`,
        and for an exported one a `davit.predict.detector.ExportedDetector`.

    Raises:
        ValueError: the checkpoint, the model and the options do not fit one another; an option is unknown.
        PretrainedError: weights of the hub could not be fetched.
    """
    if checkpoint is not None and is_exported(checkpoint):
        given = {"model": model, "names": names, "device": device, **options}
        return _exported(checkpoint, {name: one for name, one in given.items() if one is not None})
    if checkpoint is not None and is_detector(checkpoint):
        given = {"model": model, "names": names, "device": device, **options}
        return _transformers_detector(checkpoint, {name: one for name, one in given.items() if one is not None})
    folder = folder_of(checkpoint)
    if folder is not None and (best := best_of_mm(folder)) is not None and (configs := sorted(folder.glob("*.py"))):
        given = {"model": model, "names": names, "device": device, **options}
        return _load_detector(folder, best, configs, {name: one for name, one in given.items() if one is not None})
    return predict.load(checkpoint, model, device=device, names=names, **options)


def load_by_flags(args: argparse.Namespace, given: Collection[str], model: str | None) -> tuple[str, Any]:
    """Load a model of any kind, as `load` does, by flags of a command; return its name for people and the model.

    Args:
        args: of `model_flags` and `picture_flags`, with --config, --score-thr and --class-map.
        given: the names of the flags that were given, as `given_flags` finds them.
        model: the architecture; None leaves it to the checkpoint.

    Raises:
        ValueError: as `load` does.
    """
    if args.config:
        return Path(args.config).stem, _with_config(args, given)
    known = {option.name for option in fields(ModelOptions)}
    options = {name: value for name, value in vars(args).items() if name in known.intersection(given)}
    if "score_thr" in given:
        options["score_threshold"] = args.score_thr
    loaded = load(args.checkpoint or None, model, device=args.device, names=args.class_map or None, **options)
    return Path(args.checkpoint).name or args.checkpoint, loaded


def _with_config(args: argparse.Namespace, given: Collection[str]) -> Any:
    """Load a detector or segmentor by its config."""
    if not args.checkpoint:
        raise ValueError(f"--config {args.config} needs the checkpoint of the detector or segmentor too.")
    if is_exported(args.checkpoint):
        raise ValueError(f"{args.checkpoint} is exported, and says by itself what --config does; leave --config out.")
    try:
        from .openmmlab.predictor import Predictor
    except ImportError as error:
        raise ValueError(f"--config needs OpenMMLab's packages ({error}): {install_extra('openmmlab')}") from error
    options = {"score_threshold": args.score_thr} if "score_thr" in given else {}
    return Predictor(args.config, args.checkpoint, device=args.device, **options)


def _exported(file: str | Path, options: dict[str, Any]) -> Any:
    """Open an exported model once, and make of it what its metadata say that it is."""
    opened = open_exported(file, threads=options.pop("threads", None))
    if opened.metadata.task not in TASKS:
        return predict.load(opened, **options)
    device = options.pop("device", "auto")
    if unknown := sorted(set(options).difference(("score_threshold",))):
        raise ValueError(
            f"{file} is an exported detector or segmentor: load() takes score_threshold and threads for it, not "
            f"{', '.join(unknown)}."
        )
    if device not in ("auto", "cpu"):
        raise ValueError(f"device={device!r}: an exported model runs on the CPU; leave device out.")
    return ExportedDetector(opened, options.get("score_threshold", 0.3))


def _transformers_detector(source: str | Path, options: dict[str, Any]) -> Any:
    """Load a detector of `davit det train --head`."""
    if unknown := sorted(set(options).difference(_OPTIONS)):
        raise ValueError(
            f"{source} is of a detector: load() takes {' and '.join(_OPTIONS)} for it, not {', '.join(unknown)}."
        )
    try:
        from .detect.predictor import Predictor
    except ImportError as error:
        raise ValueError(
            f"{source} is of a detector, which needs transformers ({error}): {install_extra('detect')}"
        ) from error
    return Predictor(source, **options)


def _load_detector(folder: Path, best: Path, configs: list[Path], options: dict[str, Any]) -> Any:
    """Load the best detector or segmentor of a work folder, by the config that MMEngine writes there."""
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
            f"{folder} is of a detector or segmentor, which needs OpenMMLab's packages ({error}): "
            f"{install_extra('openmmlab')}"
        ) from error
    return Predictor(configs[0], best, **options)
