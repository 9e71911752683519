"""Tell what a trained model sees in pictures: from Python by `load`, from the command line by predict.py."""

from .predictor import Predictor, load
from .result import Failure, Guess, Prediction

__all__ = ["Failure", "Guess", "Prediction", "Predictor", "load"]
