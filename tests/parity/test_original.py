"""Equality with the original implementation, by its reference vectors.

The outputs were computed with the original authors' implementation (fp32, CPU, evaluation mode) and cannot be
made from this repository, which is what they are to test. All else follows from the recipe: every weight from
its state-dict key and shape (`weight`), every input from a seed (`image`). ``vectors/`` is a copy of those in the
folder ``shared/parity`` beside the checkout.

``NAME.json``: ``input_shape``, ``input_seed``, ``params`` (total), ``state_dict`` (keys with shapes, in the
original's order), where given ``loss`` (mean cross-entropy with targets 0, 1, ...) and ``grad_norms`` (its
gradients, L2), and for each pyramid level mean, std and norm of the whole map. ``NAME.npz``: the outputs; a
pyramid level is subsampled by the ``strides`` of its json.
"""

import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit import VARIANTS, DaViTPyramid, accelerate, create_model

VECTORS = Path(__file__).parent / "vectors"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny_224": ("DaViT_tiny", {}),
    "tiny_225x257": ("DaViT_tiny", {}),
    "small_224": ("DaViT_small", {}),
    "base_224": ("DaViT_base", {}),
    "large_window12_384": ("DaViT_large_window12_384", {}),
    "pyramid_tiny_200x304": ("DaViT_tiny", {}),
    "pyramid_small_cpe_act_130x170": ("DaViT_small", {"cpe_act": True}),
}
NAMES = list(MODELS)
CLASSIFIERS = [name for name in NAMES if not name.startswith("pyramid")]
LARGE = {"base_224", "large_window12_384"}
PYRAMIDS = [name for name in NAMES if name.startswith("pyramid")]


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    values = random.standard_normal(shape)
    if key.endswith(".bias"):
        values = 0.05 * values
    elif len(shape) == 1:  # of a LayerNorm
        values = 1 + 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def image(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def fill(model: nn.Module) -> nn.Module:
    """Put the recipe's weights into a model, which may be on the meta device."""
    state = {key: weight(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def files(folder: Path) -> list[Path]:
    return [folder / f"{name}.{suffix}" for name in NAMES for suffix in ("json", "npz")]


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
