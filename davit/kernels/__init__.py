"""Compute a DaViT faster than its modules do, with the same results.

`accelerate` replaces the blocks of a built model from outside; `davit.model` knows nothing of it. `conditions` decides
when a kernel runs. docs/performance.md has the measurements behind each choice.
"""

from .modules import accelerate, plain, why_plain

__all__ = ["accelerate", "plain", "why_plain"]
