"""Run the robustness command: evaluate a model on every set that a folder has, and on corrupted images."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm

from ..commands import with_flags
from ..data import DataError, PictureDataset, open_dataset
from ..engine.build import open_once
from ..engine.distributed import World, close_world, in_step, init_world
from ..engine.evaluate import Evaluation
from ..engine.flags import given_flags
from ..engine.labels import Labels, model_classes, real_labels
from ..engine.load_model import LoadedModel, ModelOptions, load_model
from ..engine.precision import Precision, precision_from
from ..engine.records import Array, Outcomes, Records
from ..engine.validate import evaluate_within_memory, numbered_as_trained, write_results
from ..files import write_atomically, write_bytes
from ..parsing.results import as_json, put, require_writable
from ..pretrained import split_source
from ..text import as_line, did_you_mean, without_nan
from .corrupted import CorruptedDataset, spread
from .corruptions import CORRUPTIONS, SEVERITIES, SIDE
from .flags import SETS, robustness_parser
from .published import published
from .sets import (
    VARIANTS,
    NotApplicableError,
    Variant,
    find_real,
    find_variants,
    is_imagenet,
    labels_of_val,
    labels_of_variant,
    real_by_model,
)
from .table import Row, as_table, corruption_rows, mean_row, set_row

log = logging.getLogger(__name__)

_VAL_PICTURES = 50_000  # of ImageNet
_TILE = 112  # pixels, of --samples


@dataclass
class _Run:
    """The things that all sets share, and the rows found so far."""

    args: argparse.Namespace
    world: World
    loaded: LoadedModel
    precision: Precision
    names: list[str] | None
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return int(self.loaded.model.num_classes)

    @property
    def published(self) -> dict[str, float]:
        """timm's figures of this architecture."""
        return published(self.loaded.name)

    def evaluate(self, dataset: PictureDataset, labels: Labels | None) -> tuple[Evaluation, Outcomes]:
        """Evaluate each image once, over all processes."""
        records = Records()
        result, _ = evaluate_within_memory(
            self.loaded, dataset, labels, records, self.args, self.world, self.precision
        )
        for file, reason in result.bad_images.items():
            log.warning("%s could not be read and is left out: %s", as_line(file), reason)
        return result, records.gather(self.world)

    def add(self, *rows: Row) -> None:
        """Add rows, and write the file of results again."""
        self.rows += rows
        if self.args.results_file:
            with in_step(self.world):
                if self.world.is_main:
                    self._write(Path(self.args.results_file))

    def _write(self, file: Path) -> None:
        if (self.args.results_format or file.suffix.lower().lstrip(".")) == "json":
            text = json.dumps(without_nan(self.summary()), indent=2, allow_nan=False)
            write_bytes(file, f"{text}\n".encode())
        else:
            write_results(file, [{"model": self.loaded.name, **row} for row in self.rows], "csv")

    def summary(self) -> dict[str, Any]:
        """Say all that was found, for JSON."""
        height, width = self.loaded.config["input_size"][-2:]
        total = next((row for row in self.rows if row.get("corruption") == "mean"), {})
        totals = {f"mean_{key}" if key == "error" else key: total[key] for key in ("error", "mce") if key in total}
        return {
            "model": self.loaded.name,
            "source": self.args.checkpoint,
            "weights": self.loaded.weights,
            "input_size": [height, width],
            "crop_pct": self.loaded.config["crop_pct"],
            "seed": self.args.seed,
            **totals,
            "results": self.rows,
            "left_out": self.left_out,
        }


def run(arguments: Sequence[str] | None) -> list[Row]:
    """Evaluate as a command line asks for; print the table, and return the rows of sets that failed."""
    args = robustness_parser().parse_args(arguments)
    given = given_flags(robustness_parser, arguments)
    world = init_world(args.device)
    try:
        if not world.is_main:
            logging.getLogger("davit").setLevel(logging.CRITICAL)
        return _run(args, given, world)
    finally:
        close_world()


