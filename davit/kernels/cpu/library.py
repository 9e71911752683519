"""Load the library of compiled functions (native.cpp), and call them.

setup.py builds it with the package for AVX2, AVX-512 and AVX-512 with bfloat16, on x86 processors under Linux where
there is a C++ compiler.
"""

import ctypes
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
TYPES = {torch.float32: 0, torch.bfloat16: 1}


def load(folder: Path = HERE) -> ctypes.CDLL | None:
    """Load the library for this processor; None where there is none, or none that was built from this native.cpp."""
    built = {"AVX512": ["avx512", "avx2"], "AVX2": ["avx2"]}.get(torch.backends.cpu.get_cpu_capability(), [])
    if "avx512" in built and torch.cpu._is_avx512_bf16_supported():
        built = ["avx512_bf16", *built]
    for path in (path for isa in built for path in sorted(folder.glob(f"_native_{isa}.*"))):
        try:
            library = ctypes.CDLL(str(path))
            library.davit_source.restype = ctypes.c_char_p
            library.davit_block_memory.restype = ctypes.c_int64
            source = library.davit_source().decode()
        except (OSError, AttributeError) as error:
            _logger.warning("%s could not be loaded (%s); blocks run without it.", path.name, error)
            continue
        texts = sorted((folder / "cpp").glob("*"))
        if not texts or source == digest(texts):  # a wheel has no sources
            return library
        _logger.warning(
            "%s was built from another source and is not used. Build it again: pip install -e . (or make setup).",
            path.name,
        )
    return None


def digest(texts: Sequence[Path]) -> str:
    """Hash the sources as setup.py does, which stores the result in the library."""
    return hashlib.sha256(b"".join(text.read_bytes() for text in texts)).hexdigest()[:16]


def ask(library: ctypes.CDLL | None, name: str, dtype: torch.dtype, *given: Any) -> int:
    """Call a function for a dtype, with as many threads as PyTorch has, and return its result."""
    arguments = [ctypes.c_int(TYPES[dtype]), *(_convert(a) for a in given)]
    return getattr(library, name)(*arguments, ctypes.c_int(torch.get_num_threads()))


def _convert(argument: Any) -> Any:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    if isinstance(argument, ctypes.Array):
        return argument
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(argument)
