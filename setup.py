"""The compiled part, davit/kernels/cpu/cpp, and the recipes and configs; everything else is stated in pyproject.toml.

The functions are compiled where that makes sense. Without them the package runs too, slower on the CPU, and one wheel
(py3-none-any) is for all platforms: that is built where there is no C++ compiler, or with DAVIT_NO_NATIVE=1.
"""

import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CompileError

from distutils.ccompiler import new_compiler  # isort: skip  (setuptools' own, once setuptools is imported)
from distutils.sysconfig import customize_compiler  # isort: skip

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

# In the installed package davit/recipes.py finds here what a checkout has at its top.
CONFIGS = {"configs": "davit/configs", "mmdet/configs": "davit/configs/mmdet", "mmseg/configs": "davit/configs/mmseg"}


def extensions() -> list[Extension]:
    """List one extension for each instruction set that can be compiled; none on other machines."""
    if os.environ.get("DAVIT_NO_NATIVE", "0") not in ("", "0"):
        return []
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
        if compiles([*FLAGS, *flags])
    ]


def compiles(flags: list[str]) -> bool:
    """Tell whether there is a C++ compiler that takes these flags, by a file of one function."""
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.cpp"
        file.write_text('#include <immintrin.h>\n#include <cstdint>\nextern "C" int davit() { return 0; }\n')
        try:
            compiler.compile([str(file)], output_dir=folder, extra_postargs=flags)
        except (BaseError, CompileError):
            return False
    return True


class BuildPy(build_py):
    """Put the recipes and configs into the package. An editable installation finds those of its checkout."""

    def _configs(self) -> dict[str, str]:
        """Map each file in the checkout to its place below the folder that is built."""
        return {
            str(file): str(Path(target) / file.relative_to(source))
            for source, target in CONFIGS.items()
            for file in sorted(Path(source).rglob("*"))
            if file.suffix in (".py", ".yaml")
        }

    def run(self) -> None:
        """Copy the modules, then the configs."""
        super().run()
        if not self.editable_mode:
            for source, target in self._configs().items():
                self.mkpath(str(Path(self.build_lib, target).parent))
                self.copy_file(source, str(Path(self.build_lib, target)))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """List what was built."""
        copied = [] if self.editable_mode else [str(Path(self.build_lib, file)) for file in self._configs().values()]
        return [*super().get_outputs(include_bytecode), *copied]

    def get_source_files(self) -> list[str]:
        """List what a source distribution needs."""
        return [*super().get_source_files(), *self._configs()]


setup(ext_modules=extensions(), cmdclass={"build_py": BuildPy})
