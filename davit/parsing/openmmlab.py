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
from . import Parser
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
    ours = ", ".join(recipes.names_of("mmdet", "mmseg"))
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help=f"a config file; mmdet::NAME or mmseg::NAME of those libraries' own; or one of {ours}",
        **options,
    )


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
        help="values of the config to replace, as model.pretrained=FILE or train_dataloader.batch_size=4",
    )
    add(
        "--backbone",
        metavar="VARIANT",
        help=f"put this DaViT in the place of the config's backbone: {', '.join(VARIANTS)}",
    )
    add("--data-root", metavar="DIR", help="the folder of the data set; default: the config's")
    add(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="the classes, in the order of the data set; 'auto' takes those of the training annotations; default: the "
        "config's",
    )


def train_parser() -> Parser:
    """Make the parser of train.py of mmdet/tools and mmseg/tools."""
    parser = Parser(prog=command_name(), description="Train a detector or segmentor.")
    add_config_argument(parser)
    _add_run_arguments(parser)
    add = parser.add_argument_group("training").add_argument
    add("--amp", action="store_true", help="mixed precision (GPU)")
    add("--auto-scale-lr", action="store_true", help="learning rate in proportion to the global batch")
    add("--resume", nargs="?", const="auto", metavar="FILE", help="continue from FILE or the newest state")
    add("--auto-resume", action="store_const", const="auto", dest="resume", help="the same as --resume")
    add("--resume-from", dest="resume", metavar="FILE", help="the same as --resume FILE")
    add("--load-from", metavar="FILE", help="start from the weights of a whole detector or segmentor")
    add("--no-validate", action="store_true", help="do not evaluate while training")
    add("--seed", **number("numpy_seed"), help="of everything random; default: one is drawn and logged")
    add("--deterministic", action="store_true", help="cuDNN's deterministic kernels")
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
    parser.add_argument("checkpoint", help="its weights: ours, or the original code base's")
    _add_run_arguments(parser)
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--eval",
        nargs="+",
        metavar="METRIC",
        help="bbox, segm, proposal; mIoU, mDice, mFscore; default: the config's",
    )
    add("--out", metavar="FILE", help="write the predictions: FILE.json for detections, a folder of masks")
    add("--format-only", action="store_true", help="write the predictions for a server, evaluate nothing")
    add("--show-dir", metavar="DIR", help="write images with the predictions drawn")
    add("--aug-test", "--tta", action="store_true", help="test-time augmentation: sizes and flips")
    add("--seed", **number("numpy_seed"), help="of everything random; default: one is drawn")
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
    add("--work-dir", metavar="DIR", help="where the run is written; default: work_dirs/CONFIG")
    add_data_checks(add)
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started us")
    add("--local_rank", "--local-rank", **number("local_rank"), default=0, help="set by torch.distributed.launch")


def add_data_checks(add: Callable[..., Any]) -> None:
    """Add what is done about images that cannot be read, alike for all detectors."""
    add(
        "--no-data-check",
        dest="data_check",
        action="store_false",
        help="detection: do not read the header of every image at the start (the annotations are checked)",
    )
    add(
        "--skip-bad-images",
        action="store_true",
        help="detection: continue without images that are missing or cannot be read; they are counted",
    )


def demo_parser() -> Parser:
    """Make the parser of image_demo.py of mmdet/tools and mmseg/tools."""
    parser = Parser(prog=command_name(), description="Draw what a detector or segmentor finds.")
    parser.add_argument("picture", metavar="IMAGE", help="an image, or a folder with all that is below it")
    add_config_argument(parser)
    parser.add_argument("checkpoint", help="its weights, or an export (python -m davit.export), which needs no config")
    add_drawing(parser.add_argument_group("results").add_argument)
    add_override_arguments(parser)
    return parser


def add_drawing(add: Callable[..., Any]) -> None:
    """Add the flags of a command that draws what is found."""
    add("--out-dir", default="outputs", metavar="DIR", help="drawn images and predictions.json")
    add("--score-thr", "--pred-score-thr", **number("score_thr"), default=0.3, help="least score of a detection")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    add_json(add)


def flops_parser() -> Parser:
    """Make the parser of get_flops.py of mmdet/tools and mmseg/tools."""
    parser = Parser(
        prog=command_name(),
        description="Parameters and FLOPs of a config's model.",
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
        help="side, or height and width, in pixels; default: 800 1280 of a detector, 512 2048 of a segmentor",
    )
    add_json(add)
    add_output(add)
    return parser
