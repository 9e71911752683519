"""A config's parts stay parts, whatever options and users' files put in their place."""

from argparse import Namespace
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from mmengine.config import Config

from davit.openmmlab import config
from davit.openmmlab.config import read_config
from davit.openmmlab.parts import check_parts

CONFIGS = ("davit_nano_maskrcnn_digits", "davit_retinanet_1x_coco", "upernet_davit_folders")
ODD: tuple[Any, ...] = ("x", "", 0, 3, 0.5, True, float("nan"), [1, 2], ["x"])


@pytest.fixture(scope="module", params=CONFIGS)
def cfg(request: pytest.FixtureRequest) -> Config:
    return read_config(f"{request.param}.py")


def _parts(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Find all dictionaries below a config's, and lists of them, with their paths."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, dict | list) and (isinstance(value, dict) or any(isinstance(v, dict) for v in value)):
            yield f"{path}{key}", value
            yield from _parts(value, f"{path}{key}.")


def _check(cfg: Config, options: dict[str, Any]) -> None:
    merged = deepcopy(cfg)
    merged.merge_from_dict(options)
    check_parts(merged._cfg_dict, "a.py", cfg._cfg_dict, options)


def _load(cfg: Config, options: dict[str, Any]) -> None:
    with mock.patch.object(config, "read_config", lambda _: deepcopy(cfg)):  # which takes longer than the check
        config.load_config(Namespace(config=cfg.filename, cfg_options=options, data_root=None, classes=None))


def test_no_part_is_replaced_by_another_kind(cfg: Config) -> None:
    found = dict(_parts(cfg._cfg_dict))
    assert len(found) > 50
    for number, path in enumerate(found):
        value = ODD[number % len(ODD)]
        with pytest.raises(ValueError) as error:
            _load(cfg, {path: value})
        assert f"--cfg-options {path}=" in str(error.value), path


def test_the_outer_option_is_named(cfg: Config) -> None:
    with pytest.raises(ValueError) as error:
        _check(cfg, {"train_cfg": {"val_interval": 1}, "train_dataloader": {"dataset": 3}})
    assert "--cfg-options train_dataloader=" in str(error.value)
    assert "train_dataloader.dataset" in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"val_dataloader": None, "val_cfg": None, "val_evaluator": None},
        {"default_hooks.checkpoint": None},
        {"optim_wrapper.clip_grad": None},
        {"param_scheduler": [{"type": "ConstantLR", "factor": 1.0}] * 3},
        {"optim_wrapper.optimizer": {"_delete_": True, "type": "SGD", "lr": 0.1}},
        {"train_dataloader.dataset.pipeline": [{"type": "LoadImageFromFile"}]},
        {"val_evaluator": [{"type": "A"}, {"type": "B"}]},
        {"train_dataloader.dataset": {"_delete_": True, "type": "RepeatDataset", "dataset": {"type": "A"}}},
        {"train_dataloader.dataset.data_root": Path("a"), "work_dir": "x", "nonsense": 3},
        {"custom_hooks": [{"type": "A"}]},
    ],
)
def test_what_options_may_do(cfg: Config, options: dict[str, Any]) -> None:
    _check(cfg, options)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"train_dataloader.dataset": None}, "train_dataloader.dataset"),
        ({"model.backbone": None}, "model.backbone"),
        ({"train_dataloader.dataset.ann_file": 3}, "train_dataloader.dataset.ann_file"),
        ({"custom_hooks": {"type": "A"}}, "custom_hooks"),
        (
            {"train_dataloader.dataset": {"_delete_": True, "datasets": [{"data_prefix": {"img": 3}}]}},
            "train_dataloader.dataset.datasets.0.data_prefix.img",
        ),
        ({"train_dataloader.dataset": {"_delete_": True, "datasets": 3}}, "train_dataloader.dataset.datasets"),
        ({"test_dataloader.dataset": {"metainfo": "x"}}, "test_dataloader.dataset.metainfo"),
    ],
)
def test_what_they_may_not(cfg: Config, options: dict[str, Any], path: str) -> None:
    with pytest.raises(ValueError) as error:
        _check(cfg, options)
    assert path in str(error.value)
