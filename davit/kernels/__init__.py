"""Compute a DaViT faster than its modules do, with the same results.

`accelerate` puts kernels in the place of the blocks of a built model, from outside: `davit.model` knows nothing of
them. When one runs is decided in `conditions`. docs/performance.md has the measurements behind each choice.
"""

from .modules import accelerate, plain, why_plain

__all__ = ["accelerate", "plain", "why_plain"]
