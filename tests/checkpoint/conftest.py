"""A DaViT small enough that a test takes milliseconds, and its counterparts elsewhere."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from davit import DaViT, DaViTPyramid
from davit.checkpoint import CheckpointError, load_checkpoint
from tests.conftest import SMALL

MAKERS: dict[str, Callable[..., nn.Module]] = {
    "davit": lambda **options: DaViT(**{"num_classes": 7, **options}),
    "pyramid": DaViTPyramid,
    "timm": lambda **options: timm.create_model("davit_tiny", **{"num_classes": 7, **options}),
    "florence2": lambda **options: timm.create_model("davit_base_fl", **{"num_classes": 7, **options}),
}


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor different from every other and from any initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1 + 0.01)
    return model.eval()


def built(kind: str = "davit", seed: int = 0, **options: Any) -> nn.Module:
    """A filled small model; kind is davit, pyramid, timm or florence2."""
    return filled(MAKERS[kind](**{**SMALL, **options}), seed)


@cache
def weights_of(kind: str = "davit", seed: int = 0) -> dict[str, Tensor]:
    """The state dict of `built`, shared by all who only read it."""
    return built(kind, seed).state_dict()


@pytest.fixture
def snapshot() -> Callable[[nn.Module], Callable[[], None]]:
    """``unchanged = snapshot(model)``, and later ``unchanged()`` asserts that no tensor of it has changed."""

    def take(model: nn.Module) -> Callable[[], None]:
        before = copy.deepcopy(model.state_dict())

        def unchanged() -> None:
            after = model.state_dict()
            assert after.keys() == before.keys()
            changed = [
                name
                for name, value in before.items()
                if not (torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name])
            ]
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
    """Same names in the same order, same dtypes, same bits."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def is_loaded(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    mine = model.state_dict()
    return mine.keys() == weights.keys() and all(torch.equal(mine[name], weights[name]) for name in mine)


def refusal(model: nn.Module, source: Any, unchanged: Callable[[], None], **options: Any) -> str:
    """The one-paragraph error of a load that left the model as it was."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, source, **options)
    unchanged()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(weights: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name not in names}


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}
