"""The tests of the Triton kernels without a GPU: in Triton's interpreter, to be chosen before it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from davit.kernels.triton import support

FOLDER = Path(__file__).parent
TESTS = [str(FOLDER / "triton"), str(FOLDER / "test_operators.py")]


@pytest.mark.skipif(not support.HAS_TRITON, reason="no Triton for this platform")
@pytest.mark.skipif(support.INTERPRETED or torch.cuda.is_available(), reason="they run in this process")
@pytest.mark.parametrize(
    "kind", ["not long", pytest.param("long", marks=pytest.mark.long)], ids=["short", "with reference vectors"]
)
def test_kernels_in_the_interpreter(kind):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", kind, "-k", "not any_size", "-p", "no:cacheprovider", *TESTS],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=570,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
