"""Florence-2's vision towers under detectors and segmentors."""

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn
from transformers import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

from davit import VARIANTS
from davit.checkpoint import CheckpointError, convert_state_dict
from davit.model import ChannelAttentionQK
from davit.openmmlab import DaViTBackbone
from tests.openmmlab.conftest import DET, SEG, build, config


def tower_file(folder: Path, layout: str, numbers: Any) -> Path:
    """Write random weights of a tower as Florence-2's files have them, beside a tensor of the language model."""
    heads = list(numbers["num_heads"])
    tower = Florence2VisionBackbone(
        Florence2VisionConfig(
            embed_dim=list(numbers["embed_dims"]), depths=list(numbers["depths"]), num_heads=heads, num_groups=heads,
            window_size=numbers["window_size"],
        )
    )  # fmt: skip
    if layout == "florence2_native":
        weights = {f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    else:
        weights = convert_state_dict(tower.state_dict(), layout)
    file = folder / f"{layout}.safetensors"
    safetensors.torch.save_file({**weights, "lm_head.weight": torch.zeros(2, 2)}, file)
    return file


@pytest.mark.parametrize("layout", ["florence2", "florence2_native"])
def test_a_tower_starts_a_backbone(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int]] = []
    monkeypatch.setattr("davit.openmmlab.backbone.print_log", lambda text, logger, level: said.append((text, level)))
    numbers = {
        "embed_dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 4,
    }  # fmt: skip
    init = {"type": "Pretrained", "checkpoint": str(tower_file(tmp_path, layout, numbers))}
    model = DaViTBackbone("DaViT_base_fl", init_cfg=init, **numbers)
    model.init_weights()
    ((text, level),) = said
    assert "100 % of its stages" in text and level == logging.INFO
    with pytest.raises(CheckpointError, match="DaViT_base_fl"):
        DaViTBackbone("DaViT_base", overlapped_patch=True, init_cfg=init, **numbers).init_weights()


def with_tower(file: Path, pretrained: Path, numbers: Any) -> Any:
    """Build a config's model with the widths of the base tower, few blocks, and a tower's weights."""
    cfg = config(file)
    cfg.model.backbone = {
        "type": "DaViT", "variant": "DaViT_base_fl", "depths": numbers["depths"],
        "init_cfg": {"type": "Pretrained", "checkpoint": str(pretrained)},
    }  # fmt: skip
    widths = list(numbers["embed_dims"])
    if "neck" in cfg.model:
        cfg.model.neck.in_channels = widths
    else:
        cfg.model.decode_head.in_channels = widths
        cfg.model.auxiliary_head.in_channels = widths[cfg.model.auxiliary_head.in_index]
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            head.norm_cfg, head.channels = {"type": "BN"}, 32
    model = build(cfg)
    model.init_weights()
    return model.train()


def step(model: nn.Module, data: Any) -> None:
    """Take one step of AdamW; every parameter of the stages must move."""
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    data = model.data_preprocessor(data, training=True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert any(isinstance(module, ChannelAttentionQK) for module in model.backbone.modules())
    still = [name for name, p in model.backbone.named_parameters() if torch.equal(p, before[name])]
    assert still == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["Mask R-CNN", "UPerNet"])
def test_one_training_step(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    numbers = {**VARIANTS["DaViT_base_fl"].model_kwargs(), "depths": (1, 1, 1, 1)}
    pretrained = tower_file(tmp_path, "florence2_native", numbers)
    if kind == "Mask R-CNN":
        model = with_tower(DET / "davit_maskrcnn_1x_coco.py", pretrained, numbers)
        data = demo_mm_inputs(2, image_shapes=[(3, 96, 128)] * 2, num_items=[3, 3], with_mask=True)
    else:
        model = with_tower(SEG / "upernet_davit_512x512_160k_ade20k.py", pretrained, numbers)
        sample = SegDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (64, 64)})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 64)))
        pictures = [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
        data = {"inputs": pictures, "data_samples": [sample, sample.clone()]}
    step(model, data)
