"""Read a config, and put the flags of the command line, old names and the limits of this machine into it."""

from __future__ import annotations

import importlib.util
import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from .. import recipes
from ..commands import exit_status
from ..limits import short
from ..pretrained import PUBLISHED, resolve
from ..text import did_you_mean, install_extra
from .bands import follow_bands
from .box_layouts import use_box_layout
from .mask_layouts import use_mask_layout
from .parts import check_parts
from .swap import swap_backbone

log = logging.getLogger(__name__)

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
METRICS = {"mmdet": ("bbox", "segm", "proposal", "proposal_fast"), "mmseg": ("mIoU", "mDice", "mFscore")}
_LONGEST = 500  # characters of another library's error, which may hold the whole config
_METRIC_TYPES = {"mmdet": "CocoMetric", "mmseg": "IoUMetric"}
_METRIC_KEYS = {"mmdet": "metric", "mmseg": "iou_metrics"}


def read_config(path: str | Path) -> Config:
    """Read a config: a file, the name of one of ours, or "mmdet::NAME" and "mmseg::NAME" of those installed.

    Raises:
        ValueError: it is not there (the nearest names are offered), or cannot be run.
    """
    try:
        file = _installed(str(path)) or recipes.find(path, "mmdet", "mmseg")
    except ValueError as error:
        raise ValueError(f"the config {error}") from None
    try:
        return Config.fromfile(file)
    except Exception as error:  # a config is a program, and can fail in any way
        raise ValueError(f"the config {path} cannot be read: {type(error).__name__}: {error}") from error


_OURS = "davit::"
_path_of_base = Config._get_cfg_path


def _path_of_any_base(base: str, file: str) -> tuple[str, str | None]:
    """Find what ``_base_`` names: "davit::NAME" is a config of ours, which belongs to no library's scope."""
    if base.startswith(_OURS):
        return str(recipes.find(base.removeprefix(_OURS), "mmdet", "mmseg")), None
    if installed := _installed(base):
        return str(installed), base.partition("::")[0]
    found: tuple[str, str | None] = _path_of_base(base, file)
    return found


# mmengine looks only into distributions of its own list, which does not have the maintained mmsegmentation's name
Config._get_cfg_path = staticmethod(_path_of_any_base)


def _installed(name: str) -> Path | None:
    """Return the file of "mmdet::NAME" or "mmseg::NAME"; None for anything else.

    Raises:
        ValueError: the library has no such config, or is not there.
    """
    scope, _, wanted = name.partition("::")
    if scope not in METRICS or not wanted:
        return None
    found = importlib.util.find_spec(scope)
    if found is None or not found.origin:
        raise ValueError(f"{name}: {scope} is not installed. {install_extra('openmmlab')}")
    folder = Path(found.origin).parent / ".mim" / "configs"
    file = folder / (wanted if wanted.endswith(".py") else wanted + ".py")
    if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
        return file
    there = [one.relative_to(folder).as_posix() for one in folder.glob("*/*.py")]
    raise ValueError(f"{name} is not there: {did_you_mean(wanted, there, limit=3)}the configs are in {folder}.")


# ---- the flags that all tools have (davit/parsing/openmmlab.py) ----


