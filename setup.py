"""The compiled part, davit/kernels/cpu/native.cpp; everything else is stated in pyproject.toml.

It is built where that makes sense, and left out where it fails: the package then runs without it, slower on the CPU.
"""

import hashlib
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "davit/kernels/cpu/native.cpp"
# -fopenmp for the compiler alone: the functions that it calls are those of the OpenMP that PyTorch has loaded
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
ISAS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}


def extensions() -> list[Extension]:
    if sys.platform != "linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    digest = hashlib.sha256((Path(__file__).parent / SOURCE).read_bytes()).hexdigest()[:16]
    return [
        Extension(
            f"davit.kernels.cpu._native_{isa}",
            [SOURCE],
            language="c++",
            define_macros=[("SOURCE", f'"{digest}"')],
            extra_compile_args=[*FLAGS, *flags],
            optional=True,
        )
        for isa, flags in ISAS.items()
    ]


setup(ext_modules=extensions())
