"""Serve a page on which one drops a picture and sees what a model finds: ``python -m davit.app --checkpoint FILE``."""

from .readers import Answer, ClassifierReader, DrawnReader, Reader

__all__ = ["Answer", "ClassifierReader", "DrawnReader", "Reader"]
