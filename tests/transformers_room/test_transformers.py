"""Check `davit.transformers`: configuration, backbone and classifier, by themselves and in transformers' own hands."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import davit
from davit import DaViTPyramid, kernels
from davit.checkpoint import CheckpointError, load_checkpoint
from davit.data import eval_transform
from davit.variants import VARIANTS
from tests.conftest import SMALL

pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoBackbone, AutoConfig, AutoModelForImageClassification

from davit.transformers import DavitBackbone, DavitConfig, DavitForImageClassification, image_processor

transformers.utils.logging.disable_progress_bar()
NANO = VARIANTS["DaViT_nano"].model_kwargs()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def backbone(**config: Any) -> DavitBackbone:
    model: DavitBackbone = AutoBackbone.from_config(DavitConfig(**{**SMALL, **config})).eval()
    return model


# ---- the configuration ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_gives_its_numbers(variant: str) -> None:
    config = DavitConfig(variant=variant)
    assert config.variant == variant
    wanted = VARIANTS[variant].model_kwargs()
    assert {name: config.stages()[name] for name in wanted} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()
    }


def test_numbers_given_replace_the_variants() -> None:
    config = DavitConfig(variant="DaViT_base", window_size=12, depths=(1, 1, 3, 1))
    assert (config.window_size, config.depths, config.embed_dims) == (12, [1, 1, 3, 1], [128, 256, 512, 1024])
    assert config.variant is None
    assert DavitConfig().variant == "DaViT_tiny"
    config.variant = "DaViT_small"
    assert config.depths == [1, 1, 9, 1]


@pytest.mark.parametrize(
    "given",
    [
        {"variant": "DaViT_nano", "out_features": ["stage2", "stage4"]},
        {"variant": "DaViT_large_window12_384", "out_indices": (0, -1), "num_channels": 1},
        {**SMALL, "drop_path_rate": 0.3, "cpe_act": True, "ffn": False, "weight_init": "conv", "frozen_stages": 1},
        {"variant": "DaViT_base", "depths": (1, 1, 3, 1), "accelerate": False},  # a value that is the default's
        {"variant": "DaViT_nano", "attention_types": ["channel"], "id2label": {0: "cat", 1: "dog", 2: "eel"}},
    ],
)
def test_a_configuration_survives_json(given: dict[str, Any], tmp_path: Path) -> None:
    config = DavitConfig(**given)
    assert DavitConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is DavitConfig
    assert read.to_diff_dict() == config.to_diff_dict()
    inside = transformers.DetrConfig(backbone_config=config, use_timm_backbone=False)
    inside.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).backbone_config.to_diff_dict() == config.to_diff_dict()


def test_stages_are_chosen_by_name_or_by_index() -> None:
    by_name = DavitConfig(variant="DaViT_nano", out_features=["stage2", "stage4"])
    by_index = DavitConfig(variant="DaViT_nano", out_indices=(1, 3))
    assert by_name.to_dict() == by_index.to_dict()
    assert DavitConfig(variant="DaViT_nano").out_features == ["stage4"]
    by_name.out_indices = [-1]
    assert by_name.out_features == ["stage4"]
    assert DavitConfig(variant="DaViT_nano", in_chans=5).num_channels == 5


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"variant": "DaViT_tini"}, "DaViT_tiny"),
        ({"variant": "swin"}, "DaViT_nano"),
        ({"out_indices": [4]}, "stage4"),
        ({"out_indices": [-5]}, "-5"),
        ({"out_indices": []}, "stage1"),
        ({"out_indices": [2, 1]}, "[1, 2]"),
        ({"out_features": ["stage0"]}, "stage1"),
        ({"out_features": []}, "stage1"),
        ({"window": 7}, "window_size"),
        ({"drop_path": 0.2}, "drop_path_rate"),
        ({"num_classes": 10}, "num_labels"),
    ],
)
def test_a_mistake_is_named_with_the_choices(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as error:
        DavitConfig(**given)
    assert named in str(error.value)


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(StrictDataclassFieldValidationError):
        DavitConfig(depths="1131")
    with pytest.raises(ValueError, match="spatial"):
        backbone(attention_types=["global"])


# ---- the backbone ----


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"out_indices": (0, 1, 2, 3)}, (65, 47)),
        ({"out_features": ["stage2", "stage3"], "num_channels": 1}, (64, 64)),
        ({"out_indices": (-1,), "window_size": 7, "overlapped_patch": True, "cpe_act": True}, (33, 100)),
        ({"out_indices": (1, 3), "attention_types": ["channel", "spatial", "channel"], "qkv_bias": False}, (32, 48)),
    ],
)
def test_a_backbone_computes_what_the_pyramid_does(given: dict[str, Any], size: tuple[int, int]) -> None:
    model = backbone(**given)
    config = model.config
    pyramid = DaViTPyramid(out_indices=config.out_indices, **config.stages()).eval()
    pyramid.load_state_dict(model.davit.state_dict())
    images = torch.randn(2, config.num_channels, *size)
    found, wanted = model(images), davit.accelerate(pyramid)(images)
    assert [one.shape[1] for one in wanted] == model.channels
    assert all(torch.equal(one, other) for one, other in zip(found.feature_maps, wanted, strict=True))
    assert model.num_features == list(SMALL["embed_dims"])
    assert model.stage_names == ["stage1", "stage2", "stage3", "stage4"]
    assert found.hidden_states is None and found.attentions is None
    assert torch.equal(model(images, return_dict=False)[0][0], wanted[0])


def test_hidden_states_are_the_maps_of_all_stages() -> None:
    model = backbone(out_indices=(1, 3))
    images = torch.randn(1, 3, 40, 40)
    states = model(images, output_hidden_states=True).hidden_states
    assert [tuple(state.shape[1:]) for state in states] == [(16, 10, 10), (32, 5, 5), (48, 3, 3), (64, 2, 2)]
    norm = model.davit.norm1
    assert torch.equal(norm(states[1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), model(images).feature_maps[0])
    only_last = model(images, output_hidden_states=[-1]).hidden_states
    assert only_last[0] is None and torch.equal(only_last[3], states[3])
    with pytest.raises(ValueError, match="visualize"):
        model(images, output_attentions=True)


def test_the_stages_of_a_built_backbone_are_fixed() -> None:
    model = backbone(out_indices=(1,))
    with pytest.raises(ValueError, match="stage2"):
        model.out_indices = [3]
    with pytest.raises(ValueError, match="stage2"):
        model.out_features = ["stage4"]


def test_kernels_compute_it_unless_they_are_not_wanted() -> None:
    images = torch.randn(1, 3, 64, 64)
    fast = AutoBackbone.from_config(DavitConfig(variant="DaViT_nano")).eval()
    plain = AutoBackbone.from_config(DavitConfig(variant="DaViT_nano", accelerate=False)).eval()
    plain.load_state_dict(fast.state_dict())
    assert kernels.why_plain(fast) == {}
    assert len(kernels.why_plain(plain)) == 12
    torch.testing.assert_close(fast(images).feature_maps[0], plain(images).feature_maps[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_saving_and_loading_keeps_every_bit(shard: str, tmp_path: Path) -> None:
    model = backbone(out_indices=(1, 2, 3), num_channels=1)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "40KB")
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors", ".json"}
    loaded = DavitBackbone.from_pretrained(tmp_path)
    assert same_weights(model, loaded) and not loaded.training
    assert kernels.why_plain(loaded) == {}
    images = torch.randn(1, 1, 37, 50)
    for one, other in zip(model(images).feature_maps, loaded(images).feature_maps, strict=True):
        assert torch.equal(one, other)


def test_tensors_that_a_file_lacks_are_made_as_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DavitForImageClassification(DavitConfig(variant="DaViT_nano", num_labels=5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path)
    kept = {
        name: tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if not any(part in name for part in ("main_blocks.2", "patch_embeds.1.", "head"))
    }
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = DavitForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    ours = davit.create_model("DaViT_nano", num_classes=5).state_dict()
    assert report["missing_keys"] == loaded.state_dict().keys() - kept.keys()
    for name, tensor in loaded.state_dict().items():
        if name in kept:
            assert torch.equal(tensor, kept[name])
            continue
        like = ours[name.removeprefix("davit.")]
        if like.std() == 0:
            assert torch.equal(tensor, like)
        else:
            assert float(tensor.std()) == pytest.approx(float(like.std()), rel=0.3)
            assert tensor.abs().max() <= 1.2 * like.abs().max()


def test_a_meta_device_and_a_device_map() -> None:
    with torch.device("meta"):
        model = DavitBackbone(DavitConfig(**SMALL))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {type(module).__name__ for module in model.modules()} & set(model._no_split_modules)


def test_half_precision_reads_what_a_processor_gives(tmp_path: Path) -> None:
    backbone(out_indices=(0, 3)).save_pretrained(tmp_path)
    loaded = DavitBackbone.from_pretrained(
        tmp_path, dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager"
    )
    maps = loaded(torch.randn(1, 3, 32, 32)).feature_maps
    assert {one.dtype for one in maps} == {torch.bfloat16}
    assert all(torch.isfinite(one).all() for one in maps)
    for unknown in ("flash_attention_2", "nonsense"):
        with pytest.raises((ValueError, ImportError)):
            DavitBackbone.from_pretrained(tmp_path, attn_implementation=unknown)


def test_checkpointing_gives_the_same_gradients() -> None:
    detector = small_detr(out_indices=(3,))
    model = detector.model.backbone.model
    images = torch.randn(1, 3, 40, 40)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model.train()(images).feature_maps[0].square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    detector.activation_checkpointing_enable()
    assert model.davit.grad_checkpointing and model.gradient_checkpointing
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    detector.activation_checkpointing_disable()
    assert not model.davit.grad_checkpointing


def test_frozen_stages_stay_frozen(tmp_path: Path) -> None:
    model = backbone(frozen_stages=1, out_indices=(0, 3))
    model.save_pretrained(tmp_path)
    for one in (model, DavitBackbone.from_pretrained(tmp_path)):
        one.train()
        frozen = {name.split(".")[1] for name, p in one.named_parameters() if not p.requires_grad}
        assert frozen == {"patch_embeds", "main_blocks", "norm0"}
    with pytest.raises(ValueError, match="frozen_stages"):
        DavitForImageClassification(DavitConfig(**SMALL, frozen_stages=1))


def test_torch_compile_sees_one_graph() -> None:
    model = backbone(out_indices=(1, 3), drop_path_rate=0.0)
    images = torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for one, other in zip(compiled(images).feature_maps, model(images).feature_maps, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# ---- from checkpoints of DaViT, and back ----


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Write a checkpoint as train.py does."""
    model = davit.create_model("DaViT_nano", num_classes=3)
    args = {"model": "DaViT_nano", "model_kwargs": {"cpe_act": True}}
    file = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": model.state_dict(), "class_names": ["a", "b", "c"], "args": args}, file)
    return file


