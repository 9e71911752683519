"""Provide what tests of several folders need: the shared material, and models small enough for milliseconds."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from davit import DaViT, DaViTPyramid, accelerate, create_model, pretrained

REPOSITORY = Path(__file__).resolve().parents[1]

SMALL: dict[str, Any] = {
    "embed_dims": (16, 32, 48, 64),
    "depths": (1, 1, 2, 1),
    "num_heads": (2, 2, 4, 4),
    "window_size": 4,
}
SLOW = ("engine", "kernels", "distributed", "openmmlab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the folders of slow tests first, so that no core is idle at the end (make test deals out whole files)."""
    items.sort(key=lambda item: not {*SLOW}.intersection(item.path.parts))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small models gain nothing from more, and threads that wait for a busy core slow them down tenfold."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests cache is their own: nothing of the user's is read or written."""
    os.environ["DAVIT_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _no_foreign_handlers() -> Iterator[None]:
    """A tool's main logs to the standard error of its test, which is closed afterwards; no other test may meet it."""
    _drop_stream_handlers()
    yield
    _drop_stream_handlers()


@pytest.fixture(autouse=True)
def _a_process_alone() -> Iterator[None]:
    """No test finds the place in a job that another left: mmengine and accelerate write it into the environment."""
    _forget_the_job()
    yield
    _forget_the_job()


def _forget_the_job() -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    if state := sys.modules.get("accelerate.state"):  # holds the place for the whole process
        state.AcceleratorState._reset_state(reset_partial_state=True)


def _drop_stream_handlers() -> None:
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # pytest's own are of subclasses
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts beside the checkout; a test that asks for it is skipped where there is none."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder.name}/ beside the checkout, which is absent")
    return folder


@pytest.fixture
def published_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of DaViT_tiny, where published ones fetched by hand would lie."""
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, str(tmp_path / "weights"))
    entry = pretrained.Published("timm/davit_tiny.msft_in1k", {"model.safetensors": None})
    monkeypatch.setitem(pretrained.PUBLISHED, "DaViT_tiny", entry)
    file = entry.local_path("model.safetensors")
    file.parent.mkdir()
    safetensors.torch.save_file(create_model("DaViT_tiny").state_dict(), file)
    return file


@pytest.fixture
def small() -> Callable[..., Any]:
    """``small(cls, seed, **options)``: a small model of either class, random weights, evaluation mode, accelerated."""

    def make(cls: type[nn.Module] = DaViT, seed: int = 0, accelerated: bool = True, **options: Any) -> Any:
        head = {"num_classes": 7} if cls is DaViT else {}
        model = randomise(cls(**{**SMALL, **head, **options}), seed).eval()
        return accelerate(model) if accelerated else model

    return make


@pytest.fixture(params=[DaViT, DaViTPyramid])
def either(request: pytest.FixtureRequest) -> Any:
    """Either class; what holds for the stages holds for both."""
    return request.param


@pytest.fixture
def picture() -> Callable[..., Tensor]:
    """``picture(batch, channels, height, width)``: the same noise for the same arguments."""

    def make(batch: int = 2, channels: int = 3, height: int = 33, width: int = 47, seed: int = 1) -> Tensor:
        noise = np.random.default_rng(seed).standard_normal((batch, channels, height, width))
        return torch.from_numpy(noise.astype(np.float32))

    return make


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter unlike its initial value, so that no bias or norm is left out unseen; output near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("bias"):
                tensor.copy_(0.3 * noise)
            elif tensor.dim() == 1:
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return model
