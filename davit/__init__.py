"""DaViT: Dual Attention Vision Transformers. Importing the package registers the variants with timm."""

from .kernels import accelerate, plain
from .model import DaViT
from .predict import load
from .pyramid import DaViTPyramid
from .variants import VARIANTS, create_model

__version__ = "1.0.0"

__all__ = ["VARIANTS", "DaViT", "DaViTPyramid", "__version__", "accelerate", "create_model", "load", "plain"]
