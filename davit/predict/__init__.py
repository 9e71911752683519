"""Tell what a trained model sees in images: from Python by `load`, from the command line by predict.py."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .predictor import Predictor, load
    from .result import Failure, Guess, Prediction
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import predictor, result  # load PyTorch, which the parser of predict.py does without

        found = getattr(predictor if name in ("Predictor", "load") else result, name)
        globals()[name] = found  # so that this function is asked only once
        return found


__all__ = ["Failure", "Guess", "Prediction", "Predictor", "load"]
