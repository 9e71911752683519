"""Check benchmarks/kernels.py: its sizes, that both ways of a span agree, and that its kernels compile."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kernels as bench

from davit.kernels.triton import support


def test_stages_are_those_of_the_variants():
    assert list(bench.stages(["DaViT_tiny"], 224)) == [(96, 3, 56), (192, 6, 28), (384, 12, 14), (768, 24, 7)]
    assert list(bench.stages(["DaViT_tiny", "DaViT_small"], 224)) == list(bench.stages(["DaViT_tiny"], 224))
    assert [side for *_, side in bench.stages(["DaViT_tiny"], 900)] == [225, 113, 57, 29]


@pytest.mark.parametrize("name", bench.SPANS)
def test_both_ways_of_a_span_agree(name):
    """On the CPU the operators are their plain formulas; the errors that are reported are then those of rounding."""
    torch.manual_seed(0)
    span = bench.SPANS[name](32, 2)
    x = torch.randn(3, 5, 9, span.channels(), requires_grad=True)
    for one, other in zip(span.kernel(x), span.plain(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert all(0 < error < 1e-5 for error in bench.errors(span, x))


@pytest.mark.skipif(not support.HAS_TRITON or support.INTERPRETED, reason="needs Triton's compiler")
def test_kernels_compile_for_a_gpu_that_is_elsewhere(capsys, tmp_path, monkeypatch):
    """Forward and backward of each; in registers, and within 99 KiB of shared memory."""
    monkeypatch.setattr(bench, "stages", lambda *_: [(64, 2, 5)])
    for module in (bench.channel, bench.encoding, bench.gelu, bench.window):
        monkeypatch.setattr(module, "launch", module.launch)  # put back behind the test
    monkeypatch.setattr(support, "runs_on", support.runs_on)
    assert bench.main(["--compile", "90", "--folder", str(tmp_path)]) == 0
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "`" in line
    ]
    names = {row[0].split("`")[1] for row in rows}
    assert len(names) == 11
    assert all(int(row[3]) == 0 and int(row[4].rstrip(" |")) <= 99 * 1024 for row in rows)
    assert (tmp_path / "kernels_compiled_90_bfloat16.json").is_file()
