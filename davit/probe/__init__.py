"""Measure what the features of a frozen model are worth: classify pictures by them alone, without training it."""

from .classifiers import Fitted, nearest_neighbours, regression

__all__ = ["Fitted", "nearest_neighbours", "regression"]
