"""The tests of the Triton kernels without a GPU: in Triton's interpreter, to be chosen before it is imported."""

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
    done = subprocess.run(
        [*COMMAND, "-m", marked, "-k", named],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
