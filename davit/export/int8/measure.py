"""Choose calibration images, and measure what quantization costs and gives."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...data import EvalLoader, PictureDataset, open_dataset
from ...engine.distributed import World
from ...engine.evaluate import Evaluation, evaluate
from ...engine.labels import labels_by_name, model_classes
from ...engine.load_model import LoadedModel
from ...engine.validate import numbered_as_trained
from ...runtimes import ExportedModel, files_of
from ...seeding import derive_seeds

_BATCH = 32
_LEAST_TURNS, _MOST_SECONDS = 5, 60
_ALONE = World(0, 0, 1, torch.device("cpu"))


def calibration_places(targets: Sequence[int] | None, count: int, total: int, seed: int) -> list[int]:
    """Choose images by a seed, of all classes in turn, so that none is left out while others have several."""
    draw = random.Random(derive_seeds(seed, total)[0])
    classes: dict[int, list[int]] = {}
    for place in range(total):
        classes.setdefault(0 if targets is None else targets[place], []).append(place)
    for places in classes.values():
        draw.shuffle(places)
    order = sorted(classes)
    draw.shuffle(order)
    deepest = max(map(len, classes.values()), default=0)
    dealt = [classes[one][turn] for turn in range(deepest) for one in order if turn < len(classes[one])]
    return dealt[:count]


def calibration_images(loaded: LoadedModel, data: str, count: int, seed: int) -> Tensor:
    """Read calibration images (N, C, H, W) of the training split, as the program takes them."""
    dataset = open_dataset(data, "train")
    dataset.transform, dataset.decoding = loaded.transform(), loaded.decoding
    places = calibration_places(dataset.source.targets(), count, len(dataset), seed)
    return torch.stack([dataset[place][0] for place in places])


def validation_pictures(loaded: LoadedModel, data: str) -> PictureDataset:
    """Open the validation split, with its classes numbered as the model does."""
    dataset = numbered_as_trained(loaded.class_names, open_dataset(data, "validation"))
    dataset.transform, dataset.decoding = loaded.transform(), loaded.decoding
    return dataset


def accuracy(loaded: LoadedModel, dataset: PictureDataset) -> Evaluation:
    """Evaluate a model on the validation images."""
    names = model_classes(loaded.class_names, loaded.model.num_classes)
    loader = EvalLoader(dataset, batch_size=_BATCH)
    try:
        return evaluate(loaded.classifier, loader, world=_ALONE, labels=labels_by_name(dataset, names))
    finally:
        loader.close()


def medians(programs: Sequence[ExportedModel], images: Tensor, times: int) -> list[float]:
    """Return each program's median time in milliseconds; they take turns, so that all meet the same machine.

    Slow programs take fewer turns, after the two that do not count: so many as there is time for, five at the least.
    """
    taken: list[list[float]] = [[] for _ in programs]
    began = time.perf_counter()
    for turn in range(times + 2):
        if turn >= _LEAST_TURNS + 2 and time.perf_counter() - began > _MOST_SECONDS:
            break
        for program, times_taken in zip(programs, taken, strict=True):
            started = time.perf_counter()
            program(images)
            if turn >= 2:
                times_taken.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(one) for one in taken]


def size_of(path: Path) -> int:
    """Return the bytes of a program, what belongs beside it included."""
    return sum(file.stat().st_size for file in files_of(path))
