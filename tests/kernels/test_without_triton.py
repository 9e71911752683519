"""Platforms whose PyTorch has no Triton: the package imports, and the operators compute their plain formulas."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch
from davit import DaViT, accelerate
from davit.kernels import conditions, ops
from davit.kernels.triton import support
assert not support.HAS_TRITON and not support.INTERPRETED
qkv = torch.randn(1, 3, 5, 48, requires_grad=True)
assert not conditions.supports_window(qkv, 4, 2) and not conditions.supports_channel(qkv, 2)
out = ops.window_attention(qkv, None, 4, 2) + ops.channel_attention(qkv, 2)[0]
out.sum().backward()
assert qkv.grad.isfinite().all() and qkv.grad.any()
model = accelerate(DaViT(embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 2), num_classes=3))
model(torch.randn(1, 3, 32, 32)).sum().backward()
"""


def test_the_package_works_without_triton():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
