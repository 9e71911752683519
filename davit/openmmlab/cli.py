"""Run train.py and test.py of mmdet/tools and mmseg/tools: the ecosystem's flags, old and new, on our runner."""

from __future__ import annotations

import logging
import os
import subprocess
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..commands import run_cli
from ..data import DataError
from ..engine.distributed import close_world, init_world
from . import drawn  # noqa: F401 (registers the hooks of --show-dir and --out)
from .config import add_override_arguments, datasets_of, load_config, set_classes, use_test_flags, use_train_flags
from .datasets import check_dataset, named_classes
from .runner import DaViTRunner

log = logging.getLogger(__name__)


def train_main(argv: Sequence[str] | None = None) -> int:
    """Train a detector or segmentor; returns the exit status (`davit.commands`)."""
    parser = ArgumentParser(description="Train a detector or segmentor.")
    parser.add_argument("config", help="a config file, e.g. configs/davit_maskrcnn_1x_coco.py")
    _add_run_arguments(parser)
    parser.add_argument("--amp", action="store_true", help="mixed precision (GPU)")
    parser.add_argument("--auto-scale-lr", action="store_true", help="learning rate in proportion to the global batch")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="FILE", help="go on from FILE or the newest state"
    )
    parser.add_argument(
        "--auto-resume", action="store_const", const="auto", dest="resume", help="the same as --resume"
    )
    parser.add_argument("--resume-from", dest="resume", metavar="FILE", help="the same as --resume FILE")
    parser.add_argument("--load-from", metavar="FILE", help="start from the weights of a whole detector or segmentor")
    parser.add_argument("--no-validate", action="store_true", help="do not evaluate while training")
    parser.add_argument("--seed", type=int, help="of everything random; without it one is drawn and logged")
    parser.add_argument("--deterministic", action="store_true", help="cuDNN's deterministic kernels")
    parser.add_argument(
        *("--gpus", "--gpu-ids"),
        nargs="*",
        action=_WithoutEffect,
        help="the launcher starts the processes (tools/dist_train.sh CONFIG GPUS), CUDA_VISIBLE_DEVICES chooses GPUs",
    )
    return _run(parser, argv, _train)


def test_main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a detector or segmentor; returns the exit status (`davit.commands`)."""
    parser = ArgumentParser(description="Evaluate a detector or segmentor.")
    parser.add_argument("config", help="a config file, e.g. configs/davit_maskrcnn_1x_coco.py")
    parser.add_argument("checkpoint", help="its weights: ours, or the original code base's")
    _add_run_arguments(parser)
    parser.add_argument("--eval", nargs="+", metavar="METRIC", help="bbox, segm, proposal; mIoU, mDice, mFscore")
    parser.add_argument(
        "--out", metavar="FILE", help="write the predictions: FILE.json for detections, a folder of masks"
    )
    parser.add_argument(
        "--format-only", action="store_true", help="write the predictions for a server, evaluate nothing"
    )
    parser.add_argument("--show-dir", metavar="DIR", help="write pictures with the predictions drawn")
    parser.add_argument("--aug-test", "--tta", action="store_true", help="test-time augmentation: sizes and flips")
    parser.add_argument("--seed", type=int, help="of everything random")
    parser.add_argument(
        *("--gpu-id", "--gpu-ids"), nargs="*", action=_WithoutEffect, help="CUDA_VISIBLE_DEVICES chooses the GPU"
    )
    gathering = "results are gathered through the process group"
    parser.add_argument("--tmpdir", nargs="*", action=_WithoutEffect, help=gathering)
    parser.add_argument("--gpu-collect", nargs=0, action=_WithoutEffect, help=gathering)
    parser.add_argument(
        "--fuse-conv-bn", nargs=0, action=_WithoutEffect, help="nothing is fused: DaViT has no batch norm"
    )
    return _run(parser, argv, _test)


class _WithoutEffect(Action):
    """Answer a flag of older tools, which has no effect, with its help."""

    def __call__(self, parser: ArgumentParser, args: Namespace, values: Any, flag: str | None = None) -> None:
        log.warning("%s: %s.", flag, self.help)


def _add_run_arguments(parser: ArgumentParser) -> None:
    """Add the flags that train.py and test.py share."""
    add_override_arguments(parser)
    parser.add_argument("--work-dir", metavar="DIR", help="where the run is written (default work_dirs/CONFIG)")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started us")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch.distributed.launch")


def _run(parser: ArgumentParser, argv: Sequence[str] | None, work: Callable[[Namespace, Config], None]) -> int:
    def main() -> None:
        args = parser.parse_args(argv)
        cfg = load_config(args)
        init_default_scope(cfg.default_scope)
        cfg.work_dir = args.work_dir or cfg.get("work_dir") or str(Path("work_dirs") / Path(args.config).stem)
        if args.seed is not None:
            cfg.randomness = {"seed": args.seed, "deterministic": getattr(args, "deterministic", False)}
        _join(args)
        cfg.launcher = args.launcher
        try:
            work(args, cfg)
        finally:
            close_world()

    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(message)s", force=True)
    return run_cli(main)


def _join(args: Namespace) -> None:
    """Join the processes of the launcher, by gloo where there is no GPU."""
    if args.launcher == "none":
        return
    if args.launcher == "slurm":
        os.environ.update(slurm_environment(os.environ))
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"--launcher {args.launcher}: {', '.join(missing)} not set: start the processes with torchrun, "
            "tools/dist_train.sh or srun, or leave --launcher out for one process."
        )
    init_world()


def slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Translate Slurm's variables to torch's.

    Raises:
        ValueError: this is no Slurm job.
    """
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    missing = [name for name in (*names.values(), "SLURM_NODELIST") if name not in environment]
    if missing:
        raise ValueError(f"--launcher slurm: {missing[0]} is not set: start with srun (tools/slurm_train.sh).")
    address = environment.get("MASTER_ADDR")
    if not address:
        command = ["scontrol", "show", "hostnames", environment["SLURM_NODELIST"]]
        address = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    master = {"MASTER_ADDR": address, "MASTER_PORT": environment.get("MASTER_PORT", "29500")}
    return {**{name: environment[slurms] for name, slurms in names.items()}, **master}


def _train(args: Namespace, cfg: Config) -> None:
    use_train_flags(cfg, args)
    _check_data(args, cfg, ("train",) if args.no_validate else ("train", "val"))
    DaViTRunner.from_cfg(cfg).train()


def _test(args: Namespace, cfg: Config) -> None:
    if not Path(args.checkpoint).is_file():
        raise ValueError(f"{args.checkpoint}: there is no such checkpoint.")
    cfg.load_from = args.checkpoint
    cfg.model.backbone.init_cfg = None  # the checkpoint holds the backbone
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    _check_data(args, cfg, ("test",), labelled=not args.format_only)
    use_test_flags(cfg, args)
    DaViTRunner.from_cfg(cfg).test()


def _check_data(args: Namespace, cfg: Config, splits: Sequence[str], labelled: bool = True) -> None:
    """Set the classes, and check all the data once, in one process of each machine."""
    if args.classes:
        first = next(datasets_of(cfg[f"{splits[0]}_dataloader"]))
        set_classes(cfg, named_classes(first) if args.classes == ["auto"] else tuple(args.classes))
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return
    for split in splits:
        for dataset in datasets_of(cfg[f"{split}_dataloader"]):
            if "type" not in dataset:
                raise DataError(f"the config's {split} data set has no type.")
            check_dataset(dataset, split, cfg.model, labelled)