def load_config(args: Namespace) -> Config:
    """Read ``args.config`` and replace what the flags of `add_override_arguments` say; ``--classes`` is left.

    Raises:
        ValueError: the file is missing or broken, or a value has no effect.
    """
    cfg = read_config(args.config)
    if nameless := [name for name in args.cfg_options if not all(name.split("."))]:
        raise ValueError(
            f"--cfg-options {nameless[0]}=...: name a value of the config, as in train_cfg.max_epochs=12."
        )
    options = _for_testing_too(cfg, args.cfg_options)
    data_root = options.pop("data_root", None) or args.data_root
    backbone = getattr(args, "backbone", None)  # before the options, which may refine it
    if backbone and isinstance(cfg.get("model"), dict):
        swap_backbone(cfg, backbone)
    before = deepcopy(cfg._cfg_dict)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise ValueError(f"--cfg-options {_listed(options)}: does not fit {args.config}: {error}") from error
    check_parts(cfg._cfg_dict, args.config, before, options)
    if "model" not in cfg or cfg.get("default_scope") not in tuple(_METRIC_KEYS):
        raise ValueError(
            f"{args.config} is no config of a detector or segmentor: it needs a `model`, and a `default_scope` that "
            f"is {' or '.join(_METRIC_KEYS)}."
        )
    if data_root:
        use_data_root(cfg, Path(data_root))
        _use_layout(cfg, args, Path(data_root), options)
    _set_annotations_of_evaluators(cfg, options)
    _set_pretrained(cfg)
    follow_bands(cfg)
    for name in LOADERS:
        if (cfg.get(name) or {}).get("num_workers") == 0:
            cfg[name].persistent_workers = False  # PyTorch refuses persistent workers where there are none
    return cfg


@contextmanager
def faults_named(args: Namespace, *, building: bool = False) -> Iterator[None]:
    """Make a user's error of whatever a value of --cfg-options leads to, and of a part that cannot be built.

    An error that has an exit status passes, and so does what is the machine's: memory, disks, other processes. While
    nothing is built, and without options, an error is a fault of the program, and passes too.

    Args:
        building: parts of the config are built meanwhile, whose errors tell of the config.

    Raises:
        ValueError: names the options and values, or the config. DAVIT_TRACEBACK=1 shows where the error arose.
    """
    try:
        yield
    except Exception as error:
        machines = isinstance(error, OSError | torch.OutOfMemoryError | torch.distributed.DistError)
        at_fault = args.cfg_options or building or _is_of_a_builder(error)
        if exit_status(error) is not None or machines or not at_fault:
            raise
        subject = f"{args.config} cannot be run"
        if args.cfg_options:
            subject = f"--cfg-options {_listed(args.cfg_options)}: {args.config} fails with this"
        said = str(error).partition("\n")[0][:_LONGEST]
        raise ValueError(f"{subject}: {type(error).__name__}: {said} (DAVIT_TRACEBACK=1 shows where).") from error


def _is_of_a_builder(error: Exception) -> bool:
    """Tell whether an error arose while mmengine built a part of a config, as it builds optimizers after the start."""
    return any(frame.f_code.co_name.startswith("build_") for frame, _ in walk_tb(error.__traceback__))


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={short(value)}" for name, value in options.items())


def _for_testing_too(cfg: Config, options: dict[str, Any]) -> dict[str, Any]:
    """Repeat the options of validation for testing, where the config reads and measures the same in both."""
    both = dict(options)
    for part in ("dataloader", "evaluator"):
        if cfg.get(f"val_{part}") == cfg.get(f"test_{part}"):
            for name, value in options.items():
                if name.startswith(f"val_{part}."):
                    both.setdefault(name.replace("val", "test", 1), value)
    return both


def use_data_root(cfg: Config, root: Path) -> None:
    """Read all data sets from a folder."""
    cfg.data_root = str(root)
    for dataset in _all_datasets(cfg):
        dataset.data_root = cfg.data_root


def _use_layout(cfg: Config, args: Namespace, root: Path, options: dict[str, Any]) -> None:
    """Take what the folder holds where the config's files are not in it, and its own classes where they are others."""
    parts = {name.split("_")[0]: list(datasets_of(cfg.get(name))) for name in LOADERS}
    if classes := use_mask_layout(parts, root, options, args.classes not in (None, ["auto"])):
        set_classes(cfg, classes)
    read = {name: parts[name] for name in _splits_read(args)}
    if use_box_layout(read, root, options, labelled=not getattr(args, "format_only", False)) and not args.classes:
        args.classes = ["auto"]


def _splits_read(args: Namespace) -> tuple[str, ...]:
    """Name the splits that a tool reads, by its flags."""
    if hasattr(args, "no_validate"):
        return ("train",) if args.no_validate else ("train", "val")
    return ("test",) if hasattr(args, "format_only") else ()


