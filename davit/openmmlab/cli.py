"""Run train.py and test.py of mmdet/tools and mmseg/tools: the ecosystem's flags, old and new, on our runner."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..checkpoint import read_checkpoint
from ..commands import RESUME, USER_ERROR, run_cli
from ..data import DataError
from ..engine.distributed import close_world, init_world
from ..parsing.openmmlab import test_parser, train_parser
from ..parsing.results import as_json, give, json_alone, put, require_writable
from ..text import some
from . import drawn  # noqa: F401 (registers the hooks of --show-dir and --out)
from .config import (
    annotation_file_of,
    datasets_of,
    evaluators_of,
    faults_named,
    load_config,
    set_classes,
    use_test_flags,
    use_train_flags,
)
from .datasets import check_coco, check_dataset, classes_of, named_classes
from .masks import MaskSummary, warn_of_unlearned
from .runner import DaViTRunner

log = logging.getLogger(__name__)


def train_main(argv: Sequence[str] | None = None) -> int:
    """Train a detector or segmentor; returns the exit status (`davit.commands`)."""
    return _run(train_parser(), argv, _train, when_full=RESUME)


def test_main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a detector or segmentor; returns the exit status (`davit.commands`)."""
    return _run(test_parser(), argv, _test)


def _run(
    parser: ArgumentParser, argv: Sequence[str] | None, work: Callable[[Namespace, Config], None], **when_full: str
) -> int:
    def main() -> None:
        args = parser.parse_args(argv)
        with json_alone(getattr(args, "json", False)), faults_named(args):
            run(args)

    def run(args: Namespace) -> None:
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
    return run_cli(main, **when_full)


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


def _runner(args: Namespace, cfg: Config) -> DaViTRunner:
    with faults_named(args, building=True):
        return DaViTRunner.from_cfg(cfg)


def _train(args: Namespace, cfg: Config) -> None:
    use_train_flags(cfg, args)
    splits = ("train",) if args.no_validate else ("train", "val")
    _settle_classes(args, cfg, splits[0], cfg.load_from)
    _check_data(args, cfg, splits)
    runner = _runner(args, cfg)
    runner.train()
    if args.json and int(os.environ.get("RANK", 0)) == 0:
        put(as_json(runner.document()))


def _test(args: Namespace, cfg: Config) -> None:
    require_writable(args.output)
    if not Path(args.checkpoint).is_file():
        raise ValueError(f"{args.checkpoint}: there is no such checkpoint.")
    cfg.load_from = args.checkpoint
    cfg.model.backbone.init_cfg = None  # the checkpoint holds the backbone
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    _settle_classes(args, cfg, "test", args.checkpoint)
    _check_data(args, cfg, ("test",), labelled=not args.format_only)
    use_test_flags(cfg, args)
    found = {name: float(value) for name, value in _runner(args, cfg).test().items()}
    if int(os.environ.get("RANK", 0)) == 0 and (found or args.json):
        text = "".join(f"{name:24} {value:8.4f}\n" for name, value in found.items())
        give(args, text, found, [{"measure": name, "value": value} for name, value in found.items()])


def _settle_classes(args: Namespace, cfg: Config, split: str, checkpoint: str | None) -> None:
    """Set the classes: those of ``--classes``, else the config's; in the order that the checkpoint has them in.

    Raises:
        ValueError: the checkpoint that is tested or resumed has other classes.
    """
    trained = _classes_of_checkpoint(checkpoint) if checkpoint else None
    first = next(datasets_of(cfg[f"{split}_dataloader"]))
    if "type" not in first:
        raise DataError(f"the config's {split} data set has no type.")
    chosen = None
    if args.classes == ["auto"]:
        chosen = trained if trained and split == "test" else named_classes(first)
    elif args.classes:
        chosen = tuple(args.classes)
    asked = chosen or classes_of(first)
    if trained and asked and trained != asked:
        is_detector = cfg.default_scope == "mmdet"
        by_name = is_detector or first["type"] == "CocoRegions"  # masks hold numbers
        if sorted(trained) == sorted(asked):
            log.warning(
                "%s was trained on these classes in another order (%s; asked for: %s)%s",
                checkpoint,
                some(trained, 6),
                some(asked, 6),
                ": its order is used." if by_name else ", so the numbers in masks would mean other classes.",
            )
            chosen = trained if by_name else chosen
        elif is_detector and (split == "test" or cfg.resume):
            advice = " ".join(map(shlex.quote, trained)) if len(trained) <= 20 else "auto"
            raise ValueError(
                f"{checkpoint} was trained on {len(trained)} classes ({some(trained, 10)}), and {len(asked)} are "
                f"asked for ({some(asked, 10)}). Pass --classes {advice}."
            )
    if chosen:
        set_classes(cfg, chosen)


