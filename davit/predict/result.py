"""Hold the answer of a model for one image, and write it as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..text import as_line

EIGHTHS = " ▏▎▍▌▋▊▉█"  # of a column of a bar
_BAR = 20  # columns, at most
_LEAST_NAME = 12


@dataclass(frozen=True)
class Guess:
    """One class, and the probability that the model gives it, 0 to 1: its softmax at the predictor's temperature.

    Of several classes per image it is the sigmoid.
    """

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer of a model for one image.

    Attributes:
        file: the path, or which of the images given.
        guesses: the most probable classes, the first first; equal ones by their index. Of several classes per image
            those that reach their threshold: also none.
        probabilities: (num_classes,) float32 on the CPU, of all classes; of several each by itself, else they add up
            to 1.
        first: the most probable class, whether it is among the guesses or not.
    """

    file: str
    guesses: tuple[Guess, ...]
    probabilities: Tensor = field(repr=False, compare=False)
    first: Guess

    @property
    def index(self) -> int:
        """The most probable class."""
        return self.first.index

    @property
    def name(self) -> str:
        """The most probable class in words."""
        return self.first.name

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.first.probability

    def __str__(self) -> str:
        return as_table(self)


@dataclass(frozen=True)
class Failure:
    """An image that could not be looked at, and why."""

    file: str
    reason: str


def as_table(prediction: Prediction, width: int = 80, plain: bool = False) -> str:
    """Write the file, and below it a line for each guess: percent, a bar, the class; `plain` bars are of ASCII.

    With one guess it all goes on one line. Names are written by `davit.text.as_line`.
    """
    file, names = as_line(prediction.file), [as_line(guess.name) for guess in prediction.guesses]
    shares = [guess.probability for guess in prediction.guesses]
    if not names:
        first = prediction.first
        most = f"the most probable is {as_line(first.name)}, {first.probability:.2%}"
        return f"{file}\n  no class reaches its threshold; {most}"
    if len(names) == 1:
        return f"{shares[0]:7.2%}  {bar(shares[0], 10, plain)}  {names[0]}  {file}"
    length = max(4, min(_BAR, width - 13 - max(_LEAST_NAME, *map(len, names))))
    lines = [f"  {p:7.2%}  {bar(p, length, plain)}  {name}" for p, name in zip(shares, names, strict=True)]
    return "\n".join([file, *lines])


def bar(share: float, length: int, plain: bool = False) -> str:
    """Draw a bar of `length` columns, filled by `share` (0 to 1)."""
    if plain:
        return ("#" * round(share * length)).ljust(length)
    full, part = divmod(round(share * length * 8), 8)
    return (EIGHTHS[-1] * full + (EIGHTHS[part] if part else "")).ljust(length)
