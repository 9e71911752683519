"""Parse the flags of `davit det train --head`, `test` and `demo` for detectors of the transformers library."""

from __future__ import annotations

import argparse
from typing import Any

from ..commands import command_name
from ..engine.flags import (
    KeyValues,
    add_growth,
    add_model_of_run,
    add_picture_size,
    frozen_part,
    train_parser,
    training_flags,
)
from ..limits import number
from ..parsing import Parser
from ..parsing.openmmlab import add_drawing
from ..parsing.results import add_json, add_output
from .heads import DETECTION_METRICS, HEADS

#: What train.py's flags that detectors lack stand at.
_OFF = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "aa": None, "reprob": 0.0}


class DetectorFlags(argparse.Namespace):
    """Hold the flags of a detector's training; what only classifiers have reads as its default, or as off.

    `vars` gives the detector's own alone: these are what a run records.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in (others := _others()):
            raise AttributeError(name)
        return others[name]


def _others() -> dict[str, Any]:
    if not _cache:
        _cache.update(vars(train_parser().parse_args([])), **_OFF)
    return _cache


_cache: dict[str, Any] = {}


def detector_parser() -> Parser:
    """Make the parser of `davit det train DATA --head HEAD`."""
    parser = Parser(
        prog=command_name(),
        parents=[training_flags()],
        description="Train D-FINE or RT-DETRv2 of the transformers library on DaViT, from data in COCO's or YOLO's "
        "form. Losses and heads are that library's; all else is as in `davit train`. Without --head this command "
        "trains by a config of MMDetection.",
        usage="%(prog)s DATA --head HEAD [-c FILE] [flags]",
        epilog="Exit status: 0 done, 2 a mistake in the flags or the data, 3 a non-finite loss, 4 the disk is full, "
        "75 interrupted and saved (run again with --auto-resume).",
    )
    add = parser.add_argument_group("data").add_argument
    add("data_dir", nargs="?", metavar="DATA", help="data folder, a COCO json, or YOLO's data.yaml")
    add("--classes", nargs="+", metavar="NAME", help="learn these alone, in this order; default: all that are named")
    add("--train-split", default="train", help="name of the training split (default %(default)s)")
    add("--val-split", default="val", help="name of the validation split (default %(default)s)")
    _add_checks(add)
    add_picture_size(add)
    add_growth(add)
    add = parser.add_argument_group("model").add_argument
    add("--head", choices=tuple(HEADS), help="D-FINE or RT-DETRv2; needed")
    add("--model", default="DaViT_tiny", metavar="NAME", help="the backbone, a DaViT variant (default %(default)s)")
    add("--pretrained", action="store_true", help="start from the backbone's published weights, which are fetched")
    add(
        "--initial-checkpoint",
        default="",
        metavar="FILE",
        help="start from the weights of a classifier or a backbone, or from a detector: a run, a checkpoint, a folder",
    )
    add(
        "--head-kwargs",
        nargs="+",
        default={},
        action=KeyValues,
        metavar="KEY=VALUE",
        help="to the configuration of the head (DFineConfig, RTDetrV2Config), such as num_queries=100",
    )
    add("--model-kwargs", nargs="+", default={}, action=KeyValues, metavar="KEY=VALUE", help="to the backbone")
    add("--drop-path", **number("drop_path"), default=0.1, help="stochastic depth of the backbone")
    add("--freeze", type=frozen_part, metavar="N|all", help="keep the stem and the first N stages of the backbone")
    add("--grad-checkpointing", action="store_true", help="of the backbone: less memory, more time")
    add_model_of_run(add)
    add = parser.add_argument_group("augmentation").add_argument
    add("--no-aug", action="store_true", help="no augmentation at all")
    add("--hflip", **number("hflip"), default=0.5, help="probability of a horizontal flip (default %(default)s)")
    add("--vflip", **number("vflip"), default=0.0, help="probability of a vertical flip (default %(default)s)")
    add(
        "--photometric",
        **number("photometric"),
        default=0.5,
        help="probability of other colours (default %(default)s)",
    )
    add("--zoom-out", **number("zoom_out"), default=0.5, help="probability of a smaller image (default %(default)s)")
    add(
        "--iou-crop",
        **number("iou_crop"),
        default=0.8,
        help="probability of a crop with objects (default %(default)s)",
    )
    parser.add_argument(
        "--eval-metric",
        default="ap",
        choices=DETECTION_METRICS,
        help="what the best is judged by: COCO's average precision (default), at IoU 0.5, of small objects ...",
    )
    parser.set_defaults(
        batch_size=8,
        lr=1e-4,
        weight_decay=1e-4,
        clip_grad=0.1,
        epochs=72,
        warmup_epochs=1,
        cooldown_epochs=0,
        min_lr=1e-6,
        model_ema_decay=0.9998,
    )
    return parser


def _add_checks(add: Any) -> None:
    add("--skip-bad-images", action="store_true", help="continue without images that are missing or cannot be read")
    add(
        "--no-data-check",
        dest="data_check",
        action="store_false",
        help="do not read the header of every image at the start (the annotations are checked)",
    )


def test_parser() -> Parser:
    """Make the parser of `davit det test RUN`."""
    parser = Parser(
        prog=command_name(),
        description="Evaluate a detector by COCO's average precision, or write its results.",
        usage="%(prog)s RUN [DATA] [flags]",
    )
    add = parser.add_argument
    add("checkpoint", metavar="RUN", help="folder of a run (its best checkpoint), a checkpoint, or a saved detector")
    add("data_dir", nargs="?", metavar="DATA", help="data folder, a COCO json or data.yaml; default: the run's own")
    add("--split", default="val", help="which split (default %(default)s)")
    add("--out", metavar="FILE.json", help="write the results as COCO's server takes them")
    add_output(add)
    add_json(add)
    add("--format-only", action="store_true", help="write --out without labels, evaluate nothing")
    add("--img-size", **number("img_size"), help="side in pixels; default: as it was trained")
    _add_checks(add)
    add("-b", "--batch-size", **number("batch_size"), default=8, help="images at once (default %(default)s)")
    add("-j", "--workers", **number("workers"), default=4, help="loader processes (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    add("--amp", action="store_true", help="mixed precision")
    return parser


def demo_parser() -> Parser:
    """Make the parser of `davit det demo IMAGE RUN`."""
    parser = Parser(prog=command_name(), description="Draw what a detector finds.", usage="%(prog)s IMAGE RUN [flags]")
    add = parser.add_argument
    add("picture", metavar="IMAGE", help="an image, or a folder with all that is below it")
    add("checkpoint", metavar="RUN", help="folder of a run (its best checkpoint), a checkpoint, or a saved detector")
    add_drawing(add)
    return parser
