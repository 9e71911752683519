"""DaViT: Dual Attention Vision Transformers. Importing the package registers the variants with timm."""

from .kernels import accelerate, plain
from .model import DaViT
from .predict import load
from .pyramid import DaViTPyramid
from .registry import create_model
from .variants import VARIANTS

__version__ = "1.0.0"

__all__ = ["VARIANTS", "DaViT", "DaViTPyramid", "__version__", "accelerate", "create_model", "load", "plain"]
