"""Classify images by a model, with all that its checkpoint says about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from ..data import Batch, DataError, EvalLoader, PictureDataset, prefetch
from ..engine.distributed import device_named, is_out_of_memory
from ..engine.features import CPU_BATCH, NOT_FINITE, WORKERS_FROM, embed_images
from ..engine.load_model import LoadedModel, ModelOptions, load_model
from ..engine.precision import Precision, dtype_of, precision_from
from ..runtimes import ExportedModel
from .names import class_names
from .pictures import Picture, PictureSource
from .result import Failure, Guess, Prediction

DEFAULT_TOPK = 5  # classes that are named, where an image has one


class Predictor:
    """A model ready to classify; `load` makes one.

    Attributes:
        name: of the architecture.
        model: in eval mode on `device`.
        class_names: a name for each output; none for a model without a classifier, which only embeds.
        config: how images are prepared, as timm's `resolve_data_config` says it.
        decoding: how files are decoded: their bands, and the range of values of more than 8 bits.
        transform: decoded image -> (C, H, W), as `config` says.
        temperature: what logits are divided by before they become probabilities; 1 unless one was fitted or asked for.
        thresholds: (num_classes,) from which probability on each of several classes is named; None where an image has
            one class.
        program: what computes `model`, where that is an exported one; else None.
    """

    def __init__(self, loaded: LoadedModel, names: Sequence[str], device: torch.device, precision: Precision) -> None:
        self.name = loaded.name
        self.model = loaded.model
        self.class_names = tuple(names)
        self.config = dict(loaded.config)
        self.decoding = loaded.decoding
        self.transform = loaded.transform()
        self.temperature = loaded.temperature
        self.thresholds = loaded.thresholds
        self.device = device
        self.program = loaded.program
        self._classifier = loaded.classifier
        self._precision = precision

    def __repr__(self) -> str:
        height, width = self.config["input_size"][-2:]
        return f"Predictor({self.name}, {len(self.class_names)} classes, {height}x{width}, {self.device})"

    @overload
    def predict(self, pictures: Picture, topk: int | None = None) -> Prediction: ...

    @overload
    def predict(self, pictures: list[Any] | tuple[Any, ...], topk: int | None = None) -> list[Prediction]: ...

    def predict(
        self, pictures: Picture | list[Any] | tuple[Any, ...], topk: int | None = None
    ) -> Prediction | list[Prediction]:
        """Classify one image, or each of a list.

        Args:
            pictures: a path, an image of Pillow's, the bytes of a file, an array (H, W[, 3 or 4]) of uint8, or a
                list of such. For a model of C bands an array is (H, W, C) of any type.
            topk: how many classes to name at most; 5 where None. Of several classes per image those that reach their
                threshold, all of them where None.

        Raises:
            ValueError: an image cannot be read (`BadImageError` for a file), or its outputs are not finite.
        """
        self._require_classes()
        single = not isinstance(pictures, list | tuple)
        several: Sequence[Any] = [pictures] if single else pictures  # type: ignore[assignment]
        source = PictureSource(several, self.decoding.bands)
        results = []
        for start, images_NCHW in self._batches(source):
            for offset, row in enumerate(self.probabilities(images_NCHW)):
                result = self.prediction(source.path(start + offset), row, topk)
                if isinstance(result, Failure):
                    raise ValueError(f"{result.file}: {result.reason}.")
                results.append(result)
        return results[0] if single else results

    def embed(self, pictures: Picture | list[Any] | tuple[Any, ...]) -> Tensor:
        """Compute the features of images: what the model hands to its last layer, which names the classes.

        Args:
            pictures: one, or a list of them, as `predict` takes them.

        Returns:
            (N, C) float32 on the CPU, a row per image: ``forward_head(forward_features(x), pre_logits=True)``. They
            are not normalised, and are of the whole image, without test-time pooling.

        Raises:
            ValueError: an image cannot be read (`BadImageError` for a file), its features are not finite, or the
                model gives no such features (`davit.engine.features.pooled_features`).
        """
        several = pictures if isinstance(pictures, list | tuple) else [pictures]
        source = PictureSource(several, self.decoding.bands)
        found: list[Tensor] = []
        for start, images_NCHW in self._batches(source):
            found.append(self.features(images_NCHW))
            finite = torch.isfinite(found[-1]).all(1).tolist()
            if not all(finite):
                raise ValueError(f"{source.path(start + finite.index(False))}: {NOT_FINITE}.")
        return torch.cat(found) if found else torch.empty(0, int(getattr(self.model, "head_hidden_size", 0)))

    def _batches(self, source: PictureSource) -> Iterator[tuple[int, Tensor]]:
        """Yield the place of the first image and the images (N, C, H, W), on the device."""
        dataset = PictureDataset(source, self.transform, decoding=self.decoding)
        for start in range(0, len(source), CPU_BATCH):
            images = [dataset[index][0] for index in range(start, min(start + CPU_BATCH, len(source)))]
            yield start, torch.stack(images).to(self.device)

    def _require_classes(self) -> None:
        if not self.class_names:
            raise ValueError(
                f"{self.name} has no classes to name: it was built without a classifier. `embed` gives its features."
            )

    def predict_each(
        self, pictures: Sequence[Picture], topk: int | None = None, *, batch_size: int = 32, workers: int = 0
    ) -> Iterator[Prediction | Failure]:
        """Classify images in order, as they are asked for; one that cannot be read gives a `Failure`.

        Args:
            batch_size: images that go through the model at once; on a CPU never more than 32.
            workers: loader processes, for more than 64 images.

        Raises:
            ValueError: `topk`, `batch_size` or `workers` is not a number that makes sense.
            LoaderError: a loader process died.
        """
        self._require_classes()
        source = PictureSource(pictures, self.decoding.bands)
        loader = EvalLoader(
            PictureDataset(source, self.transform, decoding=self.decoding),
            batch_size=min(batch_size, CPU_BATCH) if self.device.type == "cpu" else batch_size,
            workers=workers if len(pictures) > WORKERS_FROM else 0,
            skip_bad_images=True,
        )

        def failures(start: int, stop: int) -> Iterator[Failure]:
            for index in range(start, stop):
                file = source.path(index)
                yield Failure(file, loader.bad_images[file])

        done = 0
        try:
            for batch in prefetch(_readable(loader, source), self.device):
                probabilities_NK = self.probabilities(batch.images)
                for index, row in zip(batch.indices.tolist(), probabilities_NK, strict=True):
                    yield from failures(done, index)
                    yield self.prediction(source.path(index), row, topk)
                    done = index + 1
            yield from failures(done, len(pictures))
        finally:
            loader.close()

    def probabilities(self, images_NCHW: Tensor) -> Tensor:
        """Compute (N, num_classes) in float32 on the CPU; halves of the batch in turn where memory is short."""
        try:
            with torch.inference_mode(), self._precision.autocast():
                logits_NK = self._classifier(images_NCHW.to(dtype_of(self.model)))
        except Exception as error:
            if len(images_NCHW) == 1 or not is_out_of_memory(error):
                raise
        else:
            if self.thresholds is not None:
                return logits_NK.float().sigmoid().cpu().clone()
            return (logits_NK.float() / self.temperature).softmax(dim=1).cpu().clone()
        return torch.cat([self.probabilities(half) for half in images_NCHW.chunk(2)])

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Compute (N, C) in float32 on the CPU, as `embed` does; halves of the batch in turn where memory is short."""
        return embed_images(self.model, images_NCHW, self._precision)

    def prediction(self, file: str, probabilities_K: Tensor, topk: int | None) -> Prediction | Failure:
        """Name the most probable classes; a `Failure` where the probabilities are not finite.

        Args:
            topk: how many; 5 where None, or of several classes per image all that reach their threshold.
        """
        if topk is not None and topk < 1:
            raise ValueError(f"topk={topk} is not a number of 1 or more.")
        if not torch.isfinite(probabilities_K).all():
            return Failure(file, "the model's outputs are not finite (are its weights damaged?)")
        order = probabilities_K.argsort(descending=True, stable=True)

        def guess(index: int) -> Guess:
            return Guess(index, self.class_names[index], probabilities_K[index].item())

        if self.thresholds is None:
            named = order[: DEFAULT_TOPK if topk is None else topk]
        else:
            named = order[(probabilities_K >= self.thresholds)[order]][:topk]
        return Prediction(file, tuple(map(guess, named.tolist())), probabilities_K, guess(int(order[0])))