def _classes_of_checkpoint(file: str) -> tuple[str, ...] | None:
    """Read the class names that mmengine, or mmdet 2 and mmseg 0, stored with the weights; None if there are none."""
    meta = read_checkpoint(file).metadata.get("meta")
    if not isinstance(meta, dict):
        return None
    stored = meta.get("dataset_meta")
    names = (stored if isinstance(stored, dict) else {}).get("classes") or meta.get("CLASSES")
    if isinstance(names, str):
        names = [names]
    return tuple(map(str, names)) if isinstance(names, list | tuple) and names else None


def _check_data(args: Namespace, cfg: Config, splits: Sequence[str], labelled: bool = True) -> None:
    """Check all the data once, in one process of each machine, and use the files that it corrected in all."""
    options = {"data_check": args.data_check, "skip_bad_images": args.skip_bad_images}
    if cfg.default_scope != "mmdet":
        if args.skip_bad_images:
            raise ValueError("--skip-bad-images: only a detector can continue without some of its images.")
    if not args.data_check:
        log.warning("--no-data-check: the headers of the images are not read; a bad image stops the run later.")
    problem: Exception | None = None
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        try:
            warn_of_unlearned({split: _check_split(cfg, split, labelled, options) for split in splits})
        except (OSError, ValueError) as error:
            problem = error
    if args.launcher != "none":
        _tell_others(cfg, splits, problem)
    if problem is not None:
        raise problem


def _check_split(cfg: Config, split: str, labelled: bool, options: dict[str, bool]) -> list[MaskSummary | None]:
    """Check the data sets of a split, and let the evaluators use the corrected copies."""
    copies = {}
    summaries = []
    for dataset in datasets_of(cfg[f"{split}_dataloader"]):
        if "type" not in dataset:
            raise DataError(f"the config's {split} data set has no type.")
        file = annotation_file_of(dataset) if dataset.get("ann_file") else None
        summaries.append(check_dataset(dataset, split, cfg.model, labelled, **options))
        if file is not None:
            copies[Path(file).absolute()] = annotation_file_of(dataset)
    if split == "train" or cfg.default_scope != "mmdet":
        return summaries
    for evaluator in evaluators_of(cfg, split):
        named = evaluator.get("ann_file")
        if named and Path(named).absolute() in copies:
            evaluator["ann_file"] = copies[Path(named).absolute()]
        elif named and "://" not in named and "CocoMetric" in str(evaluator.get("type")):
            corrected = check_coco(
                next(datasets_of(cfg[f"{split}_dataloader"])),
                split,
                cfg.model,
                labelled,
                str(Path(named).absolute()),
                **{**options, "data_check": False},
            )
            evaluator["ann_file"] = corrected or named
    return summaries


def _tell_others(cfg: Config, splits: Sequence[str], problem: Exception | None) -> None:
    """Give the processes of a machine the files and classes that its first one settled on, or stop with it."""
    parts = [one for split in splits for one in datasets_of(cfg[f"{split}_dataloader"])]
    metrics = [one for split in splits if split != "train" for one in evaluators_of(cfg, split)]
    world = init_world()
    settled = [one.get("ann_file") for one in (*parts, *metrics)], [one.get("metainfo") for one in parts]
    found = world.gather((problem is not None, settled))
    if problem is None and any(failed for failed, _ in found):
        raise SystemExit(USER_ERROR)  # the process that found the problem says what it is
    files, metainfos = found[world.rank - world.local_rank][1]
    for one, file in zip((*parts, *metrics), files, strict=True):
        if file is not None:
            one["ann_file"] = file
    for one, metainfo in zip(parts, metainfos, strict=True):
        if metainfo is not None:
            one["metainfo"] = metainfo