def test_a_classifiers_checkpoint_makes_a_backbone(trained: Path) -> None:
    model = DavitBackbone.from_davit(trained, out_indices=(1, 2, 3), drop_path_rate=0.2)
    assert model.config.cpe_act is True
    assert (model.config.variant, model.config.drop_path_rate, model.channels) == ("DaViT_nano", 0.2, [64, 128, 160])
    report = model.load_report
    assert report is not None and len(report.missing) == 6 and not report.adapted
    weights = torch.load(trained)["state_dict"]
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in model.davit.state_dict().items()
        if not name.startswith("norm")
    )


def test_a_checkpoint_makes_a_classifier_with_names(trained: Path, tmp_path: Path) -> None:
    model = DavitForImageClassification.from_davit(str(trained))
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"} and model.config.label2id["c"] == 2
    assert model.load_report is not None and model.load_report.complete
    images = torch.randn(2, 3, 32, 32)
    ours = davit.create_model("DaViT_nano", num_classes=3, cpe_act=True).eval()
    load_checkpoint(ours, trained)
    assert torch.equal(model(images).logits, ours(images))
    model.save_pretrained(tmp_path / "saved")
    auto = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(auto(images).logits, ours(images)) and auto.config.id2label[1] == "b"
    again = davit.create_model("DaViT_nano", num_classes=3, cpe_act=True)
    assert load_checkpoint(again, tmp_path / "saved" / "model.safetensors", head="require").complete


