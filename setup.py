"""The compiled part, davit/kernels/cpu/cpp; everything else is stated in pyproject.toml.

It is built where that makes sense, and left out where it fails: the package then runs without it, slower on the CPU.
"""

import hashlib
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = "davit/kernels/cpu/cpp"
# -fopenmp for the compiler alone: the functions that it calls are those of the OpenMP that PyTorch has loaded
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
ISAS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
}


def extensions() -> list[Extension]:
    """List one extension for each instruction set; none where the functions cannot be compiled."""
    if sys.platform != "linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    here = Path(__file__).parent
    texts = sorted((here / SOURCES).iterdir())
    digest = hashlib.sha256(b"".join(text.read_bytes() for text in texts)).hexdigest()[:16]
    return [
        Extension(
            f"davit.kernels.cpu._native_{isa}",
            [f"{SOURCES}/native.cpp"],
            depends=[str(text.relative_to(here)) for text in texts],
            language="c++",
            define_macros=[("SOURCE", f'"{digest}"')],
            extra_compile_args=[*FLAGS, *flags],
            optional=True,
        )
        for isa, flags in ISAS.items()
    ]


setup(ext_modules=extensions())
