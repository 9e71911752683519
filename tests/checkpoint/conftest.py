"""A DaViT small enough that a test takes milliseconds, and its counterparts elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from davit import DaViT, DaViTPyramid

SMALL: dict[str, Any] = {
    "embed_dims": (16, 32, 48, 64),
    "depths": (1, 1, 2, 1),
    "num_heads": (2, 2, 4, 4),
    "window_size": 4,
}


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor different from every other and from any initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1 + 0.01)
    return model.eval()


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """``build(kind, seed, **options)``: a filled small model; kind is davit, pyramid, timm or florence2."""

    def build(kind: str = "davit", seed: int = 0, **options: Any) -> nn.Module:
        options = {**SMALL, **options}
        if kind == "davit":
            return filled(DaViT(**{"num_classes": 7, **options}), seed)
        if kind == "pyramid":
            return filled(DaViTPyramid(**options), seed)
        name = {"timm": "davit_tiny", "florence2": "davit_base_fl"}[kind]
        return filled(timm.create_model(name, **{"num_classes": 7, **options}), seed)

    return build


@pytest.fixture
def snapshot() -> Callable[[nn.Module], Callable[[], None]]:
    """``unchanged = snapshot(model)``, and later ``unchanged()`` asserts that no tensor of it has changed."""

    def take(model: nn.Module) -> Callable[[], None]:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        def unchanged() -> None:
            after = model.state_dict()
            assert after.keys() == before.keys()
            changed = [name for name in before if not torch.equal(before[name], after[name])]
            assert changed == []

        return unchanged

    return take


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """``saved(contents, name)``: the path of a file that torch.save wrote."""

    def save(contents: object, name: str = "checkpoint.pth", **options: Any) -> Path:
        torch.save(contents, tmp_path / name, **options)
        return tmp_path / name

    return save


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Same names in the same order, same number formats, same bits."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture(name="same")
def _same() -> Callable[[dict[str, Tensor], dict[str, Tensor]], bool]:
    return same
