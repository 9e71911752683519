"""Read the command lines of ``davit det``, ``davit seg``, and the tools of mmdet/ and mmseg/."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any

from .. import recipes
from ..commands import command_name
from ..limits import number
from ..variants import VARIANTS
from . import Parser, add_device
from .results import add_json, add_output

log = logging.getLogger("davit.openmmlab.cli")


class ConfigValues(argparse.Action):
    """Read ``--flag key=value ...`` as mmengine does: numbers, lists and tuples are taken apart."""

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        from mmengine.config import DictAction  # a quarter of a second

        for word in values:
            if not word.partition("=")[1]:
                raise argparse.ArgumentError(self, f"{word!r} is not of the form key=value")
        options = dict(getattr(namespace, self.dest, None) or {})
        for word in values:
            key, _, value = word.partition("=")
            options[key] = DictAction._parse_iterable(value)
        setattr(namespace, self.dest, options)


class WithoutEffect(argparse.Action):
    """Answer a flag of older tools, which has no effect, with its help."""

    def __call__(self, parser: Any, args: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        log.warning("%s: %s.", flag, self.help)


def add_config_argument(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add the config, or configs, that a tool works on."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="a config file, the name of one of our configs (listed below), or mmdet::NAME or mmseg::NAME for one of "
        "those libraries",
        **options,
    )
    ours = {kind: ", ".join(recipes.names_of(kind)) for kind in ("mmdet", "mmseg")}
    listed = f"Our configs for detection: {ours['mmdet']}. For segmentation: {ours['mmseg']}."
    parser.epilog = f"{parser.epilog} {listed}" if parser.epilog else listed


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that replace values of a config."""
    add = parser.add_argument_group("config and data").add_argument
    add(
        "--cfg-options",
        "--options",
        nargs="+",
        action=ConfigValues,
        default={},
        metavar="KEY=VALUE",
        help="replace these values of the config, such as model.pretrained=FILE or train_dataloader.batch_size=4",
    )
    add(
        "--backbone",
        metavar="VARIANT",
        help=f"replace the config's backbone by one of {', '.join(VARIANTS)} (default: keep it)",
    )
    add("--data-root", metavar="DIR", help="folder of the data set (default: the config's)")
    add(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="class names, in the order of their indices; auto: those of the training annotations (default: the "
        "config's)",
    )


def train_parser() -> Parser:
    """Make the parser of train.py of mmdet/tools and mmseg/tools."""
    parser = Parser(prog=command_name(), description="Train a detector or segmentor.")
    add_config_argument(parser)
    _add_run_arguments(parser)
    add = parser.add_argument_group("training").add_argument
    add("--amp", action="store_true", help="use mixed precision, on GPUs only")
    add("--auto-scale-lr", action="store_true", help="scale the learning rate in proportion to the global batch")
    add(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="continue from this checkpoint; without FILE from the newest undamaged one in --work-dir (default: start "
        "anew)",
    )
    add("--auto-resume", action="store_const", const="auto", dest="resume", help="the same as --resume without FILE")
    add("--resume-from", dest="resume", metavar="FILE", help="the same as --resume FILE")
    add("--load-from", metavar="FILE", help="start from the weights of this detector or segmentor")
    add("--no-validate", action="store_true", help="do not evaluate during the training")
    _add_seed(add)
    add("--deterministic", action="store_true", help="use only deterministic kernels of cuDNN")
    add_json(add)
    parser.add_argument_group("without effect").add_argument(
        *("--gpus", "--gpu-ids"),
        nargs="*",
        action=WithoutEffect,
        default=argparse.SUPPRESS,
        help="the launcher starts the processes (tools/dist_train.sh CONFIG GPUS), CUDA_VISIBLE_DEVICES chooses GPUs",
    )
    return parser


