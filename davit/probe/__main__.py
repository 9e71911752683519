"""Compare the features of frozen models by what simple classifiers make of them."""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..commands import run_cli, with_flags
from ..data import DataError
from ..data.folder import names_of_split
from ..engine.build import Data, open_data, usable_workers
from ..engine.distributed import World, device_named
from ..engine.features import Features, extract_features
from ..engine.load_model import LoadedModel, ModelOptions, load_model
from ..engine.precision import Precision, precision_from
from ..engine.records import wilson
from ..engine.validate import Request, Row, best_first, write_results
from ..files import write_csv
from ..parsing.results import as_columns, as_json, put, require_writable, standard_output
from ..pretrained import PretrainedError
from ..text import as_line, as_utf8, encodable
from .classifiers import Fitted, nearest_neighbours, regression, require_neighbours
from .flags import METHODS, probe_parser
from .linear import Schedule, linear_probe
from .places import read_places

log = logging.getLogger(__name__)

_TITLES = {"knn": "k-NN", "logistic": "logistic regression", "linear": "linear layer"}


@dataclass
class _Job:
    """What all models of a call share, and what they left behind.

    Attributes:
        bad_images: file -> reason of the images that were left out.
        answers: column of --predictions -> position in the validation split -> class index.
    """

    args: argparse.Namespace
    options: ModelOptions
    world: World
    precision: Precision
    data: Data
    bad_images: dict[str, str] = field(default_factory=dict)
    answers: dict[str, dict[int, int]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe models; return exit status 0, 1 where some models or images failed, 2 for a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> list[object]:
    """Return the rows of the models that failed, and the images that could not be read."""
    args = probe_parser().parse_args(arguments)
    requests, args.data_dir = read_places(args)
    require_writable(args.results_file, "--output (--results-file)")
    require_writable(args.predictions, "--predictions")
    if args.train_split in names_of_split(args.val_split):
        raise ValueError(
            f"--train-split {args.train_split} and --val-split {args.val_split} are the same images, each of which "
            "would find itself: name two splits."
        )
    world = World(0, 0, 1, device_named(args.device))
    options = ModelOptions.from_values({**vars(args), "num_classes": None, "no_test_pool": True})
    precision = precision_from(options, world.device)
    precision.say()
    job = _Job(args, options, world, precision, open_data(args, world))
    if "knn" in args.methods:
        require_neighbours(args.k, len(job.data.train))
    rows: list[Row] = []
    for request in requests:
        try:
            rows += _probe(request, job)
        except Exception as error:
            if len(requests) == 1:
                raise
            is_fault = not isinstance(error, ValueError | PretrainedError)
            log.error("%s failed: %s", request, with_flags(str(error)), exc_info=is_fault)
            failed = {"model": request.model or "", "checkpoint": str(request.checkpoint or "")}
            rows.append({**failed, "error": with_flags(str(error))})
    rows = [row for method in (*METHODS, None) for row in best_first(rows) if row.get("method") == method]
    _write(rows, "json" if args.json else args.format)
    if args.results_file:
        write_results(Path(args.results_file), rows)
    if args.predictions:
        _write_predictions(Path(args.predictions), job)
    for file, reason in job.bad_images.items():
        log.error("%s is left out: %s", as_line(file), reason)
    return [*(row for row in rows if "error" in row), *({} if args.skip_bad_images else job.bad_images)]


def _probe(request: Request, job: _Job) -> list[Row]:
    """Load a model, compute its features once, and let each classifier answer."""
    args, data = job.args, job.data
    where = job.world.device
    loaded = load_model(request.model, request.checkpoint, job.options, where, needs_head=False, takes_exported=True)
    parameters = loaded.parameter_count / 1e6
    log.info(
        "%s, %s weights: %.2f M parameters, %d training and %d validation images at %dx%d.",
        *(loaded.name, loaded.weights, parameters, len(data.train), len(data.val), *loaded.config["input_size"][-2:]),
    )
    train, test = (_features(loaded, job, split) for split in ("train", "val"))
    classes = np.unique(train.targets_N)
    if len(classes) < 2:
        raise DataError(
            f"every readable training image is of the class {_class_name(data, int(classes[0]))!r}, so there is "
            "nothing to tell apart: add another class."
        )
    about = {
        "model": loaded.name,
        "checkpoint": str(request.checkpoint or ""),
        "weights": loaded.weights,
        "features": train.vectors_NC.shape[1],
        "param_count": round(parameters, 2),
        "img_size": loaded.config["input_size"][-1],
        "n_train": len(train.targets_N),
        "n": len(test.targets_N),
        "skipped": len(train.bad_images) + len(test.bad_images),
    }
    rows: list[Row] = []
    for method in dict.fromkeys(args.methods):
        begun = time.perf_counter()
        fitted = _classifier(method, loaded, job, (train, test))(train.vectors_NC, train.targets_N, test.vectors_NC)
        seconds, correct = time.perf_counter() - begun, int((fitted.classes_N == test.targets_N).sum())
        low, high = (100 * end for end in wilson(correct, len(test.targets_N)))
        answers = zip(test.positions_N.tolist(), fitted.classes_N.tolist(), strict=True)
        job.answers[f"{as_line(request)} {method}"] = dict(answers)
        row = {"method": method, "setting": fitted.setting, "top1": 100 * correct / len(test.targets_N)}
        row |= {"top1_low": low, "top1_high": high, "correct": correct, **about}
        row["feature_seconds"] = round(train.seconds + test.seconds, 2)
        row["seconds"] = round(train.seconds + test.seconds + seconds, 2)
        log.info("%s, %s (%s): top-1 %.2f %%", loaded.name, _TITLES[method], fitted.setting, row["top1"])
        rows.append(row)
    return rows


def _features(loaded: LoadedModel, job: _Job, split: str) -> Features:
    dataset = getattr(job.data, split)
    dataset.transform, dataset.decoding = loaded.transform(), loaded.decoding
    found = extract_features(
        loaded.model,
        dataset,
        device=job.world.device,
        precision=job.precision,
        batch_size=job.args.batch_size,
        workers=usable_workers(job.args.workers),
        label="training images" if split == "train" else "validation images",
        log_freq=job.args.log_freq,
    )
    job.bad_images |= found.bad_images
    return found


def _classifier(
    method: str, loaded: LoadedModel, job: _Job, features: tuple[Features, Features]
) -> Callable[..., Fitted]:
    args = job.args
    if method == "knn":
        temperature = args.vote_temperature if args.vote == "weighted" else None
        return partial(nearest_neighbours, k=args.k, temperature=temperature)
    if method == "logistic":
        return regression
    workers = usable_workers(args.workers)
    schedule = Schedule(args.epochs, args.lr, tuple(args.scale), args.hflip, args.batch_size, workers, args.seed)
    return lambda *_: linear_probe(loaded, job.data, features, schedule, job.precision, job.world)


def _class_name(data: Data, index: int) -> str:
    return data.class_names[index] if index < len(data.class_names) else f"class {index}"


# ---- results ----


def _write(rows: Sequence[Row], form: str) -> None:
    """Print all rows: the table is for reading, csv and json have every figure."""
    stream = standard_output()
    if form == "json":
        put(as_json(list(rows)))
    elif form == "csv":
        columns = dict.fromkeys(key for row in rows for key in row)
        table = csv.DictWriter(stream, list(columns), restval="", lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({key: encodable(as_utf8(value), stream.encoding) for key, value in row.items()})
    else:
        put(as_table(rows))
    stream.flush()


def as_table(rows: Sequence[Row]) -> str:
    """Write rows for reading: a line each, under titles, in columns."""
    titles = ("model", "weights", "classifier", "setting", "top-1 %", "95 % interval", "n", "seconds")
    lines = [titles, *(_cells(row) for row in rows if "error" not in row)]
    text = as_columns(lines, left=4)
    for row in rows:
        if "error" in row:
            text += f"{as_line(row['checkpoint'] or row['model'])}: failed\n"
    return text


def _cells(row: Row) -> tuple[str, ...]:
    interval = f"{row['top1_low']:.2f} to {row['top1_high']:.2f}"
    weights = as_line(row["checkpoint"] or row["weights"])
    numbers = (f"{row['top1']:.2f}", interval, str(row["n"]), f"{row['seconds']:.1f}")
    return (row["model"], weights, _TITLES[row["method"]], row["setting"], *numbers)


def _write_predictions(file: Path, job: _Job) -> None:
    """Write a csv: each validation image, its class, and what each classifier of each model called it."""
    data = job.data
    targets: Sequence[int] | None = data.val.source.targets()
    rows: list[dict[str, Any]] = []
    for position in range(len(data.val)):
        row: dict[str, Any] = {"file": data.val.filename(position)}
        row["class"] = "" if targets is None else _class_name(data, targets[position])
        for column, answers in job.answers.items():
            row[column] = _class_name(data, answers[position]) if position in answers else ""
        rows.append(row)
    write_csv(file, rows)


if __name__ == "__main__":
    sys.exit(main())
