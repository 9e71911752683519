"""Parse the flags of `davit det train --head`, `test` and `demo` for detectors of the transformers library."""

from __future__ import annotations

import argparse
from typing import Any

from ..commands import command_name
from ..engine.flags import (
    KeyValues,
    add_batch_size,
    add_device_and_precision,
    add_drop_path,
    add_flips,
    add_grad_checkpointing,
    add_growth,
    add_model_kwargs,
    add_model_of_run,
    add_picture_size,
    frozen_part,
    train_parser,
    training_flags,
)
from ..limits import number
from ..parsing import Parser
from ..parsing.data import add_workers
from ..parsing.openmmlab import add_data_checks, add_drawing
from ..parsing.results import add_json, add_output
from .heads import DETECTION_METRICS, HEADS

_DATA = "data folder, COCO json file, or YOLO's data.yaml"
_RUN = "a run's folder (its best checkpoint is taken), a checkpoint, or a folder in transformers' format"

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
        description="Train D-FINE or RT-DETRv2 with a DaViT backbone on data in COCO's or YOLO's form. The heads and "
        "losses are those of the transformers library; the rest is as in `davit train`. Without --head this command "
        "trains by a config of MMDetection.",
        usage="%(prog)s DATA --head HEAD [-c FILE] [flags]",
        epilog="Exit status: 0 done, 2 a mistake in the flags or the data, 3 a non-finite loss, 4 the disk is full, "
        "75 interrupted and saved (run again with --auto-resume).",
    )
    add = parser.add_argument_group("data").add_argument
    add("data_dir", nargs="?", metavar="DATA", help=_DATA)
    add(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="learn only these classes, in this order (default: all classes of the training annotations)",
    )
    add("--train-split", default="train", metavar="NAME", help="name of the training split")
    add("--val-split", default="val", metavar="NAME", help="name of the validation split")
    add_data_checks(add)
    add_picture_size(add)
    add_growth(add)
    add = parser.add_argument_group("model").add_argument
    add("--head", choices=tuple(HEADS), help="D-FINE or RT-DETRv2; must be given")
    add("--model", default="DaViT_tiny", metavar="NAME", help="backbone: a DaViT variant")
    add("--pretrained", action="store_true", help="start from the backbone's published weights, which are downloaded")
    add(
        "--initial-checkpoint",
        default="",
        metavar="FILE",
        help="start from these weights, of a classifier, a backbone or a detector: a checkpoint, or a run's folder",
    )
    add(
        "--head-kwargs",
        nargs="+",
        default={},
        action=KeyValues,
        metavar="KEY=VALUE",
        help="arguments of the head's configuration (DFineConfig, RTDetrV2Config), such as num_queries=100",
    )
    add_model_kwargs(add)
    add_drop_path(add)
    add(
        "--freeze",
        type=frozen_part,
        metavar="N|all",
        help="do not train the stem and the first N stages of the backbone (0: only the stem); all: train only the "
        "head (default: train all)",
    )
    add_grad_checkpointing(add)
    add_model_of_run(add)
    add = parser.add_argument_group("augmentation").add_argument
    add("--no-aug", action="store_true", help="do not augment; only resize")
    add_flips(add)
    add("--photometric", **number("photometric"), default=0.5, help="probability of changing the colours")
    add("--zoom-out", **number("zoom_out"), default=0.5, help="probability of shrinking the image on a larger canvas")
    add("--iou-crop", **number("iou_crop"), default=0.8, help="probability of a random crop that keeps objects")
    parser.add_argument_group("run").add_argument(
        "--eval-metric",
        default="ap",
        choices=DETECTION_METRICS,
        help="metric that decides which epoch is the best: COCO's average precision over all IoUs (ap), at IoU 0.5 "
        "or 0.75, of small, medium or large objects, or its average recall (ar)",
    )
    parser.put_first("data", "model", "augmentation")
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
        model_ema_warmup=True,
    )
    return parser


def test_parser() -> Parser:
    """Make the parser of `davit det test RUN`."""
    parser = Parser(
        prog=command_name(),
        description="Evaluate a detector by COCO's average precision, or write its predictions.",
        usage="%(prog)s RUN [DATA] [flags]",
    )
    add = parser.add_argument
    add("checkpoint", metavar="RUN", help=_RUN)
    add("data_dir", nargs="?", metavar="DATA", help=f"{_DATA} (default: the run's)")
    add("--split", default="val", metavar="NAME", help="name of the split to evaluate")
    add("--out", metavar="FILE", help="write the predictions into a .json file, in the form of COCO's server")
    add_output(add)
    add_json(add)
    add("--format-only", action="store_true", help="only write the predictions of --out, without an evaluation")
    add("--img-size", **number("img_size"), help="side of the images in pixels (default: that of the training)")
    add_data_checks(add)
    add_batch_size(add, 8)
    add_workers(add, 4)
    add_device_and_precision(add, dtype=False)
    return parser


def demo_parser() -> Parser:
    """Make the parser of `davit det demo IMAGE RUN`."""
    parser = Parser(prog=command_name(), description="Draw what a detector finds.", usage="%(prog)s IMAGE RUN [flags]")
    add = parser.add_argument
    add("picture", metavar="IMAGE", help="an image, or a folder with all images below it")
    add("checkpoint", metavar="RUN", help=_RUN)
    add_drawing(add)
    return parser
