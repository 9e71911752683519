"""The words of test.py, put into a config: what to evaluate, what to write, augmentation at test time."""

from __future__ import annotations

from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from .config import datasets_of

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
