"""Offer DaViT (Dual Attention Vision Transformers); importing the package registers the variants with timm."""

from typing import TYPE_CHECKING

from .kernels import accelerate, plain
from .model import DaViT
from .pyramid import DaViTPyramid
from .registry import create_model
from .variants import VARIANTS

if TYPE_CHECKING:
    from .predict import load
else:

    def __getattr__(name: str) -> object:
        if name != "load":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import loading  # noqa: F401 (teaches `load` about detectors)
        from .predict import load  # imports data and engine, which nobody needs who only builds a model

        globals()[name] = load  # so that this function is asked only once
        return load

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = "1.0.0"

__all__ = ["VARIANTS", "DaViT", "DaViTPyramid", "__version__", "accelerate", "create_model", "load", "plain"]
