"""The configs of mmseg/configs: sizes, recipe, and that each trains and predicts."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

import davit.openmmlab  # noqa: F401  (before mmseg)
from davit.openmmlab.config import read_config
from tests.openmmlab.segs import CONFIGS, build

SIZES = {"tiny": "", "small": "small_", "base": "base_"}
PARAMETERS = {"tiny": 60.01, "small": 81.40, "base": 121.47}  # millions, shared/spec/openmmlab.md


def config(size: str) -> Any:
    return read_config(CONFIGS / f"upernet_davit_{SIZES[size]}512x512_160k_ade20k.py")


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_the_published_ones(size: str) -> None:
    model = build(config(size))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == PARAMETERS[size]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
def test_flops_are_the_published_ones(size: str, shared: Path) -> None:
    from davit.openmmlab.flops import cost_of

    with (shared / "spec" / "published.csv").open() as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream) if row["task"] == "seg"}
    cfg = config(size)
    cfg.model.pop("pretrained")
    cost = cost_of(cfg, size)
    assert cost.size == (512, 2048)
    assert cost.flops / 1e9 == pytest.approx(float(rows[size]["flops_G"]), rel=0.01)


@pytest.mark.parametrize("size", SIZES)
def test_a_config_trains_a_step_and_predicts(size: str) -> None:
    from mmengine.model import revert_sync_batchnorm
    from mmseg.structures import SegDataSample

    cfg = config(size)
    cfg.model.data_preprocessor.size = (64, 64)
    model = revert_sync_batchnorm(build(cfg))  # what the runner does in one process
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    samples = [sample(SegDataSample, seed) for seed in range(2)]
    batch = {"inputs": [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)] * 2, "data_samples": samples}
    data = model.data_preprocessor(batch, training=True)
    losses = model(**data, mode="loss")
    assert set(losses) == {"decode.loss_ce", "decode.acc_seg", "aux.loss_ce", "aux.acc_seg"}
    before = model.backbone.patch_embeds[0].proj.weight.detach().clone()
    (losses["decode.loss_ce"] + losses["aux.loss_ce"]).backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    assert not torch.equal(before, model.backbone.patch_embeds[0].proj.weight)
    model.eval()
    with torch.no_grad():
        results = model.test_step({"inputs": batch["inputs"], "data_samples": samples})
    assert results[0].pred_sem_seg.data.shape == (1, 50, 60)  # the size of the picture before its resize
    assert results[0].seg_logits.data.shape == (150, 50, 60)


def sample(kind: Any, seed: int) -> Any:
    from mmengine.structures import PixelData

    labels = torch.randint(0, 150, (1, 64, 64), generator=torch.Generator().manual_seed(seed))
    return kind(gt_sem_seg=PixelData(data=labels), metainfo={"ori_shape": (50, 60), "img_shape": (64, 64)})


def test_the_recipe_is_the_published_one() -> None:
    cfg = config("tiny")
    optimizer = cfg.optim_wrapper.optimizer
    assert dict(optimizer) == {"type": "AdamW", "lr": 6e-5, "betas": (0.9, 0.999), "weight_decay": 0.01}
    assert cfg.train_cfg.max_iters == 160000
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.model.backbone.drop_path_rate == 0.3
    assert cfg.model.decode_head.channels == 512
    assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4
    steps = {step["type"]: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps["RandomResize"]["scale"] == (2048, 512)
    assert steps["RandomResize"]["ratio_range"] == (0.5, 2.0)
    assert steps["RandomCrop"]["crop_size"] == (512, 512)
    assert steps["RandomCrop"]["cat_max_ratio"] == 0.75
    assert steps["RandomFlip"]["prob"] == 0.5
    assert "PhotoMetricDistortion" in steps
    assert cfg.model.test_cfg.mode == "whole"


def test_the_learning_rate_over_the_schedule() -> None:
    """Up from 6e-11 over 1500 iterations, then down a straight line to 0."""
    from mmengine.optim import LinearLR, PolyLR

    kinds = {"LinearLR": LinearLR, "PolyLR": PolyLR}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=6e-5)
    words = [dict(one) for one in config("tiny").param_scheduler]
    schedulers = [kinds[word.pop("type")](optimizer, **word) for word in words]
    rates = {}
    for step in range(160001):
        if step in (0, 750, 1500, 80750, 160000):
            rates[step] = optimizer.param_groups[0]["lr"]
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(6e-11)
    assert rates[750] == pytest.approx(3e-5, rel=2e-3)
    assert rates[1500] == pytest.approx(6e-5)
    assert rates[80750] == pytest.approx(3e-5, rel=1e-3)
    assert rates[160000] == pytest.approx(0, abs=1e-9)


def test_multi_scale_ratios_are_of_the_test_size() -> None:
    """Of 2048x512, as the original multiplied; mmseg's own base scales the picture's size instead."""
    resizes = config("tiny").tta_pipeline[1].transforms[0]
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert [tuple(step["scale"]) for step in resizes] == [(int(2048 * r), int(512 * r)) for r in ratios]
    assert [step["prob"] for step in config("tiny").tta_pipeline[1].transforms[1]] == [0.0, 1.0]


@pytest.mark.parametrize("file", sorted(file.name for file in CONFIGS.glob("*.py")))
def test_a_config_is_read_by_mmengine_alone(file: str) -> None:
    """Other tools than ours read them too."""
    from mmengine.config import Config

    cfg = Config.fromfile(CONFIGS / file)
    assert cfg.model.type == "EncoderDecoder"
    assert cfg.custom_imports["imports"][0] == "davit.openmmlab"
    header = (CONFIGS / file).read_text().split("_base_")[0]
    assert "# Command:" in header
