"""Ask a model about an image, for the page: what it found and images of it come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from ..predict import Prediction, Predictor
from ..predict.pictures import Picture
from ..text import as_line
from ..visualize.figure import HOW_TO_READ, MapRow, draw_maps, evidence_image, look, seen_image

Found = Sequence[Mapping[str, Any]]
"""What is in an image, best first: each with its "class", its "score" or "share", and more."""


@dataclass(frozen=True)
class Answer:
    """What the page shows for one image.

    Attributes:
        found: as of `Reader.find`.
        picture: the image with what was found, and its caption.
        how: a sentence on how the image is read.
        maps: of the model's attention and evidence, where there are any.
    """

    found: Found
    picture: Image.Image
    caption: str
    how: str = ""
    maps: Sequence[MapRow] = ()


class Reader(Protocol):
    """A model as the page knows it.

    Attributes:
        title: of the page.
        classes: the names of all.
        entries: what an image is said to hold, in files: "classes" or "objects".
        number: what stands beside a class: its "score" or its "share" of the image.
        first: heads the column of the first class.
        programs: says how programs get the same.
    """

    title: str
    classes: Sequence[str]
    entries: str
    number: str
    first: str
    programs: str

    def find(self, picture: Picture) -> Found:
        """Find what is in an image, without drawing; errors as in `answer`."""
        ...

    def answer(self, picture: Picture) -> Answer:
        """Find what is in an image; a `ValueError` is shown as a sentence, with the reason of a `BadImageError`."""
        ...


_EXPORTED = "What the model sees. Evidence and attention need the checkpoint that this exported model was made of."
_PROGRAMS = (
    "For programs: `davit serve MODEL` answers the same by HTTP, {what}; while it runs, its API is described at "
    "[127.0.0.1:8000/docs](http://127.0.0.1:8000/docs). {more}"
)


class ClassifierReader:
    """Asks a classifier: its classes, the evidence for the first, and the maps of `davit.visualize`.

    Of an exported model there are the classes alone, and a sentence says why.

    Raises:
        ValueError: the model has no classes.
    """

    entries, number, first = "classes", "score", "first class"

    def __init__(self, predictor: Predictor) -> None:
        if not predictor.class_names:
            raise ValueError(
                f"{predictor.name} has no classes to show: it was built without a classifier. `davit embed` writes "
                "its features, and draws the images most similar to one."
            )
        self.title = _title(predictor.name, predictor.class_names)
        self.classes: Sequence[str] = list(predictor.class_names)
        figure = "" if predictor.program is not None else "All maps in one figure: `davit visualize IMAGE`."
        self.programs = _PROGRAMS.format(what="`POST /predict` and `POST /embed`", more=figure)
        self._predictor = predictor

    def find(self, picture: Picture) -> Found:
        return self._found(self._predictor.predict(picture))

    def answer(self, picture: Picture) -> Answer:
        if self._predictor.program is not None:
            image = seen_image(self._predictor, picture)
            return Answer(self.find(picture), image, "what the model sees", _EXPORTED)
        seen = look(self._predictor, picture)
        how, maps = HOW_TO_READ[seen.evidence[0].method], draw_maps(self._predictor, seen)
        caption = f"evidence for {as_line(seen.prediction.name)}"
        return Answer(self._found(seen.prediction), evidence_image(seen), caption, how, maps)

    @staticmethod
    def _found(prediction: Prediction) -> Found:
        """List the classes; of several classes those that reach their threshold, or else the nearest."""
        guesses = prediction.guesses or (prediction.first,)
        return [{"class": guess.name, "score": guess.probability} for guess in guesses]


class DrawnReader:
    """Asks a detector or a segmentor: its objects drawn, or its regions.

    Args:
        name: of the model, for people.
        finder: a detector or segmentor, as `davit.load` makes it.
    """

    def __init__(self, name: str, finder: Any) -> None:
        self.title = _title(name, finder.classes)
        self.classes: Sequence[str] = list(finder.classes)
        self._is_detector = finder.task == "detection"
        self.entries, self.number, self.first = (
            ("objects", "score", "best object") if self._is_detector else ("classes", "share", "largest class")
        )
        command = "davit det demo" if self._is_detector else "davit seg demo"
        more = f"A folder of images is drawn by `{command}`."
        self.programs = _PROGRAMS.format(what="`POST /predict`", more=more)
        self._finder = finder

    def find(self, picture: Picture) -> Found:
        return self._found(self._finder.predict(picture))

    def answer(self, picture: Picture) -> Answer:
        predicted = self._finder.predict(picture)
        found = self._found(predicted)
        noun = ("object" if self._is_detector else "class") if len(found) == 1 else self.entries
        return Answer(found, predicted.draw(), f"{len(found) or 'no'} {noun}", self._how(found))

    def _found(self, predicted: Any) -> Found:
        contents = predicted.to_json()
        if self._is_detector:
            objects: Found = contents["objects"]
            return objects
        return [{"class": name, "share": share} for name, share in contents["classes"].items()]

    def _how(self, found: Found) -> str:
        if not self._is_detector:
            return "A colour is a class. The numbers say which share of the image each class has."
        least = f"{self._finder.score_threshold:g} (`--score-thr`)"
        if not found:
            return f"No object has a score of {least} or more."
        return f"A colour is a class; beside its name is the score. Objects of a score below {least} are left out."


def _title(name: str, classes: Sequence[str]) -> str:
    return f"{name}, {len(classes)} class{'es' if len(classes) != 1 else ''}"
