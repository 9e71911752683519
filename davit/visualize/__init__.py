"""Show what a model does: its attention, its evidence for a class, and the curves of its training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import Attention, ChannelView, SpatialView, attention_of
    from .evidence import Evidence, class_evidence
    from .figure import draw_picture
else:
    from ..text import lazily

    __getattr__ = lazily(
        __name__,
        attention=("Attention", "ChannelView", "SpatialView", "attention_of"),
        evidence=("Evidence", "class_evidence"),
        figure=("draw_picture",),
    )

__all__ = ["Attention", "ChannelView", "Evidence", "SpatialView", "attention_of", "class_evidence", "draw_picture"]
