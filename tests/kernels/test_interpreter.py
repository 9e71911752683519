"""Processes of their own: the tests of the Triton kernels in Triton's interpreter, and the package without Triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from davit.kernels.triton import support

FOLDER = Path(__file__).parent
COMMAND = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{FOLDER}/triton", f"{FOLDER}/test_operators.py"]
EACH_KERNEL = "each_kernel and float32 or models_through_kernels and stock"  # forward and backward


def run(*command, **environment):
    environment = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True, check=False, timeout=570
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not support.HAS_TRITON, reason="no Triton for this platform")
@pytest.mark.skipif(support.INTERPRETED or torch.cuda.is_available(), reason="they run in this process")
@pytest.mark.parametrize(
    ("marked", "named"),
    [
        ("not long", EACH_KERNEL),
        pytest.param("not long", "not any_size", marks=pytest.mark.long),
        pytest.param("long", "not any_size", marks=pytest.mark.long),
    ],
    ids=["each kernel once", "all sizes", "long"],
)
def test_kernels_in_the_interpreter(marked, named):
    told = run(*COMMAND, "-m", marked, "-k", named, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert " passed" in told and " skipped" not in told


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch
from davit import DaViT, accelerate
from davit.kernels import conditions, ops
from davit.kernels.triton import support
assert not support.HAS_TRITON and not support.INTERPRETED
qkv = torch.randn(1, 3, 5, 48, requires_grad=True)
assert not conditions.supports_attention(qkv, 4, 2) and not conditions.supports_attention(qkv, 0, 2)
out = ops.window_attention(qkv, None, 4, 2) + ops.channel_attention(qkv, 2)[0]
out.sum().backward()
assert qkv.grad.isfinite().all() and qkv.grad.any()
model = accelerate(DaViT(embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 2), num_classes=3))
model(torch.randn(1, 3, 32, 32)).sum().backward()
"""


def test_the_package_works_without_triton():
    """On platforms whose PyTorch has none: the operators compute their plain formulas."""
    run(sys.executable, "-c", WITHOUT_TRITON)
