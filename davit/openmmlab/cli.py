"""What train.py and test.py of mmdet/tools and mmseg/tools do: the ecosystem's words, old and new, on our runner."""

from __future__ import annotations

import logging
import os
import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..commands import run_cli
from ..data import DataError
from ..engine.distributed import close_world, init_world
from ..engine.flags import changed, say_no_longer
from .config import (
    add_config_arguments,
    check_batch,
    datasets_of,
    load_config,
    set_classes,
    use_amp,
    use_auto_scale_lr,
    use_evaluation_words,
)
from .runner import DaViTRunner

log = logging.getLogger(__name__)

_NO_MEANING = {
    "gpus": "the number of processes is the launcher's (tools/dist_train.sh CONFIG GPUS)",
    "gpu_ids": "GPUs are chosen by CUDA_VISIBLE_DEVICES",
    "gpu_id": "the GPU is chosen by CUDA_VISIBLE_DEVICES",
    "fuse_conv_bn": "nothing is fused: DaViT has no batch norm",
    "gpu_collect": "results are gathered through the process group",
    "tmpdir": "results are gathered through the process group",
}


def train_main(argv: Sequence[str] | None = None) -> int:
    """Train a detector or segmentor; returns the exit status (`davit.commands`)."""
    parser = ArgumentParser(description="Train a detector or segmentor.")
    add_config_arguments(parser)
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
    _add_without_meaning(parser, "gpus", "gpu_ids")
    return _run(parser, argv, _train)


def test_main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a detector or segmentor; returns the exit status (`davit.commands`)."""
    parser = ArgumentParser(description="Evaluate a detector or segmentor.")
    add_config_arguments(parser)
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
    _add_without_meaning(parser, "gpu_id", "gpu_ids", "tmpdir")
    for name in ("fuse_conv_bn", "gpu_collect"):
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=_NO_MEANING[name])
    return _run(parser, argv, _test)


def _add_run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--work-dir", metavar="DIR", help="where the run is written (default work_dirs/CONFIG)")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started us")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch.distributed.launch")


def _add_without_meaning(parser: ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="*", help=_NO_MEANING[name])


def _run(parser: ArgumentParser, argv: Sequence[str] | None, work: Callable[[Namespace, Config], None]) -> int:
    def main() -> None:
        args = parser.parse_args(argv)
        say_no_longer(_NO_MEANING, changed(parser, args))
        cfg = load_config(args)
        init_default_scope(cfg.default_scope)
        cfg.work_dir = args.work_dir or cfg.get("work_dir") or str(Path("work_dirs") / Path(args.config).stem)
        if args.seed is not None:
            cfg.randomness = {"seed": args.seed, "deterministic": getattr(args, "deterministic", False)}
        cfg.launcher = _join(args)
        try:
            work(args, cfg)
        finally:
            close_world()

    logging.basicConfig(level=logging.WARNING if _rank() else logging.INFO, format="%(message)s", force=True)
    return run_cli(main)


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def _join(args: Namespace) -> str:
    """Join the job of the launcher, with gloo where there is no GPU; returns mmengine's word for it."""
    if args.launcher == "none":
        return "none"
    if args.launcher == "slurm":
        os.environ.update(_slurm_environment(os.environ))
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"--launcher {args.launcher}: {', '.join(missing)} not set: start the processes with torchrun, "
            "tools/dist_train.sh or srun, or leave --launcher out for one process."
        )
    init_world()
    return str(args.launcher)


def _slurm_environment(given: Any) -> dict[str, str]:
    """torch's variables from Slurm's.

    Raises:
        ValueError: this is no Slurm job.
    """
    try:
        nodes, rank, size, local = (given[f"SLURM_{name}"] for name in ("NODELIST", "PROCID", "NTASKS", "LOCALID"))
    except KeyError as error:
        raise ValueError(
            f"--launcher slurm: {error.args[0]} is not set: start with srun (tools/slurm_train.sh)."
        ) from None
    address = given.get("MASTER_ADDR")
    if not address:
        hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        address = hosts.stdout.split()[0]
    port = given.get("MASTER_PORT", "29500")
    return {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local, "MASTER_ADDR": address, "MASTER_PORT": port}


def _train(args: Namespace, cfg: Config) -> None:
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        use_auto_scale_lr(cfg)
    if args.no_validate:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        if "checkpoint" in cfg.get("default_hooks", {}):
            cfg.default_hooks.checkpoint.pop("save_best", None)
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    if args.resume and args.load_from:
        raise ValueError("--resume goes on with a run, --load-from starts one from weights: pass one of the two.")
    cfg.resume = bool(args.resume)
    cfg.load_from = args.load_from if not args.resume else None if args.resume == "auto" else args.resume
    if cfg.load_from and not Path(cfg.load_from).is_file():
        raise ValueError(f"{cfg.load_from}: there is no such file to start from.")
    check_batch(cfg)
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
    use_evaluation_words(args, cfg)
    DaViTRunner.from_cfg(cfg).test()


def _check_data(args: Namespace, cfg: Config, splits: Sequence[str], labelled: bool = True) -> None:
    """Set the classes, and look at all the data once, in one process of each machine."""
    from .datasets import check_dataset, classes_of

    first = next(datasets_of(cfg[f"{splits[0]}_dataloader"]))
    if args.classes:
        found = classes_of(first) if args.classes == ["auto"] else tuple(args.classes)
        set_classes(cfg, found)
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return
    for split in splits:
        for dataset in datasets_of(cfg[f"{split}_dataloader"]):
            if "type" not in dataset:
                raise DataError(f"the config's {split} data set has no type.")
            check_dataset(dataset, split, cfg.model, labelled)
