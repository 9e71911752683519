"""An edit of davit/model.py is what runs: accelerated as plain, in inference, in training, from a checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from davit import DaViT, accelerate
from tests.edits import EDITS, edited

PROGRAM = """
import copy, sys
import torch
import davit
from davit.checkpoint import load_checkpoint
from davit.kernels import conditions
from tests.conftest import randomise

conditions.LEAST_WORK = 0
options = dict(embed_dims=(32, 64), depths=(1, 1), num_heads=(1, 2), window_size=5, num_classes=7, drop_path_rate=0.0)
model = davit.create_model("DaViT_nano", **options)
assert davit.__file__.startswith(sys.argv[1]), davit.__file__
randomise(model, 0)
image = torch.randn(2, 3, 64, 52, generator=torch.Generator().manual_seed(1))
plain = davit.plain(copy.deepcopy(model))


def step(model):
    torch.manual_seed(3)
    model.train().zero_grad()
    loss = model(image).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def logits(model):
    with torch.no_grad():
        return model.eval()(image)


torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)
torch._dynamo.reset()
compiled = torch.compile(model, backend="aot_eager")
torch.testing.assert_close(logits(compiled), logits(plain), rtol=1e-4, atol=1e-5)
for one, other, (name, parameter) in zip(step(model)[1:], step(plain)[1:], plain.named_parameters(), strict=True):
    assert one is not None and other is not None and other.any(), name
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)
for one, other in zip(step(compiled), step(plain), strict=True):
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

torch.save({"state_dict": model.state_dict()}, sys.argv[2])
torch.save((logits(plain), step(plain)[0]), sys.argv[3])
fresh = davit.create_model("DaViT_nano", **options)
assert load_checkpoint(fresh, sys.argv[2], head="require").complete
assert torch.equal(logits(fresh), logits(model))
"""


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_the_text_is_what_runs(name: str, tmp_path: Path, small, repository: Path) -> None:
    folder, weights, results = edited(name, tmp_path), tmp_path / "weights.pth", tmp_path / "results.pth"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(weights), str(results)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{repository}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logits, loss = torch.load(results, weights_only=True)
    state = torch.load(weights, weights_only=True)["state_dict"]
    options = {"embed_dims": (32, 64), "depths": (1, 1), "num_heads": (1, 2), "window_size": 5, "num_classes": 7}
    stock = accelerate(DaViT(**options, drop_path_rate=0.0))
    stock.load_state_dict({key: state[key] for key in stock.state_dict()})
    image = torch.randn(2, 3, 64, 52, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        differs = (stock.eval()(image) - logits).norm() / logits.norm()
        torch.manual_seed(3)
        differs += (stock.train()(image).square().mean() - loss).abs() / loss
    assert differs > 2e-5, "the edit changes nothing"
