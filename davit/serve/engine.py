"""Put a model behind the service: what its decoding threads do, and what its model thread does."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..data import BadImageError, PictureDataset
from ..data.dataset import Transform
from ..data.decode import Pixels, readable_formats
from ..data.samples import UnfitPictureError
from ..engine.features import NOT_FINITE
from ..predict import Failure, Predictor
from ..predict.pictures import PictureSource

_LARGE = 2**24  # pixels; of larger images one is decoded at a time
_NAME = "the image"

Answer = Mapping[str, Any]


class Engine(Protocol):
    """A model as the service knows it.

    Attributes:
        name: of the model.
        task: classification, features, detection or segmentation.
        kinds: what may be asked of it: "predict", "embed".
        batches: several images may go through the model at once.
        about: what else is told of the model.
    """

    name: str
    task: str
    kinds: tuple[str, ...]
    batches: bool
    about: Mapping[str, Any]

    def prepare(self, data: bytes) -> Any:
        """Decode an image, in any thread; `BadImageError` says why it is none, a Tensor may share a batch."""
        ...

    def run(self, kind: str, prepared: Sequence[Any]) -> Sequence[Any]:
        """Compute an output for each image, in the model's thread."""
        ...

    def answer(self, kind: str, output: Any, topk: int | None) -> Answer:
        """Put an output into plain values; `ValueError` where it is not finite."""
        ...

    def sample(self) -> Any:
        """Make what `prepare` makes, of a grey image, in any thread."""
        ...


class Classifier:
    """A classifier, or a model without one that only embeds.

    Args:
        most_pixels: of an image, by its header; more are refused before any is decoded.
    """

    batches = True

    def __init__(self, predictor: Predictor, most_pixels: int) -> None:
        self._predictor = predictor
        self._most_pixels = most_pixels
        self._turn = threading.Lock()  # several large images at once may take more memory than there is
        self.name = predictor.name
        self.task = "classification" if predictor.class_names else "features"
        self._size = tuple(int(number) for number in predictor.config["input_size"])
        self.about: Mapping[str, Any] = {"classes": len(predictor.class_names), "input_size": self._size}
        self.kinds = tuple(kind for kind in ("predict", "embed") if self._can(kind))

    def prepare(self, data: bytes) -> Tensor:
        with contextlib.ExitStack() as stack:
            transform = _Bounded(self._predictor.transform, self._most_pixels, lambda: stack.enter_context(self._turn))
            decoding = self._predictor.decoding
            dataset = PictureDataset(_Given([data], decoding.bands), transform, decoding=decoding)
            image_CHW: Tensor = dataset[0][0]
            return image_CHW

    def run(self, kind: str, prepared: Sequence[Tensor]) -> Sequence[Tensor]:
        images_NCHW = torch.stack(list(prepared)).to(self._predictor.device)
        compute = self._predictor.probabilities if kind == "predict" else self._predictor.features
        return list(compute(images_NCHW))

    def answer(self, kind: str, output: Tensor, topk: int | None) -> Answer:
        if kind == "embed":
            if not torch.isfinite(output).all():
                raise ValueError(f"{NOT_FINITE}.")
            return {"features": output.tolist()}
        found = self._predictor.prediction(_NAME, output, topk)
        if isinstance(found, Failure):
            raise ValueError(f"{found.reason}.")
        guesses = ({"index": one.index, "name": one.name, "probability": one.probability} for one in found.guesses)
        return {"classes": list(guesses)}

    def sample(self) -> Tensor:
        with contextlib.suppress(BadImageError):  # the model takes other bands
            return self.prepare(_grey())
        return torch.zeros(self._size)

    def _can(self, kind: str) -> bool:
        if kind == "predict":
            return bool(self._predictor.class_names)
        try:
            self.run("embed", [self.sample()])
        except (ValueError, AttributeError, NotImplementedError):
            return False
        return True


class Finder:
    """A detector or segmentor, which takes images of any size one by one.

    Args:
        finder: what `davit.load` makes of one.
        most_pixels: as of `Classifier`.
    """

    kinds: tuple[str, ...] = ("predict",)
    batches = False

    def __init__(self, name: str, finder: Any, most_pixels: int) -> None:
        self._finder = finder
        self._most_pixels = most_pixels
        self.name = name
        self.task: str = finder.task
        self.about: Mapping[str, Any] = {"classes": len(finder.classes)}

    def prepare(self, data: bytes) -> bytes:
        """Look at the header alone: the model's own pipeline decodes."""
        try:
            with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
                require_few(image.width, image.height, self._most_pixels)
        except UnfitPictureError as error:
            raise BadImageError.of(_NAME, str(error)) from error
        except Exception:  # whatever it is, the decoder says it better
            return data
        return data

    def run(self, kind: str, prepared: Sequence[bytes]) -> Sequence[Answer]:
        return [self._finder.predict(data).to_json() for data in prepared]

    def answer(self, kind: str, output: Answer, topk: int | None) -> Answer:
        return output

    def sample(self) -> bytes:
        return _grey()


def _grey() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(stream, "JPEG")
    return stream.getvalue()


def require_few(width: int, height: int, most: int) -> None:
    """Raise `UnfitPictureError` for an image of more pixels than are taken."""
    if width * height > most:
        raise UnfitPictureError(f"{width} x {height} pixels, and at most {most:,} are taken")


class _Bounded:
    """Refuse large images before a transform sees them: `check` is asked by the decoder, before any pixel.

    Args:
        most: pixels of an image.
        wait: called before a large one is decoded.
    """

    def __init__(self, transform: Transform, most: int, wait: Callable[[], object]) -> None:
        self._transform = transform
        self._most = most
        self._wait = wait

    def __call__(self, pixels: Pixels) -> Tensor:
        return self._transform(pixels)

    def check(self, width: int, height: int, scalable: bool) -> int:
        require_few(width, height, self._most)
        check = getattr(self._transform, "check", None)
        reduction = 1 if check is None else int(check(width, height, scalable))
        if width * height > _LARGE:
            self._wait()
        return reduction


class _Given(PictureSource):
    """One image whose bytes are given."""

    def path(self, index: int) -> str:
        return _NAME
