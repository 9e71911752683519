"""A config: a recipe of train.py, or a config of mmdet/ or mmseg/."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..data import DataError, open_dataset
from ..engine.arguments import parse_with_config, train_parser
from ..variants import create_model
from .findings import Finding, error, ok, warning
from .folders import examine_folder


def examine_config(file: Path, limit: int | None) -> Iterator[Finding]:
    """All findings about a config, and about the data that it names.

    Args:
        limit: as `examine_folder` has it.
    """
    if file.suffix == ".py":
        yield from _openmmlab(file, limit)
    else:
        yield from _recipe(file, limit)


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
        yield from _class_count(args)


def _class_count(args: Any) -> Iterator[Finding]:
    if args.num_classes:
        try:
            found = len(open_dataset(args.data_dir, "train").class_names)
        except DataError:
            return  # said already
        if found != args.num_classes:
            text = f"num_classes is {args.num_classes} and {args.data_dir} has {found}"
            yield error("classes", text, "leave num_classes out: train.py counts the folders")


def _openmmlab(file: Path, limit: int | None) -> Iterator[Finding]:
    if importlib.util.find_spec("mmengine") is None:
        yield warning("config", f"{file}: mmengine is not installed, so it was not read", "see mmdet/README.md")
        return
    try:
        config = importlib.import_module("mmengine.config").Config.fromfile(str(file))
    except Exception as fault:  # a config is Python, and fails as Python does
        yield error("config", f"{file} cannot be read: {type(fault).__name__}: {fault}", "correct it, or its _base_")
        return
    yield ok("config", f"{file}, with all that it inherits")
    root = config.get("data_root")
    if root is None:
        yield warning("data", "the config names no data_root", "give it, or check the paths of its data sets by hand")
        return
    # paths of a config are relative to the folder that holds configs/
    places = [Path(root), *(parent.parent / root for parent in file.absolute().parents if parent.name == "configs")]
    yield from examine_folder(next((place for place in places if place.exists()), places[-1]), limit)
