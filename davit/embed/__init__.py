"""Keep the features of pictures in a file, and find the pictures that are most alike."""

from .vectors import Embeddings, read_embeddings, weights_sha256, write_embeddings

__all__ = ["Embeddings", "read_embeddings", "weights_sha256", "write_embeddings"]