def _set_annotations_of_evaluators(cfg: Config, options: dict[str, Any]) -> None:
    """Evaluate on the annotations of the data set, unless an option names others."""
    for split in ("val", "test"):
        dataset: Any = next(datasets_of(cfg.get(f"{split}_dataloader")), {})
        for evaluator in evaluators_of(cfg, split):
            if dataset.get("ann_file") and "ann_file" in evaluator:
                if not any(name.startswith(f"{split}_evaluator.") and name.endswith("ann_file") for name in options):
                    evaluator["ann_file"] = annotation_file_of(dataset)


def annotation_file_of(dataset: Any) -> str:
    """Return the path of a data set's annotation file."""
    return str(Path(dataset.get("data_root") or "") / dataset["ann_file"])


def _set_pretrained(cfg: Config) -> None:
    """Make ``model.pretrained`` of old configs and command lines the backbone's ``init_cfg``."""
    source = cfg.model.pop("pretrained", None)
    if source is None:
        return
    if source not in PUBLISHED and not resolve(str(source)).file.exists():
        raise ValueError(
            f"model.pretrained={source}: there is no such file; it names a classification checkpoint (a file, a "
            f"folder, hf-hub:OWNER/NAME), or one of {', '.join(PUBLISHED)} to fetch the published weights."
        )
    cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(source)}


# ---- data sets and classes ----


def datasets_of(part: Any) -> Iterator[Any]:
    """Find the configs of the data sets that a loader reads, also inside wrappers that repeat or join them."""
    if part is None:
        return
    if "dataset" in part:
        yield from datasets_of(part["dataset"])
    elif "datasets" in part:
        for inner in part["datasets"]:
            yield from datasets_of(inner)
    else:
        yield part


def evaluators_of(cfg: Config, split: str) -> list[Any]:
    """Find the configs of the metrics of 'val' or 'test', which may be one, a list, or those of an ``Evaluator``."""
    found = cfg.get(f"{split}_evaluator") or []
    if isinstance(found, dict) and "metrics" in found:
        found = found["metrics"]
    return [one for one in (found if isinstance(found, list | tuple) else [found]) if isinstance(one, dict)]


def _all_datasets(cfg: Config) -> Iterator[Any]:
    return (dataset for name in LOADERS for dataset in datasets_of(cfg.get(name)))


def set_classes(cfg: Config, classes: tuple[str, ...]) -> None:
    """Give data sets other classes, and heads as many outputs."""
    for dataset in _all_datasets(cfg):
        dataset.metainfo = {"classes": classes}
    _set_num_classes(cfg.model, len(classes))


def _set_num_classes(part: Any, count: int) -> None:
    """Set ``num_classes`` wherever a model's config has it."""
    if isinstance(part, dict):
        if "num_classes" in part:
            part["num_classes"] = count
        part = list(part.values())
    if isinstance(part, list | tuple):
        for inner in part:
            _set_num_classes(inner, count)


# ---- the flags of train.py ----


def use_train_flags(cfg: Config, args: Namespace) -> None:
    """Put the flags of train.py into a config.

    Raises:
        ValueError: flags contradict one another or the config, or a process would have a batch of one image.
    """
    if args.resume and args.load_from:
        raise ValueError("--resume continues with a run, --load-from starts one from weights: pass one of the two.")
    cfg.resume = bool(args.resume)
    cfg.load_from = args.load_from or (None if args.resume == "auto" else args.resume)
    if cfg.load_from and not Path(cfg.load_from).is_file():
        raise ValueError(f"{cfg.load_from}: there is no such file to start from.")
    if args.amp and not torch.cuda.is_available():
        log.warning("--amp: mmengine has mixed precision only on GPUs; training in float32.")
    elif args.amp:
        cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    if args.auto_scale_lr:
        if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
            raise ValueError("--auto-scale-lr: the config has no auto_scale_lr.base_batch_size to scale from.")
        cfg.auto_scale_lr.enable = True
    if args.no_validate:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.get("default_hooks", {}).get("checkpoint", {}).pop("save_best", None)
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    _check_batch(cfg)


