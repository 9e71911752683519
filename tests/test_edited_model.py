"""An edit of davit/model.py is what runs: accelerated as plain, in inference, in training, from a checkpoint."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from davit import DaViT, accelerate
from tests.edits import EDITS, OPTIONS, check, edited

COMPILED = {"LayerScale", "ReLU behind the stem", "another scale in channel attention"}  # the others: eager mode alone


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported torch, but not davit."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "timm"])
    return context


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_the_text_is_what_runs(name: str, tmp_path: Path, processes) -> None:
    folder, weights, results = edited(name, tmp_path), tmp_path / "weights.pth", tmp_path / "results.pth"
    process = processes.Process(target=check, args=(folder, weights, results, name in COMPILED))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    logits, loss = torch.load(results, weights_only=True)
    state = torch.load(weights, weights_only=True)["state_dict"]
    stock = accelerate(DaViT(**OPTIONS))
    stock.load_state_dict({key: state[key] for key in stock.state_dict()})
    image = torch.randn(2, 3, 64, 52, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        differs = (stock.eval()(image) - logits).norm() / logits.norm()
        torch.manual_seed(3)
        differs += (stock.train()(image).square().mean() - loss).abs() / loss
    assert differs > 2e-5, "the edit changes nothing"