def test_a_new_head_for_other_labels(trained: Path) -> None:
    model = DavitForImageClassification.from_davit(trained, num_labels=7)
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 7)
    assert model.load_report is not None and set(model.load_report.missing) == {"davit.head.weight", "davit.head.bias"}


def test_a_shortened_pyramid_of_other_bands(tmp_path: Path) -> None:
    pyramid = DaViTPyramid(out_indices=(1, 2), in_chans=5, **NANO)
    torch.save(pyramid.state_dict(), tmp_path / "pyramid.pth")
    model = DavitBackbone.from_davit(tmp_path / "pyramid.pth", out_features=["stage2", "stage3"])
    assert (model.config.variant, model.config.num_channels) == ("DaViT_nano", 5)
    assert model.load_report is not None and model.load_report.complete
    with pytest.raises(CheckpointError):
        DavitBackbone.from_davit(tmp_path / "pyramid.pth", variant="DaViT_tiny")
    with pytest.raises(ValueError, match="window_size"):
        DavitBackbone.from_davit(tmp_path / "pyramid.pth", window_sise=5)


def test_florence_2s_tower_becomes_a_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    numbers = {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
    tower = transformers.models.florence2.modeling_florence2.Florence2VisionBackbone(
        transformers.models.florence2.Florence2VisionConfig(
            embed_dim=[16, 32, 32, 64], num_groups=numbers["num_heads"], window_size=4, **numbers
        )
    ).eval()
    weights = {f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    ours = {"embed_dims": [16, 32, 32, 64], "window_size": 4, "overlapped_patch": True, **numbers}
    with pytest.raises(CheckpointError):
        DavitBackbone.from_davit(weights, **ours)
    model = DavitBackbone.from_davit(weights, attention_types=["spatial", "channel_qk"], **ours)
    model.save_pretrained(tmp_path)
    loaded = DavitBackbone.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs = tower(images)[0]
        found = loaded(images, output_hidden_states=True).hidden_states[-1]
    assert same_weights(model, loaded)
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_no_variant_needs_its_numbers(tmp_path: Path) -> None:
    model = DaViTPyramid(out_indices=(3,), **SMALL)
    with pytest.raises(ValueError, match="num_heads"):
        DavitBackbone.from_davit(model.state_dict())
    loaded = DavitBackbone.from_davit(model.state_dict(), **SMALL)
    assert loaded.load_report is not None and loaded.load_report.complete
    with pytest.raises(CheckpointError):
        DavitBackbone.from_davit({"layer1.weight": torch.zeros(3)})


# ---- the classifier ----


def test_a_loss_and_hidden_states() -> None:
    model = DavitForImageClassification(DavitConfig(**SMALL, num_labels=4, drop_path_rate=0.0)).eval()
    images, labels = torch.randn(2, 3, 32, 48), torch.tensor([1, 3])
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    states = model(images, output_hidden_states=True).hidden_states
    assert [tuple(state.shape[1:]) for state in states] == [(16, 8, 12), (32, 4, 6), (48, 2, 3), (64, 1, 2)]


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_a_processor_prepares_pictures_as_validate_does(mode: str) -> None:
    config = {
        **{"input_size": (3, 72, 72), "crop_pct": 0.9, "crop_mode": mode, "interpolation": "bicubic"},
        **{"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)},
    }
    gradient = np.linspace(0, 255, 90 * 120 * 3).reshape(90, 120, 3).astype(np.uint8)
    picture = Image.fromarray(gradient)
    ours = eval_transform(img_size=72, **{name: config[name] for name in config if name != "input_size"})(picture)
    theirs = image_processor(config)(picture, return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() < 3 / 255 / 0.2  # resized by torchvision, and by Pillow
    with pytest.raises(ValueError, match="squash"):
        image_processor({**config, "crop_mode": "border"})


def test_a_pipeline_reads_a_saved_classifier(trained: Path, tmp_path: Path) -> None:
    DavitForImageClassification.from_davit(trained).save_pretrained(tmp_path / "saved")
    predictor = davit.load(trained)
    image_processor(predictor.config).save_pretrained(tmp_path / "saved")
    classify = transformers.pipeline("image-classification", model=str(tmp_path / "saved"), device="cpu")
    picture = Image.fromarray(np.full((50, 40, 3), 128, np.uint8))
    guesses = classify(picture)
    assert guesses[0]["label"] == predictor.predict(picture).guesses[0].name
    assert guesses[0]["score"] == pytest.approx(predictor.predict(picture).guesses[0].probability, abs=1e-3)


def test_the_trainer_saves_what_loads(tmp_path: Path) -> None:
    model = DavitForImageClassification(DavitConfig(**SMALL, num_labels=2))
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 2} for i in range(4)]
    arguments = transformers.TrainingArguments(
        **{"output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2, "save_steps": 2},
        **{"gradient_checkpointing": True, "report_to": "none", "use_cpu": True, "disable_tqdm": True},
    )
    transformers.Trainer(model=model, args=arguments, train_dataset=data).train()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert same_weights(model, loaded)
    resumed = transformers.Trainer(model=loaded, args=arguments, train_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# ---- in the detectors and segmentors of transformers ----

WIDTH: dict[str, Any] = {"d_model": 32, "num_queries": 10, "decoder_layers": 2, "num_labels": 5}
HEADS: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
FFN: dict[str, Any] = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
BOXES = [
    {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]])},
    {"class_labels": torch.tensor([2, 0]), "boxes": torch.tensor([[0.3, 0.5, 0.3, 0.4], [0.6, 0.4, 0.2, 0.2]])},
]


def small_config(**config: Any) -> DavitConfig:
    return DavitConfig(**SMALL, drop_path_rate=0.0, **config)


def small_detr(**config: Any) -> Any:
    settings = transformers.DetrConfig(
        backbone_config=small_config(**config), use_timm_backbone=False, encoder_layers=1, **WIDTH, **HEADS, **FFN
    )
    return transformers.DetrForObjectDetection(settings)


def hybrid(name: str) -> Any:
    settings = getattr(transformers, f"{name}Config")(
        **{"backbone_config": small_config(out_features=["stage2", "stage3", "stage4"]), "num_denoising": 2},
        **{"encoder_in_channels": [32, 48, 64], "decoder_in_channels": [32] * 3, "encoder_hidden_dim": 32},
        **{**WIDTH, **HEADS, **FFN},
    )
    return getattr(transformers, f"{name}ForObjectDetection")(settings)


def deformable() -> Any:
    settings = transformers.DeformableDetrConfig(
        backbone_config=small_config(out_indices=(1, 2, 3)),
        **{"use_timm_backbone": False, "encoder_layers": 1, **WIDTH, **HEADS, **FFN},
    )
    return transformers.DeformableDetrForObjectDetection(settings)


def mask2former() -> Any:
    settings = transformers.Mask2FormerConfig(
        backbone_config=small_config(out_indices=(0, 1, 2, 3)),
        **{"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32},
        **{"dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2},
        **{"num_queries": 5, "train_num_points": 32, "num_labels": 5},
    )
    return transformers.Mask2FormerForUniversalSegmentation(settings)


def upernet() -> Any:
    settings = transformers.UperNetConfig(
        backbone_config=small_config(out_indices=(0, 1, 2, 3)), hidden_size=16, auxiliary_channels=8, num_labels=5
    )
    return transformers.UperNetForSemanticSegmentation(settings)


MODELS: dict[str, Any] = {
    "D-FINE": lambda: hybrid("DFine"),
    "RT-DETRv2": lambda: hybrid("RTDetrV2"),
    "Deformable DETR": deformable,
    "DETR": lambda: small_detr(out_indices=(3,)),
    "Mask2Former": mask2former,
    "UperNet": upernet,
}


def targets(name: str, height: int, width: int) -> dict[str, Any]:
    if name == "UperNet":
        return {"labels": torch.randint(0, 5, (2, height, width))}
    mask = torch.ones(2, height, width, dtype=torch.long)
    mask[1, :, width // 2 :] = 0  # the second image is narrower
    if name == "Mask2Former":
        masks = [torch.randint(0, 2, (2, height, width)).float()] * 2
        return {"pixel_mask": mask, "mask_labels": masks, "class_labels": [torch.tensor([0, 3])] * 2}
    return {"pixel_mask": mask, "labels": BOXES}


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_and_is_saved_in(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    # the encoders of the first two fuse maps of which each is half the next
    height, width = (64, 96) if name in ("D-FINE", "RT-DETRv2") else (75, 90)
    images = torch.randn(2, 3, height, width)
    loss = model(pixel_values=images, **targets(name, height, width)).loss
    assert torch.isfinite(loss)
    loss.backward()
    (inside,) = (module for module in model.modules() if isinstance(module, DavitBackbone))
    assert [name for name, p in inside.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert kernels.why_plain(model) == {}

    model.eval().save_pretrained(tmp_path, max_shard_size="300KB")
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert same_weights(model, loaded)
    pyramid = DaViTPyramid(out_indices=inside.config.out_indices, **inside.config.stages())
    weights = {}
    for file in tmp_path.glob("*.safetensors"):
        weights.update(load_file(file))
    assert load_checkpoint(pyramid, weights).share == 1


def test_another_process_loads_a_whole_detector(tmp_path: Path) -> None:
    model = small_detr(out_features=["stage3"]).eval()
    model.save_pretrained(tmp_path)
    images = torch.linspace(-1, 1, 3 * 32 * 40).reshape(1, 3, 32, 40)
    program = (
        "import sys, json, torch, davit\n"
        "assert 'transformers' not in sys.modules\n"
        "import davit.transformers\n"
        "from transformers import AutoModelForObjectDetection\n"
        f"model = AutoModelForObjectDetection.from_pretrained({str(tmp_path)!r})\n"
        "images = torch.linspace(-1, 1, 3 * 32 * 40).reshape(1, 3, 32, 40)\n"
        "print(json.dumps(model(images).logits.sum().item()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(model(images).logits.sum().item(), abs=1e-4)
