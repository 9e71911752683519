"""Equality with the original implementation, by its reference vectors (see make_vectors.py)."""

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from make_vectors import NAMES, VECTORS, files, fill, image
from torch import Tensor, nn

from davit import VARIANTS, DaViTPyramid, accelerate, create_model

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny_224": ("DaViT_tiny", {}),
    "tiny_225x257": ("DaViT_tiny", {}),
    "small_224": ("DaViT_small", {}),
    "base_224": ("DaViT_base", {}),
    "large_window12_384": ("DaViT_large_window12_384", {}),
    "pyramid_tiny_200x304": ("DaViT_tiny", {}),
    "pyramid_small_cpe_act_130x170": ("DaViT_small", {"cpe_act": True}),
}
CLASSIFIERS = [name for name in NAMES if not name.startswith("pyramid")]
LARGE = {"base_224", "large_window12_384"}
PYRAMIDS = [name for name in NAMES if name.startswith("pyramid")]


@lru_cache
def facts(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / f"{name}.json").read_text())


def outputs(name: str) -> dict[str, Tensor]:
    with np.load(VECTORS / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def empty_model(name: str, accelerated: bool = True) -> nn.Module:
    """The model of a vector, without storage for its weights."""
    variant, options = MODELS[name]
    with torch.device("meta"):
        if name in CLASSIFIERS:
            return create_model(variant, accelerate=accelerated, **options).eval()
        model = DaViTPyramid(**VARIANTS[variant].model_kwargs(), **options).eval()
        return accelerate(model) if accelerated else model


def picture(name: str) -> Tensor:
    return image(facts(name)["input_seed"], tuple(facts(name)["input_shape"]))


@pytest.mark.parametrize("name", NAMES)
def test_keys_shapes_order_and_parameters(name):
    model = empty_model(name)
    keys = [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]
    assert keys == [(key, list(shape)) for key, shape in facts(name)["state_dict"].items()]
    assert sum(p.numel() for p in model.parameters()) == facts(name)["params"]


@pytest.mark.parametrize(
    ("name", "accelerated"),
    [
        *((name, True) for name in CLASSIFIERS),
        *(pytest.param(name, False, marks=[pytest.mark.long] * (name in LARGE)) for name in CLASSIFIERS),
    ],
)
def test_logits(name, accelerated):
    with torch.inference_mode():
        logits = fill(empty_model(name, accelerated))(picture(name))
    torch.testing.assert_close(logits, outputs(name)["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("accelerated", [True, False], ids=["accelerated", "plain"])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramid_levels(name, accelerated):
    with torch.inference_mode():
        levels = fill(empty_model(name, accelerated))(picture(name))
    assert len(levels) == 4
    for i, level in enumerate(levels):
        expected = facts(name)[f"level{i}"]
        assert list(level.shape) == expected["shape"]
        s1, s2, s3 = expected["strides"][-3:]
        subsampled = level[:, ::s1, ::s2, ::s3]
        torch.testing.assert_close(subsampled, outputs(name)[f"level{i}"], rtol=0, atol=5e-5)
        whole = level.double()
        assert whole.mean().item() == pytest.approx(expected["mean"], abs=1e-5)
        assert whole.std(unbiased=False).item() == pytest.approx(expected["std"], rel=1e-4)
        assert whole.norm().item() == pytest.approx(expected["norm"], rel=1e-4)


@pytest.mark.parametrize("accelerated", [True, False], ids=["accelerated", "plain"])
def test_loss_and_gradients(accelerated):
    name = "tiny_224"
    model = fill(empty_model(name, accelerated))
    logits = model(picture(name))
    loss = F.cross_entropy(logits, torch.arange(len(logits)))
    loss.backward()
    assert loss.item() == pytest.approx(facts(name)["loss"], rel=1e-5)
    norms = {key: parameter.grad.double().norm().item() for key, parameter in model.named_parameters()}
    assert norms == pytest.approx(facts(name)["grad_norms"], rel=1e-4)


def test_kept_vectors_are_the_shared_ones(shared):
    assert sorted(VECTORS.iterdir()) == sorted(files(VECTORS))
    for kept, original in zip(files(VECTORS), files(shared / "parity"), strict=True):
        assert kept.read_bytes() == original.read_bytes(), kept.name