def test_parser() -> Parser:
    """Make the parser of test.py of mmdet/tools and mmseg/tools."""
    parser = Parser(prog=command_name(), description="Evaluate a detector or segmentor.")
    add_config_argument(parser)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="its checkpoint, from this project or the original one"
    )
    _add_run_arguments(parser)
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--eval",
        nargs="+",
        metavar="METRIC",
        help="metrics: bbox, segm or proposal of a detector; mIoU, mDice or mFscore of a segmentor (default: the "
        "config's)",
    )
    add("--out", metavar="FILE|DIR", help="write the predictions: detections into a .json file, masks into a folder")
    add("--format-only", action="store_true", help="only write the predictions of --out, without an evaluation")
    add("--show-dir", metavar="DIR", help="write images with the predictions drawn into this folder")
    add("--aug-test", "--tta", action="store_true", help="use test-time augmentation: several sizes and flips")
    _add_seed(add)
    add_json(add)
    add_output(add)
    add = parser.add_argument_group("without effect").add_argument
    older: dict[str, Any] = {"action": WithoutEffect, "default": argparse.SUPPRESS}
    add(*("--gpu-id", "--gpu-ids"), nargs="*", help="CUDA_VISIBLE_DEVICES chooses the GPU", **older)
    gathering = "results are gathered through the process group"
    add("--tmpdir", nargs="*", help=gathering, **older)
    add("--gpu-collect", nargs=0, help=gathering, **older)
    add("--fuse-conv-bn", nargs=0, help="nothing is fused: DaViT has no batch norm", **older)
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that train.py and test.py share."""
    add_override_arguments(parser)
    add = parser.add_argument_group("run").add_argument
    add("--work-dir", metavar="DIR", help="folder of the run (default: work_dirs/NAME, with the config's name)")
    add_data_checks(add)
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="what started the processes")
    add(
        *("--local_rank", "--local-rank"),
        **number("local_rank"),
        default=0,
        help="number of this process on its machine, which launchers set",
    )


def _add_seed(add: Callable[..., Any]) -> None:
    add("--seed", **number("numpy_seed"), help="seed of all random numbers (default: drawn, and logged)")


def add_data_checks(add: Callable[..., Any]) -> None:
    """Add what is done about images that cannot be read, alike for all detectors."""
    add(
        "--no-data-check",
        dest="data_check",
        action="store_false",
        help="do not read the header of each image (of a segmentor: the masks) at the start; annotations are checked",
    )
    add(
        "--skip-bad-images",
        action="store_true",
        help="detection: skip and count images that are missing or cannot be read, instead of stopping",
    )


def demo_parser() -> Parser:
    """Make the parser of image_demo.py of mmdet/tools and mmseg/tools."""
    parser = Parser(prog=command_name(), description="Draw what a detector or segmentor finds.")
    parser.add_argument("picture", metavar="IMAGE", help="an image, or a folder with all images below it")
    add_config_argument(parser)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="its checkpoint; or an exported model (davit export), for which CONFIG may be any word",
    )
    add_drawing(parser.add_argument_group("results").add_argument)
    add_override_arguments(parser)
    return parser


def add_drawing(add: Callable[..., Any]) -> None:
    """Add the flags of a command that draws what is found."""
    add("--out-dir", default="outputs", metavar="DIR", help="write the drawn images and predictions.json here")
    add_score_threshold(add, "--pred-score-thr")
    add_device(add)
    add_json(add)


def add_score_threshold(add: Callable[..., Any], *aliases: str, default: float | None = 0.3) -> None:
    """Add from which score on detections are kept.

    Args:
        aliases: other names of the flag.
        default: None for a command that has to know whether it was given; 0.3 is then used.
    """
    said = "leave out detections with a lower score (default: 0.3)"
    add("--score-thr", *aliases, **number("score_thr"), default=default, help=said)


def add_detector_config(add: Callable[..., Any]) -> None:
    """Add the config that a checkpoint of a detector or segmentor is of, where it is an option."""
    add(
        "--config",
        default="",
        metavar="FILE",
        help="config of a detector's or segmentor's checkpoint: a file, or the name of one of ours (default: that in "
        "a run's folder)",
    )


def flops_parser() -> Parser:
    """Make the parser of get_flops.py of mmdet/tools and mmseg/tools."""
    parser = Parser(
        prog=command_name(),
        description="Count the parameters and FLOPs of a config's model.",
        epilog="One image, multiply-adds by fvcore, as `davit complexity` counts. A two-stage detector's heads see "
        "1000 proposals, and its mask head the first 100 of them. A segmentor is counted without its auxiliary head. "
        "RoIAlign, NMS and resizing are not counted.",
    )
    add_config_argument(parser, nargs="+")
    add_override_arguments(parser)
    add = parser.add_argument_group("results").add_argument
    add(
        "--shape",
        **number("shape"),
        metavar="N",
        help="side, or height and width, in pixels (default: 800 1280 for a detector, 512 2048 for a segmentor)",
    )
    add_json(add)
    add_output(add)
    return parser