def _run(args: argparse.Namespace, given: set[str], world: World) -> list[Row]:
    root = Path(args.root)
    with in_step(world):
        _check(args, root)
        values = {name: value for name, value in vars(args).items() if name in given}
        options = ModelOptions.from_values({**values, "temperature": 1.0})  # which changes no answer
    precision = precision_from(options, world.device, world.everywhere)
    precision.say()
    with in_step(world):
        name, file = _model_asked_for(args, given)
        loaded = load_model(name, file, options, world.device, takes_exported=True)
        if loaded.is_multilabel:
            raise ValueError(
                "ImageNet's variants have one class per image, and this model tells several; `davit validate` "
                "measures it on data of its own."
            )
    job = _Run(args, world, loaded, precision, model_classes(loaded.class_names, loaded.model.num_classes))
    with in_step(world):
        folders = find_variants(root)
    wanted = args.sets or [key for key in SETS if key not in args.leave_out]
    _evaluate_val(job, root, wanted, is_optional=not args.sets and bool(folders))
    for variant in VARIANTS:
        if variant.key not in wanted:
            continue
        if variant.key in folders:
            _evaluate_variant(job, variant, folders[variant.key])
        elif args.sets:
            raise DataError(f"--sets {variant.key}: {root} has no folder {' or '.join(variant.folders)}")
        else:
            job.left_out[variant.key] = f"no folder {variant.folders[0]}"
    if not job.rows:
        raise DataError(
            f"nothing in {root} could be evaluated ({_said(job.left_out)}): a folder val with class folders, or "
            f"{', '.join(variant.folders[0] for variant in VARIANTS)} is expected"
        )
    job.add()  # the file of results, with what was left out
    if job.left_out:
        log.info("not evaluated: %s", _said(job.left_out))
    if world.is_main:
        put(as_json(job.summary()) if args.json else as_table(job.rows))
    return [row for row in job.rows if "failed" in row]


def _said(reasons: dict[str, str]) -> str:
    return "; ".join(f"{key}: {reason}" for key, reason in reasons.items())


def _check(args: argparse.Namespace, root: Path) -> None:
    """Raise `ValueError` for what cannot work, before anything takes time."""
    if not root.is_dir():
        raise ValueError(f"ROOT {root} is no folder; the folder that holds val, imagenet-a and so on is needed.")
    if both := sorted(set(args.sets or ()) & set(args.leave_out)):
        raise ValueError(f"--sets and --leave-out both name {', '.join(both)}; name each in one of them.")
    require_writable(args.results_file, "--output (--results-file)")
    require_writable(args.samples, "--samples")


def _model_asked_for(args: argparse.Namespace, given: set[str]) -> tuple[str | None, str | None]:
    """Return the model's name and source: CHECKPOINT is a source of weights, or a model with published ones."""
    source, name = args.checkpoint, args.model if "model" in given else None
    if split_source(source)[0] is not None or Path(source).exists():
        return name, source
    if not timm.is_model(source):
        raise ValueError(
            f"{source} is neither a file nor a model of timm's: {did_you_mean(source, timm.list_models())}"
            "give a file or folder of a checkpoint, hf-hub:OWNER/NAME, or the name of a model with published weights."
        )
    if name is not None and name != source:
        raise ValueError(f"{source} names a model with published weights, and --model {name} another; leave one out.")
    return source, None


# ---- the validation images, and what is made of them ----


def _evaluate_val(job: _Run, root: Path, wanted: Sequence[str], is_optional: bool) -> None:
    """Evaluate the validation images, by their labels and by ReaL labels, and corrupted."""
    asked = [key for key in ("val", "real", "c") if key in wanted]
    if not asked:
        return
    args = job.args
    try:
        dataset = open_once(job.world, root, args.split)
    except DataError as error:
        if not is_optional:
            raise
        job.left_out.update(dict.fromkeys(asked, f"no split {args.split}"))
        log.info("no validation images: %s", with_flags(str(error)))
        return
    with in_step(job.world):
        labels = labels_of_val(dataset, job.names, job.num_classes)
        if labels is None:
            dataset = numbered_as_trained(job.loaded.class_names, dataset)
        _prepare(job, dataset)
        named = is_imagenet(dataset) and labels is not None
        real = _real_of(job, root, dataset, named) if "real" in asked else None
    title = "ImageNet" if named else "validation"
    log.info("%s: %d images", title, len(dataset))
    result, outcomes = job.evaluate(dataset, labels)
    if not len(outcomes):
        raise DataError(f"none of the {len(dataset)} validation images could be read")
    if "val" in asked:
        known = job.published.get("val") if named else None
        job.add(set_row("val", title, outcomes.right, result.top5, job.num_classes, known))
    if real is not None:
        has_label = np.array([bool(real[index]) for index in outcomes.index.tolist()])
        scored = outcomes.only(has_label)
        pairs = zip(scored.index.tolist(), scored.predicted.tolist(), strict=True)
        right = np.array([predicted in real[index] for index, predicted in pairs], dtype=bool)
        job.add(set_row("real", "ImageNet-ReaL", right, None, job.num_classes, job.published.get("real")))
    if "c" in asked:
        _evaluate_corrupted(job, dataset, labels, outcomes, named)


def _prepare(job: _Run, dataset: PictureDataset) -> None:
    dataset.transform, dataset.decoding = job.loaded.transform(), job.loaded.decoding