def _check_batch(cfg: Config) -> None:
    """Refuse a batch of one image where UPerNet pools it to a single cell, which batch norm cannot normalise."""
    head = cfg.model.get("decode_head") or {}
    norm = (head.get("norm_cfg") or {}).get("type") if isinstance(head, dict) else None
    shared = norm == "SyncBN" and cfg.launcher != "none" and torch.cuda.is_available()
    if norm in ("BN", "SyncBN") and not shared and 1 in head.get("pool_scales", ()):
        if cfg.train_dataloader.get("batch_size") == 1:
            raise ValueError(
                "train_dataloader.batch_size=1: the decode head pools each image to one cell, and batch norm in one "
                "process needs two. Pass --cfg-options train_dataloader.batch_size=2 or more."
            )


# ---- the flags of test.py ----


def use_test_flags(cfg: Config, args: Namespace) -> None:
    """Put the flags of test.py into a config.

    Raises:
        ValueError: a metric is unknown, or the model does not predict what it needs.
    """
    scope = cfg.default_scope
    evaluators = [one for one in evaluators_of(cfg, "test") if _METRIC_TYPES[scope] in str(one.get("type"))]
    if args.eval:
        unknown = [name for name in args.eval if name not in METRICS[scope]]
        if unknown:
            raise ValueError(
                f"--eval {' '.join(args.eval)}: {unknown[0]!r} is not one of {', '.join(METRICS[scope])}."
            )
        if scope == "mmdet" and "segm" in args.eval and "mask_head" not in (cfg.model.get("roi_head") or {}):
            raise ValueError("--eval segm: this config's detector predicts only boxes; use --eval bbox.")
        for evaluator in evaluators:
            evaluator[_METRIC_KEYS[scope]] = args.eval
    if args.format_only or args.out:
        if not evaluators:
            raise ValueError(f"--format-only and --out: the config's test_evaluator has no {_METRIC_TYPES[scope]}.")
        target = Path(args.out or Path(cfg.work_dir) / "results")
        if scope == "mmseg":
            cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), {"type": "DistinctMaskNames"}]
        for evaluator in evaluators:
            evaluator.format_only = args.format_only
            if scope == "mmseg":
                evaluator.output_dir = str(target)
            else:
                is_file = target.suffix in (".json", ".pkl")
                evaluator.outfile_prefix = str(target.with_suffix("") if is_file else target)
    if args.show_dir:
        folder = str(Path(args.show_dir).absolute())
        if scope == "mmseg":
            cfg.default_hooks.visualization = {"type": "DrawnPredictions", "out_dir": folder}
        else:
            least = cfg.default_hooks.get("visualization", {}).get("score_thr", 0.3)
            cfg.default_hooks.visualization = {"type": "DrawnDetections", "out_dir": folder, "score_thr": least}
    if args.aug_test:
        if "tta_model" not in cfg or "tta_pipeline" not in cfg:
            raise ValueError("--aug-test: the config has no tta_model and tta_pipeline that say how.")
        for dataset in datasets_of(cfg.test_dataloader):
            dataset.pipeline = deepcopy(cfg.tta_pipeline)
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    if args.format_only and scope == "mmseg":
        for dataset in datasets_of(cfg.test_dataloader):
            dataset.pipeline = _without_masks(dataset.pipeline)


def _without_masks(pipeline: Any) -> Any:
    """Leave the loading of masks, which a server's test set lacks, out of a pipeline and of its `TestTimeAug`."""
    kept = []
    for step in pipeline:
        if isinstance(step, list):
            step = _without_masks(step)
        elif step["type"] == "LoadAnnotations":
            continue
        elif "transforms" in step:
            step = {**step, "transforms": _without_masks(step["transforms"])}
        if step != []:
            kept.append(step)
    return kept
