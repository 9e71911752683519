"""Ask a model about an image, for the page: scores and images come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from ..predict import Predictor
from ..predict.pictures import Picture
from ..visualize.figure import HOW_TO_READ, MapRow, draw_maps, evidence_image, look, seen_image


@dataclass(frozen=True)
class Answer:
    """What the page shows for one image.

    Attributes:
        scores: name -> 0 to 1, the highest first.
        picture: the image with what was found, and its caption.
        how: a sentence on how the image is read.
        maps: of the model's attention and evidence, where there are any.
    """

    scores: Mapping[str, float]
    picture: Image.Image
    caption: str
    how: str = ""
    maps: Sequence[MapRow] = ()


_DRAWN = "A colour is a class; beside its name is the score, or below the image which colour is which class."
_EXPORTED = "what the model sees (an exported model: evidence and attention need its checkpoint)"


class Reader(Protocol):
    """A model as the page knows it, under a title."""

    title: str
    classes: Sequence[str]

    def scores(self, picture: Picture) -> Mapping[str, float]:
        """Find what is in an image, without drawing: name -> 0 to 1, the highest first; errors as in `answer`."""
        ...

    def answer(self, picture: Picture) -> Answer:
        """Find what is in an image; a `ValueError` is shown as a sentence, with the reason of a `BadImageError`."""
        ...


class ClassifierReader:
    """Asks a classifier: its classes, the evidence for the first, and the maps of `davit.visualize`.

    Of an exported model there are the classes alone, and a sentence says why.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.title = f"{predictor.name}, {len(predictor.class_names)} classes"
        self.classes: Sequence[str] = list(predictor.class_names)
        self._predictor = predictor

    def scores(self, picture: Picture) -> Mapping[str, float]:
        found = self._predictor.predict(picture)
        # of several classes those that reach their threshold, or else the nearest
        return {guess.name: guess.probability for guess in found.guesses or (found.first,)}

    def answer(self, picture: Picture) -> Answer:
        if self._predictor.program is not None:
            return Answer(self.scores(picture), seen_image(self._predictor, picture), _EXPORTED)
        seen = look(self._predictor, picture)
        # of several classes those that reach their threshold, or else the nearest
        guesses = seen.prediction.guesses or (seen.prediction.first,)
        scores = {guess.name: guess.probability for guess in guesses}
        how, maps = HOW_TO_READ[seen.evidence[0].method], draw_maps(self._predictor, seen)
        return Answer(scores, evidence_image(seen), f"evidence for {seen.prediction.name}", how, maps)


class DrawnReader:
    """Asks a detector or a segmentor: its boxes, masks or regions drawn, and the best score (or share) of each class.

    Args:
        finder: a `davit.openmmlab.predictor.Predictor`.
    """

    def __init__(self, title: str, finder: Any) -> None:
        self.title = title
        self.classes: Sequence[str] = list(getattr(finder, "classes", ()))
        self._finder = finder

    def scores(self, picture: Picture) -> Mapping[str, float]:
        return self._scores(self._finder.predict(picture))

    def answer(self, picture: Picture) -> Answer:
        found = self._finder.predict(picture)
        return Answer(self._scores(found), found.draw(), "what was found", _DRAWN)

    @staticmethod
    def _scores(found: Any) -> Mapping[str, float]:
        contents = found.to_json()
        scores: dict[str, float] = dict(contents.get("classes", {}))
        for entry in contents.get("objects", []):
            scores[entry["class"]] = max(entry["score"], scores.get(entry["class"], 0.0))
        return dict(sorted(scores.items(), key=lambda item: -item[1]))
