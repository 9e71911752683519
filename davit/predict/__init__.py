"""What a trained model sees in pictures: from Python by `load`, from the command line by predict.py."""

from .predictor import Failure, Guess, Prediction, Predictor, load

__all__ = ["Failure", "Guess", "Prediction", "Predictor", "load"]
