"""Serve a page on which one drops images and sees what a model finds: ``python -m davit.app --checkpoint FILE``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .readers import Answer, ClassifierReader, DrawnReader, Reader
else:
    from ..text import lazily

    __getattr__ = lazily(__name__, readers=("Answer", "ClassifierReader", "DrawnReader", "Reader"))

__all__ = ["Answer", "ClassifierReader", "DrawnReader", "Reader"]