def _real_of(job: _Run, root: Path, dataset: PictureDataset, named: bool) -> list[list[int]] | None:
    """Find the ReaL labels of the images, by the model's indices; None where there are none.

    Args:
        named: the class folders are ImageNet's, and the model has these classes.
    """
    place = find_real(root, dataset) if named else None
    if place is None:
        if job.args.sets and "real" in job.args.sets:
            raise DataError(
                f"--sets real: {root} has no real.json, and the images are not called ILSVRC2012_val_00000001 and "
                "so on, for which timm has these labels"
                if named
                else "--sets real: ReaL labels, real.json, are for ImageNet's classes, and these are others"
            )
        job.left_out["real"] = "no real.json" if named else "not ImageNet's classes"
        return None
    if place == "timm":
        log.info("ReaL labels: timm's copy, as there is no real.json")
    try:
        return real_by_model(real_labels(place, dataset, Labels()).real or (), job.names)
    except DataError as error:
        if job.args.sets:
            raise
        log.error("ReaL labels cannot be used: %s", with_flags(str(error)))
        job.add({"set": "real", "failed": with_flags(str(error))})
        return None


def _evaluate_corrupted(
    job: _Run, dataset: PictureDataset, labels: Labels | None, clean: Outcomes, named: bool
) -> None:
    """Evaluate images under each corruption; their rows are written as each is done."""
    args, loaded = job.args, job.loaded
    height, width = loaded.config["input_size"][-2:]
    if loaded.decoding.bands != 3:
        job.left_out["c"] = f"corruptions are of images of 3 bands, not {loaded.decoding.bands}"
        return
    chosen = [int(clean.index[at]) for at in spread(len(clean), args.limit)]  # of those that can be read
    corruptions, severities = args.corruptions or list(CORRUPTIONS), tuple(args.severities or SEVERITIES)
    if args.samples:
        with in_step(job.world):
            if job.world.is_main:
                _write_samples(Path(args.samples), dataset, chosen[0], corruptions, severities, args.seed)
    if named and ((height, width) != (SIDE, SIDE) or len(chosen) != _VAL_PICTURES):
        log.info(
            "published mCE is of 50,000 images at %dx%d; this one is of %d at %dx%d, and not to be compared with it",
            *(SIDE, SIDE, len(chosen), height, width),
        )
    top1 = 100 * float(clean.only(np.isin(clean.index, chosen)).right.mean())
    wrong: dict[str, Array] = {}
    for name in corruptions:
        with in_step(job.world):
            corrupted = CorruptedDataset(dataset, chosen, name, severities, args.seed)
        _, outcomes = job.evaluate(corrupted, labels)
        if len(outcomes) != len(corrupted):
            raise DataError(
                "images that could be read before cannot be read any more: were the files changed meanwhile?"
            )
        rows = corruption_rows(name, outcomes, severities, top1, named)
        log.info("%s: top-1 %s %%", name, ", ".join(f"{row['top1']:.2f}" for row in rows[:-1]))
        wrong[name] = ~outcomes.right.reshape(len(severities), -1)
        job.add(*rows)
    if len(corruptions) > 1:
        job.add(mean_row(wrong, top1, severities, named))


def _write_samples(
    file: Path,
    dataset: PictureDataset,
    position: int,
    corruptions: Sequence[str],
    severities: Sequence[int],
    seed: int,
) -> None:
    """Draw one image under each corruption and severity, in one step."""
    from ..engine.report_figures import draw_grid

    rows = []
    for name in corruptions:
        corrupted = CorruptedDataset(dataset, [position], name, severities, seed)
        clean = corrupted.cropped(position)
        rows.append(
            (name.replace("_", " "), [clean, *(corrupted.corrupted(clean, position, one) for one in severities)])
        )
    image = draw_grid(rows, ["clean", *(f"severity {one}" for one in severities)], _TILE)
    form = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}.get(file.suffix.lower().lstrip("."), "PNG")
    write_atomically(file, lambda stream: image.save(stream, form))
    log.info("%s under each corruption is drawn in %s", as_line(dataset.filename(position)), as_line(file))


# ---- the other sets ----


def _evaluate_variant(job: _Run, variant: Variant, folder: Path) -> None:
    """Evaluate one set; what is wrong with it is its row, and the others continue."""
    try:
        with in_step(job.world):
            dataset = open_dataset(folder, ".", dataset="folder")
            labels = labels_of_variant(variant, dataset, job.names)
            _prepare(job, dataset)
        log.info("%s: %d images of %d classes", variant.title, len(dataset), len(dataset.class_to_idx))
        result, outcomes = job.evaluate(dataset, labels)
    except NotApplicableError as error:
        job.left_out[variant.key] = str(error)
        return
    except ValueError as error:  # of the data: a folder too many, an image that cannot be read
        log.error("%s: %s", variant.title, with_flags(str(error)))
        job.add({"set": variant.key, "failed": with_flags(str(error))})
        return
    competing = job.num_classes if labels.columns is None else len(labels.columns)
    known = job.published.get(variant.key)
    job.add(set_row(variant.key, variant.title, outcomes.right, result.top5, competing, known))