def load(
    checkpoint: str | Path | ExportedModel | None = None,
    model: str | None = None,
    *,
    device: str = "auto",
    names: str | Path | None = None,
    **options: Any,
) -> Predictor:
    """Load a classifier; `davit.load`, which says what the arguments are, loads detectors and segmentors too.

    Raises:
        ValueError: the checkpoint, the model and the options do not fit one another; an option is unknown.
        PretrainedError: weights of the hub could not be fetched.
    """
    known = [option.name for option in fields(ModelOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"load() knows no {', '.join(unknown)}; it takes {', '.join(known)}.")
    return load_with(ModelOptions(**options), checkpoint, model, device=device, names=names)


def load_with(
    options: ModelOptions,
    checkpoint: str | Path | ExportedModel | None,
    model: str | None,
    *,
    device: str,
    names: str | Path | None,
) -> Predictor:
    """Do what `load` does, with options that are checked."""
    where = device_named(device)
    precision = precision_from(options, where)
    precision.say()
    loaded = load_model(model, checkpoint or None, options, where, needs_head=False, takes_exported=True)
    count = getattr(loaded.model, "num_classes", 0)
    named = class_names(count, noted=loaded.described_names, source=names) if count or names else ()
    return Predictor(loaded, named, where, precision)


def _readable(loader: EvalLoader, source: PictureSource) -> Iterator[Batch]:
    """Hand out the loader's batches, without an error where no image at all can be read."""
    try:
        yield from loader.batches()
    except DataError:
        if any(source.path(index) not in loader.bad_images for index in range(len(source))):
            raise
