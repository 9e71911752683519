"""Keep the features of images in a file, and find the images that are most alike."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .vectors import Embeddings, read_embeddings, weights_sha256, write_embeddings
else:
    from ..text import lazily

    __getattr__ = lazily(__name__, vectors=("Embeddings", "read_embeddings", "weights_sha256", "write_embeddings"))

__all__ = ["Embeddings", "read_embeddings", "weights_sha256", "write_embeddings"]
