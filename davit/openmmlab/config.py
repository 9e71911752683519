"""A config as a run uses it: the file, the words of the command line, old names, this machine."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction

from ..pretrained import PUBLISHED
from ..text import nearest

log = logging.getLogger(__name__)

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def add_config_arguments(parser: ArgumentParser) -> None:
    """The arguments that say what a run is: the config and what is put over it."""
    parser.add_argument("config", help="a config file, e.g. configs/davit_maskrcnn_1x_coco.py")
    add_override_arguments(parser)


def add_override_arguments(parser: ArgumentParser) -> None:
    """What is put over a config."""
    parser.add_argument(
        "--cfg-options",
        "--options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="values of the config to replace, as model.pretrained=FILE or train_dataloader.batch_size=4",
    )
    parser.add_argument("--data-root", metavar="DIR", help="the folder of the data set, in place of the config's")
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="the classes, in the order of the data set; 'auto' takes those of the training annotations",
    )


def load_config(args: Namespace) -> Config:
    """The config with everything put over it.

    Raises:
        ValueError: the file is missing (the nearest names are offered) or broken, or a value has no effect.
    """
    cfg = read_config(args.config)
    options = _for_both(cfg, dict(args.cfg_options))
    data_root = options.pop("data_root", None) or args.data_root
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError, IndexError) as error:
        raise ValueError(f"--cfg-options {options}: does not fit {args.config}: {error}") from error
    if data_root:
        set_data_root(cfg, str(data_root))
    _evaluate_what_is_read(cfg, options)
    _use_pretrained(cfg)
    for name in LOADERS:
        if (cfg.get(name) or {}).get("num_workers") == 0:
            cfg[name].persistent_workers = False  # PyTorch refuses none that persist
    return cfg


def _for_both(cfg: Config, options: dict[str, Any]) -> dict[str, Any]:
    """What is said of validation holds for testing too, where the config reads and measures the same in both."""
    both = dict(options)
    for part in ("dataloader", "evaluator"):
        if cfg.get(f"val_{part}") == cfg.get(f"test_{part}"):
            prefix = f"val_{part}."
            for name, value in options.items():
                if name.startswith(prefix):
                    both.setdefault(f"test_{part}.{name.removeprefix(prefix)}", value)
    return both


def _evaluate_what_is_read(cfg: Config, options: dict[str, Any]) -> None:
    """An evaluator's annotations are those of its data set, unless they are named on their own."""
    for split in ("val", "test"):
        dataset: Any = next(datasets_of(cfg.get(f"{split}_dataloader")), {})
        evaluator = cfg.get(f"{split}_evaluator")
        if dataset.get("ann_file") and isinstance(evaluator, dict) and "ann_file" in evaluator:
            if f"{split}_evaluator.ann_file" not in options:
                evaluator["ann_file"] = str(Path(dataset.get("data_root") or "") / dataset["ann_file"])


def read_config(path: str | Path) -> Config:
    """A config file.

    Raises:
        ValueError: it is not there, or cannot be run.
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("configs")
        known = sorted(file.name for file in folder.glob("*.py"))
        near = nearest(path.name, known, 3) or known
        hint = f"in {folder} there are {', '.join(near)}" if near else "name a config, e.g. mmdet/configs/..."
        raise ValueError(f"there is no config {path}: {hint}.")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program, and can fail in any way
        raise ValueError(f"the config {path} cannot be read: {type(error).__name__}: {error}") from error


def set_data_root(cfg: Config, folder: str) -> None:
    """Read all splits from another folder."""
    cfg.data_root = folder
    for name in LOADERS:
        for dataset in datasets_of(cfg.get(name)):
            dataset.data_root = folder


def datasets_of(part: Any) -> Iterator[Any]:
    """The configs of the data sets that a loader reads, also inside wrappers that repeat or join them."""
    if part is None:
        return
    if "dataset" in part:
        yield from datasets_of(part["dataset"])
    elif "datasets" in part:
        for inner in part["datasets"]:
            yield from datasets_of(inner)
    else:
        yield part


def set_classes(cfg: Config, classes: tuple[str, ...]) -> None:
    """Make data sets and heads those of other classes."""
    for name in LOADERS:
        for dataset in datasets_of(cfg.get(name)):
            dataset.metainfo = {"classes": classes}
    for part in _dicts(cfg.model):
        if "num_classes" in part:
            part["num_classes"] = len(classes)


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dicts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _dicts(inner)


def _use_pretrained(cfg: Config) -> None:
    """``model.pretrained`` of old configs and command lines becomes the backbone's ``init_cfg``."""
    source = cfg.model.pop("pretrained", None)
    if source is None:
        return
    if source not in PUBLISHED and not Path(str(source)).is_file():
        raise ValueError(
            f"model.pretrained={source}: there is no such file; it names a classification checkpoint, or one of "
            f"{', '.join(PUBLISHED)} to fetch the published weights."
        )
    cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(source)}


