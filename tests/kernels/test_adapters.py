"""Libraries that replace layers or weights of a model: they run, and count, before and after `accelerate`."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from davit import accelerate, plain
from davit.kernels import why_plain

LAYERS = r".*\.(attn\.qkv|attn\.proj|fc1|fc2)"


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def model(small):
    """Two stages; the second one's widths are such that every library takes its layers."""
    return small(embed_dims=(32, 64), depths=(1, 1), num_heads=(1, 2), drop_path_rate=0.0)


def logits(model, image):
    with torch.no_grad():
        return model.eval()(image)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_lora_by_peft(model, picture):
    peft = pytest.importorskip("peft")
    stock = logits(model, picture())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=LAYERS, init_lora_weights=False))
    before = logits(adapted, picture())
    assert not torch.allclose(before, stock, rtol=1e-3)
    for prepare in (accelerate, plain):
        assert_same(logits(prepare(copy.deepcopy(adapted)), picture()), before)
    adapted.train()(picture()).square().mean().backward()
    grads = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert len(grads) == 4 * 4 * 2 and all(grad is not None and grad.any() for grad in grads)
    merged = accelerate(adapted.merge_and_unload())
    assert_same(logits(merged, picture()), before)
    assert why_plain(merged) == {}  # stock layers again


def test_dynamic_quantization(model, picture):
    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("no quantized operators for this processor")
    stock = logits(model, picture())
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    found = logits(quantized, picture())
    assert 0 < (found - stock).abs().max() < 0.1
    # the stem by a kernel or not moves a value now and then to the next of its 255 steps
    torch.testing.assert_close(logits(plain(copy.deepcopy(quantized)), picture()), found, rtol=0.05, atol=0.05)
    assert len([name for name in why_plain(accelerate(quantized)) if "blocks" in name]) == 4


def test_torchao(model, picture):
    quantization = pytest.importorskip("torchao.quantization")
    stock = logits(model, picture())
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    found = logits(model, picture())
    assert 0 < (found - stock).abs().max() < 0.1
    for prepare in (plain, accelerate):
        assert_same(logits(prepare(model), picture()), found)


def test_pt2e_for_x86(model, picture):
    pytest.importorskip("torchao.quantization.pt2e")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    stock = logits(model, picture())
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (picture(),)).module(), quantizer)
    prepared(picture())
    found = convert_pt2e(prepared)(picture()).detach()
    assert 0 < (found - stock).norm() < 0.1 * stock.norm()


SHARDED = """
import sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from davit import DaViT, accelerate
from davit.kernels import conditions, modules
from tests.conftest import randomise

conditions.MIN_WORK = conditions.MIN_WORK_TO_TRAIN = 0
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
options = dict(embed_dims=(32, 64), depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=7, drop_path_rate=0.0)
images = torch.randn(2, 3, 48, 40, generator=torch.Generator().manual_seed(1))


def step(model, image):
    loss = model.train()(image).square().mean()
    loss.backward()
    return {n: getattr(p.grad, "full_tensor", lambda: p.grad)() for n, p in model.named_parameters()}


expected = [step(randomise(DaViT(**options), 0), images[i : i + 1]) for i in range(2)]
ways = []
run = dict(modules.WAYS)
modules.WAYS.update({w: lambda b, x, w=w: ways.append(w) or run[w](b, x) for w in run})
for order in ("accelerated first", "sharded first", "plain"):
    model = randomise(DaViT(**options), 0)
    if order == "accelerated first":
        accelerate(model)
    for stage in model.main_blocks:
        for pair in stage:
            for block in pair:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if order == "sharded first":
        accelerate(model)
    ways.clear()
    grads = step(model, images[rank : rank + 1])
    assert bool(ways) == (order == "accelerated first"), (order, ways)
    for name, grad in grads.items():
        mean = (expected[0][name] + expected[1][name]) / 2
        torch.testing.assert_close(grad, mean, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{order} {name} {m}")
dist.destroy_process_group()
"""


def test_fully_shard_on_two_processes(tmp_path, repository):
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    options = {"cwd": repository, "env": environment, "stderr": subprocess.PIPE, "text": True}
    commands = [[sys.executable, "-c", SHARDED, str(rank), str(tmp_path / "meeting")] for rank in range(2)]
    processes = [subprocess.Popen(command, **options) for command in commands]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
