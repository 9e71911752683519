"""Check a config: a recipe of train.py, or a config of mmdet/ or mmseg/."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from .. import recipes
from ..data import DataError, open_dataset
from ..engine.flags import parse_with_config, train_parser
from ..registry import create_model
from ..text import install_extra
from .findings import Finding, error, ok, warning
from .folders import examine_folder


def examine_config(file: Path, limit: int | None) -> Iterator[Finding]:
    """Find what is wrong with a config, and with the data that it names.

    Args:
        limit: as `examine_folder` has it; only for a recipe.
    """
    with suppress(ValueError):  # which the readers say themselves
        file = recipes.find(file, "recipe", "mmdet", "mmseg")
    return _openmmlab(file) if file.suffix == ".py" else _recipe(file, limit)


def _recipe(file: Path, limit: int | None) -> Iterator[Finding]:
    try:
        args = parse_with_config(train_parser(), ["-c", str(file)])
    except ValueError as fault:
        yield error("recipe", str(fault), "python train.py --help lists the keys")
        return
    yield ok("recipe", f"{file}: every key is a flag of train.py")
    try:
        with torch.device("meta"):
            model = create_model(args.model, **(args.model_kwargs or {}))
    except (ValueError, TypeError) as fault:
        yield error("model", f"{args.model}: {fault}", "correct model and model_kwargs in the recipe")
    else:
        params = sum(parameter.numel() for parameter in model.parameters())
        yield ok("model", f"{args.model}, {params / 1e6:.2f} M parameters")
    if args.data_dir:
        yield from examine_folder(Path(args.data_dir), limit)
        with suppress(DataError):  # which is a finding already
            count = len(open_dataset(args.data_dir, "train", dataset=args.dataset or "").class_names)
            if args.num_classes and args.num_classes != count:
                text = f"num_classes is {args.num_classes} and {args.data_dir} has {count}"
                yield error("classes", text, "leave num_classes out: train.py counts the folders")


def _openmmlab(file: Path) -> Iterator[Finding]:
    """Read a config of mmdet/ or mmseg/, and check its data sets as the tools do before a run."""
    try:
        from mmengine.registry import init_default_scope

        from ..openmmlab.config import datasets_of, read_config
        from ..openmmlab.datasets import check_dataset

        config = read_config(file)
    except ImportError as fault:
        remedy = install_extra("openmmlab")
        yield warning("config", f"{file} was not read: OpenMMLab's packages are missing ({fault})", remedy)
        return
    except Exception as fault:  # a config is Python, and fails as Python does
        yield error("config", f"{file} cannot be read: {type(fault).__name__}: {fault}", "correct it, or its _base_")
        return
    yield ok("config", f"{file}, with all that it inherits")
    if (scope := config.get("default_scope")) is not None:
        init_default_scope(scope)
    seen = []
    for split in ("train", "val", "test"):
        for dataset in datasets_of(config.get(f"{split}_dataloader")):
            if dataset in seen:  # most configs test on what they validate on
                continue
            seen.append(dataset)
            try:
                check_dataset(dataset, split, config.get("model") or {})
            except Exception as fault:
                yield error(split, str(fault), "put the data there (README.md of mmdet/, mmseg/), or give --data-root")
            else:
                yield ok(split, f"{dataset['type']} in {dataset.get('data_root') or '.'}")