def use_amp(cfg: Config) -> None:
    """Train in mixed precision where there is a GPU."""
    if not torch.cuda.is_available():
        log.warning("--amp: mmengine has mixed precision on GPUs alone; training in float32.")
        return
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.loss_scale = "dynamic"


def use_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate by the global batch over the one that the config was made for.

    Raises:
        ValueError: the config does not say which that is.
    """
    if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
        raise ValueError("--auto-scale-lr: the config has no auto_scale_lr.base_batch_size to scale from.")
    cfg.auto_scale_lr.enable = True


def check_batch(cfg: Config) -> None:
    """UPerNet pools a picture to a single cell, which batch norm cannot normalise over a batch of one.

    Raises:
        ValueError: a process would train on one picture a step with a batch norm of its own.
    """
    head = cfg.model.get("decode_head") or {}
    norm = (head.get("norm_cfg") or {}).get("type") if isinstance(head, dict) else None
    shared = norm == "SyncBN" and cfg.launcher != "none" and torch.cuda.is_available()
    if norm in ("BN", "SyncBN") and not shared and 1 in head.get("pool_scales", ()):
        if cfg.train_dataloader.get("batch_size") == 1:
            raise ValueError(
                "train_dataloader.batch_size=1: the decode head pools each picture to one cell, and batch norm in one "
                "process needs two. Pass --cfg-options train_dataloader.batch_size=2 or more."
            )


# ---- the flags of test.py ----

METRICS = {"mmdet": ("bbox", "segm", "proposal", "proposal_fast"), "mmseg": ("mIoU", "mDice", "mFscore")}
_METRIC_KEYS = {"mmdet": "metric", "mmseg": "iou_metrics"}


def use_evaluation_words(args: Namespace, cfg: Config) -> None:
    """Put --eval, --out, --format-only, --show-dir and --aug-test into a config.

    Raises:
        ValueError: a metric is unknown, or the model does not predict what it needs.
    """
    scope = cfg.default_scope
    evaluator = cfg.test_evaluator
    if args.eval:
        unknown = [name for name in args.eval if name not in METRICS[scope]]
        if unknown:
            raise ValueError(
                f"--eval {' '.join(args.eval)}: {unknown[0]!r} is not one of {', '.join(METRICS[scope])}."
            )
        if scope == "mmdet" and "segm" in args.eval and "mask_head" not in (cfg.model.get("roi_head") or {}):
            raise ValueError("--eval segm: this config's detector predicts boxes alone; use --eval bbox.")
        evaluator[_METRIC_KEYS[scope]] = args.eval
    if args.format_only or args.out:
        evaluator.format_only = args.format_only
        _use_output(args, cfg, evaluator)
    if args.show_dir:
        _use_show_dir(cfg, args.show_dir)
    if args.aug_test:
        _use_augmentation(cfg)
    if args.format_only and scope == "mmseg":
        for dataset in datasets_of(cfg.test_dataloader):
            dataset.pipeline = _without_masks(dataset.pipeline)


def _use_output(args: Namespace, cfg: Config, evaluator: Any) -> None:
    target = Path(args.out) if args.out else Path(cfg.work_dir) / "results"
    if cfg.default_scope == "mmseg":
        evaluator.output_dir = str(target)
    else:
        evaluator.outfile_prefix = str(target.with_suffix("") if target.suffix in (".json", ".pkl") else target)


def _use_show_dir(cfg: Config, folder: str) -> None:
    if cfg.default_scope == "mmseg":
        cfg.default_hooks.visualization = {"type": "DrawnPredictions", "out_dir": str(Path(folder).absolute())}
    else:
        hook = cfg.default_hooks.visualization
        hook.draw = True
        hook.test_out_dir = str(Path(folder).absolute())


def _use_augmentation(cfg: Config) -> None:
    """The config's own augmentation at test time; a detector's without one is flipped."""
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        raise ValueError("--aug-test: the config has no tta_model and tta_pipeline that say how.")
    for dataset in datasets_of(cfg.test_dataloader):
        dataset.pipeline = deepcopy(cfg.tta_pipeline)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _without_masks(pipeline: Any) -> Any:
    """A test pipeline, also within `TestTimeAug`, that does not load the masks, which a server's test set lacks."""
    kept = [step for step in pipeline if isinstance(step, list) or step["type"] != "LoadAnnotations"]
    for index, step in enumerate(kept):
        if isinstance(step, list):
            kept[index] = _without_masks(step)
        elif "transforms" in step:
            step["transforms"] = _without_masks(step["transforms"])
    return [step for step in kept if step != []]
