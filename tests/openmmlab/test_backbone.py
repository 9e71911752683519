"""DaViT under the words of MMDetection's configs."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.registry import MODELS
from torch import nn

from davit import VARIANTS, DaViT, DaViTPyramid
from davit.checkpoint import CheckpointError
from davit.openmmlab import DaViTBackbone
from davit.pretrained import PUBLISHED, Published
from tests.openmmlab.conftest import DET, SEG, config

SMALL: dict[str, Any] = {"embed_dims": (8, 16), "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def build(**words: Any) -> Any:
    return MODELS.build({"type": "DaViT", **SMALL, "out_indices": (0, 1), **words})


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    file = tmp_path / "classifier.pth"
    torch.save({"state_dict": DaViT(**SMALL, num_classes=5).state_dict()}, file)
    return file


def test_one_registration_serves_both_libraries() -> None:
    import mmdet.registry
    import mmseg.registry

    for registry in (mmdet.registry.MODELS, mmseg.registry.MODELS):
        assert registry.get("DaViT") is DaViTBackbone
    assert issubclass(DaViTBackbone, DaViTPyramid)


def test_the_words_of_configs_reach_the_pyramid() -> None:
    model = build(out_indices=(1,), with_cp=True, frozen_stages=1, cpe_act=True, ffn=False, drop_path_rate=0.3)
    assert model.grad_checkpointing and model.frozen_stages == 1 and model.out_indices == (1,)
    assert [name for name, _ in model.named_children() if name.startswith("norm")] == ["norm1"]
    assert not any("mlp.fc1" in name for name in model.state_dict())
    (level,) = model(torch.randn(1, 3, 32, 32))
    assert level.shape == (1, 16, 4, 4)


def test_an_unknown_word_is_named_with_the_nearest() -> None:
    for wrong, near in (("embed_dim", "'embed_dims'"), ("varaint", "'variant'")):
        with pytest.raises(ValueError, match=rf"'{wrong}'.*{near}"):
            DaViTBackbone(**{wrong: 1})
    with pytest.raises(ValueError, match="Pretrained"):
        DaViTBackbone(**SMALL, out_indices=(0, 1), init_cfg={"type": "Kaiming"})
    with pytest.raises(ValueError) as caught:
        DaViTBackbone(variant="davit_nanno")
    assert all(name in str(caught.value) for name in ("'davit_nanno'", "'DaViT_nano'", *VARIANTS))


def test_what_is_given_replaces_the_numbers_of_a_variant() -> None:
    numbers, given = VARIANTS["DaViT_nano"].model_kwargs(), {"depths": (1, 2, 1, 1), "window_size": 7}
    with torch.device("meta"):
        assert shapes(DaViTBackbone("DaViT_nano")) == shapes(DaViTPyramid(**numbers))
        model, expected = DaViTBackbone("DaViT_nano", **given), DaViTPyramid(**{**numbers, **given})
    assert shapes(model) == shapes(expected)
    assert {module.window_size for module in model.modules() if hasattr(module, "window_size")} == {7}


@pytest.mark.parametrize("folder", [DET, SEG], ids=["mmdet", "mmseg"])
def test_what_reads_the_backbone_has_its_widths(folder: Path) -> None:
    """Necks and heads are built by the libraries, from numbers; a config says them beside the variant's name."""
    for file in folder.glob("*.py"):
        model = config(file).model
        numbers = VARIANTS[model.backbone.variant].model_kwargs()["embed_dims"]
        widths = [numbers[level] for level in model.backbone.get("out_indices", (0, 1, 2, 3))]
        reader = model.get("neck") or model.get("panoptic_head") or model.decode_head
        assert list(reader.in_channels) == widths, file
        if "auxiliary_head" in model:
            assert model.auxiliary_head.in_channels == widths[model.auxiliary_head.in_index], file


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the backbone logs, with its level."""
    logged: list[tuple[str, int]] = []
    monkeypatch.setattr("davit.openmmlab.backbone.print_log", lambda text, logger, level: logged.append((text, level)))
    return logged


def test_a_classifier_starts_the_backbone(classifier: Path, said: list[tuple[str, int]]) -> None:
    model = build(init_cfg={"type": "Pretrained", "checkpoint": str(classifier)})
    model.init_weights()
    expected = torch.load(classifier, weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        if not name.startswith("norm"):
            assert torch.equal(tensor, expected[name]), name
    ((text, level),) = said
    assert "100 % of its stages" in text and "norm0" in text and level == logging.INFO
    nn.init.zeros_(model.patch_embeds[0].proj.weight)
    model.init_weights()  # mmengine may ask again
    assert not model.patch_embeds[0].proj.weight.any()


def test_what_was_added_to_the_stages_is_named_as_new(classifier: Path, said: list[tuple[str, int]]) -> None:
    model = build(init_cfg={"type": "Pretrained", "checkpoint": str(classifier)})
    for stage in model.main_blocks:
        stage[0][0].gamma = nn.Parameter(torch.full((4,), 3.0))
    model.init_weights()
    ((text, level),) = said
    assert "main_blocks.0.0.0.gamma" in text and "main_blocks.1.0.0.gamma" in text and "100 %" not in text
    assert level == logging.WARNING
    assert (model.main_blocks[0][0][0].gamma == 3).all()


def test_weights_of_another_size_stop_it(classifier: Path) -> None:
    model = build(embed_dims=(8, 24), init_cfg={"type": "Pretrained", "checkpoint": str(classifier)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        model.init_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_published_weights_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = timm.create_model("davit_tiny").state_dict()
    torch.save(weights, tmp_path / "davit_tiny.msft_in1k.bin")
    monkeypatch.setenv("DAVIT_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setattr("davit.pretrained.sha256_of", lambda _: "")
    published = PUBLISHED["DaViT_tiny"]
    files = dict.fromkeys(published.files, "")
    monkeypatch.setitem(PUBLISHED, "DaViT_tiny", Published(published.hub_id, files))
    model = DaViTBackbone(init_cfg={"type": "Pretrained", "checkpoint": "DaViT_tiny"})
    model.init_weights()
    assert torch.equal(model.patch_embeds[0].proj.weight, weights["stem.conv.weight"])
