"""Measure what the features of a frozen model are worth: classify images by them alone, without training it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .classifiers import Fitted, nearest_neighbours, regression
else:
    from ..text import lazily

    __getattr__ = lazily(__name__, classifiers=("Fitted", "nearest_neighbours", "regression"))

__all__ = ["Fitted", "nearest_neighbours", "regression"]
