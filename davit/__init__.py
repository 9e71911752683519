"""Offer DaViT (Dual Attention Vision Transformers); importing the package registers the variants with timm."""

import importlib
import sys
from typing import TYPE_CHECKING

# The command `davit` answers --help and mistakes at once: there a command itself imports what it needs.
_is_command = "davit_command" in sys.modules or (
    sys.argv[:1] == ["-m"]
    and "-m" in sys.orig_argv
    and sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["davit"]
)

if TYPE_CHECKING or not _is_command:
    from .kernels import accelerate, plain
    from .model import DaViT
    from .pyramid import DaViTPyramid
    from .registry import create_model
    from .variants import VARIANTS

if TYPE_CHECKING:
    from .loading import load
else:
    _HOMES = {
        **{"accelerate": "kernels", "plain": "kernels", "DaViT": "model", "DaViTPyramid": "pyramid"},
        **{"create_model": "registry", "VARIANTS": "variants"},
        "load": "loading",  # imports data and engine, which nobody needs who only builds a model
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = found  # so that this function is asked only once
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = "1.0.0"

__all__ = ["VARIANTS", "DaViT", "DaViTPyramid", "__version__", "accelerate", "create_model", "load", "plain"]
