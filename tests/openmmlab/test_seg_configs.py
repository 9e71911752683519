"""The configs of mmseg/configs: sizes, recipe, and that each trains and predicts."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.openmmlab.conftest import SEG, build, config

SIZES = {"tiny": "", "small": "small_", "base": "base_"}
PARAMETERS = {"tiny": 60.01, "small": 81.40, "base": 121.47}  # millions, shared/spec/openmmlab.md


def ade20k(size: str) -> Any:
    return config(SEG / f"upernet_davit_{SIZES[size]}512x512_160k_ade20k.py")


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        model = build(ade20k(size))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == PARAMETERS[size]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
def test_flops_are_the_published_ones(size: str, shared: Path) -> None:
    from davit.openmmlab.flops import cost_of

    with (shared / "spec" / "published.csv").open() as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream) if row["task"] == "seg"}
    cfg = ade20k(size)
    cfg.model.pop("pretrained")
    cost = cost_of(cfg, size)
    assert cost.size == (512, 2048)
    assert cost.flops / 1e9 == pytest.approx(float(rows[size]["flops_G"]), rel=0.01)


@pytest.mark.parametrize("size", ["tiny", *(pytest.param(size, marks=pytest.mark.long) for size in ("small", "base"))])
def test_a_config_trains_a_step_and_predicts(size: str) -> None:
    from mmengine.model import revert_sync_batchnorm
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    cfg = ade20k(size)
    cfg.model.data_preprocessor.size = (64, 64)
    model = revert_sync_batchnorm(build(cfg))  # what the runner does in one process
    labels = PixelData(data=torch.randint(0, 150, (1, 64, 64)))
    sample = SegDataSample(gt_sem_seg=labels, metainfo={"ori_shape": (50, 60), "img_shape": (64, 64)})
    batch = {"inputs": [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)] * 2, "data_samples": [sample] * 2}
    losses = model(**model.data_preprocessor(batch, training=True), mode="loss")
    assert set(losses) == {"decode.loss_ce", "decode.acc_seg", "aux.loss_ce", "aux.acc_seg"}
    (losses["decode.loss_ce"] + losses["aux.loss_ce"]).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        found = model.eval().test_step(batch)[0]
    assert found.pred_sem_seg.data.shape == (1, 50, 60)  # the size of the image before its resize
    assert found.seg_logits.data.shape == (150, 50, 60)


def test_the_recipe_is_the_published_one() -> None:
    cfg = ade20k("tiny")
    optimizer, model = cfg.optim_wrapper.optimizer, cfg.model
    assert dict(optimizer) == {"type": "AdamW", "lr": 6e-5, "betas": (0.9, 0.999), "weight_decay": 0.01, "fused": True}
    assert (cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size) == (160000, 2)
    assert (cfg.auto_scale_lr.base_batch_size, model.backbone.drop_path_rate) == (16, 0.3)
    assert (model.decode_head.channels, model.auxiliary_head.loss_decode.loss_weight) == (512, 0.4)
    assert model.test_cfg.mode == "whole"
    steps = {step["type"]: step for step in cfg.train_dataloader.dataset.pipeline}
    assert (steps["RandomResize"]["scale"], steps["RandomResize"]["ratio_range"]) == ((2048, 512), (0.5, 2.0))
    assert (steps["RandomCrop"]["crop_size"], steps["RandomCrop"]["cat_max_ratio"]) == ((512, 512), 0.75)
    assert steps["RandomFlip"]["prob"] == 0.5 and "PhotoMetricDistortion" in steps
    warm_up, decay = (dict(one) for one in cfg.param_scheduler)
    assert warm_up == {"type": "LinearLR", "start_factor": 1e-6, "by_epoch": False, "begin": 0, "end": 1500}
    expected = {"type": "PolyLR", "power": 1.0, "eta_min": 0.0, "by_epoch": False, "begin": 1500, "end": 160000}
    assert decay == expected


def test_multi_scale_ratios_are_of_the_test_size() -> None:
    """Of 2048x512, as the original multiplied; mmseg's own base scales the image's size instead."""
    resizes, flips = ade20k("tiny").tta_pipeline[1].transforms[:2]
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert [tuple(step["scale"]) for step in resizes] == [(int(2048 * r), int(512 * r)) for r in ratios]
    assert [step["prob"] for step in flips] == [0.0, 1.0]


@pytest.mark.parametrize("file", sorted(SEG.glob("*.py")), ids=lambda file: file.stem)
def test_a_config_is_read_by_mmengine_alone(file: Path) -> None:
    """Other tools than ours read them too."""
    cfg = config(file)  # which mmengine's Config has read
    assert cfg.model.type == "EncoderDecoder"
    assert cfg.custom_imports["imports"][0] == "davit.openmmlab"
    assert "# Command:" in file.read_text().split("\n_base_")[0]
