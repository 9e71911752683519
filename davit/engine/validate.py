"""Evaluate every model that validate.py is asked for; log, write and print the results."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ..choices import CLASSIFICATION, MULTILABEL
from ..commands import run_cli, with_flags
from ..data import EvalLoader, PictureDataset, check_classes, in_other_order, labels_numbered, write_digits
from ..data.listing import natural_key
from ..files import write_bytes, write_csv
from ..parsing.results import as_columns, as_json, put, require_writable
from ..pretrained import PretrainedError, holds_one_model
from ..runtimes import SUFFIXES as EXPORTED_SUFFIXES
from ..runtimes import is_exported
from ..text import as_line, some
from . import calibration, thresholds
from .build import open_once, usable_workers
from .calibration import Calibration, Fitted
from .distributed import World, close_world, in_step, init_world, is_out_of_memory
from .evaluate import Evaluation, MiscountError, evaluate
from .flags import (
    VALIDATE_NO_LONGER,
    given_flags,
    model_asked_for,
    parse_with_config,
    say_no_longer,
    validate_parser,
)
from .label_report import LabelReport, write_label_report
from .labels import Labels, display_names, labels_by_name, labels_for, model_classes, real_labels
from .load_model import LoadedModel, ModelOptions, OtherTaskError, load_model
from .multilabel import LEAST_POSITIVES, AnswerRecords, Answers, Measures, as_row, fit_thresholds, measure, named
from .precision import Precision, precision_from
from .records import Outcomes, Records
from .report import Report, check_folder, write_report
from .slices import Slices, accuracy_by_slice, log_slices, read_slices

log = logging.getLogger(__name__)

Row = dict[str, Any]  # the results of one evaluation, or its error

_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin", ".safetensors")
_WILDCARDS = "*?["


@dataclass(frozen=True)
class Request:
    """One model to evaluate: a checkpoint, or published weights where `checkpoint` is None.

    `model` None leaves the architecture to the checkpoint.
    """

    model: str | None
    checkpoint: Path | None = None

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.model, self.checkpoint) if part is not None)

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the checkpoint's file, the same under all its names."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        found = self.checkpoint.stat()
        return found.st_dev, found.st_ino


@dataclass(frozen=True)
class _Job:
    """The things that all evaluations of a run share.

    Attributes:
        data: the split, for a task.
        reports: the folder of each checkpoint's or model's report.
    """

    args: argparse.Namespace
    options: ModelOptions
    world: World
    precision: Precision
    data: _Data
    reports: dict[Request, Path]


@dataclass(frozen=True)
class _Opened:
    """A split; `place` is for what is fitted on it."""

    dataset: PictureDataset
    place: str
    slices: Slices | None


class _Data:
    """Open the split when the first model says for which task it is.

    Attributes:
        error: why it could not be opened, which every model would meet.
    """

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        self._args, self._world = args, world
        self._opened: dict[str, _Opened] = {}
        self.error: Exception | None = None

    def of(self, task: str) -> _Opened:
        """Return the split with one class per image, or with several; all processes ask together."""
        if task not in self._opened:
            args, world = self._args, self._world
            try:
                dataset, place = _open_dataset(args, world, task)
                with in_step(world):
                    slices = read_slices(args.slices, dataset, args.data) if args.slices else None
            except Exception as error:
                self.error = error
                raise
            self._opened[task] = _Opened(dataset, place, slices)
        return self._opened[task]


def main(argv: Sequence[str] | None = None) -> int:
    """Run validate.py and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> list[Row]:
    """Return the rows of the evaluations that failed."""
    args = parse_with_config(validate_parser(), argv)
    given = given_flags(validate_parser, argv)
    world = init_world(args.device)
    try:
        if not world.is_main:
            # the main process tells what goes wrong in the others (`in_step`)
            logging.getLogger("davit").setLevel(logging.CRITICAL)
        say_no_longer(VALIDATE_NO_LONGER, given)
        return _validate(args, given, world)
    finally:
        close_world()


def _validate(args: argparse.Namespace, given: set[str], world: World) -> list[Row]:
    """Evaluate what is asked for; return the rows that failed, but raise the error of a single evaluation."""
    with in_step(world):
        _check_flags(args)
        options = ModelOptions.from_values(vars(args))
        requests, is_single = find_requests(model_asked_for(args, given), args.checkpoint)
        if args.fit_temperature:
            options = replace(options, temperature=1.0)  # raw logits, whatever was fitted before
            for request in requests:
                calibration.require_writable(request.checkpoint)
        if args.fit_threshold:
            options = replace(options, threshold=thresholds.DEFAULT)  # whatever was fitted before
            for request in requests:
                thresholds.require_writable(request.checkpoint)
        reports = _report_folders(args.report, requests, is_single)
        if world.is_main:
            for folder in reports.values():
                check_folder(folder, args.overwrite)
    precision = precision_from(options, world.device, world.everywhere)
    precision.say()
    data = _Data(args, world)
    if args.task != MULTILABEL and not args.checkpoint:
        data.of(CLASSIFICATION)
    job = _Job(args, options, world, precision, data, reports)
    rows: list[Row] = []
    done: dict[tuple[int, int], Row] = {}
    for request in requests:
        identity = request.identity
        try:
            if row := identity and done.get(identity):  # the best of a run is a second name of one of its epochs
                log.info("%s is the same file as %s", request.checkpoint, row["checkpoint"])
                if args.fit_temperature and request.checkpoint:
                    with in_step(world):
                        if world.is_main:
                            calibration.copy_fitted(Path(str(row["checkpoint"])), request.checkpoint)
                if args.fit_threshold and request.checkpoint:
                    with in_step(world):
                        if world.is_main:
                            thresholds.copy_thresholds(Path(str(row["checkpoint"])), request.checkpoint)
                row = {**row, "checkpoint": str(request.checkpoint)}
            else:
                row = _evaluate(request, job)
        except MiscountError:
            raise
        except Exception as error:
            if is_single or error is data.error or isinstance(error, OtherTaskError):
                raise
            is_fault = not isinstance(error, ValueError | PretrainedError)
            text = with_flags(str(error))
            log.error("%s failed: %s", request, text, exc_info=is_fault)
            row = {"model": request.model or "", "checkpoint": str(request.checkpoint or ""), "error": text}
        else:
            if identity is not None:
                done[identity] = row
        rows = best_first([*rows, row])
        if args.results_file:
            with in_step(world):
                if world.is_main:
                    write_results(Path(args.results_file), rows, args.results_format)
    if world.is_main:
        put(as_json(rows[0] if is_single else rows, indent=None) if args.json else as_table(rows))
    return [row for row in rows if "error" in row]


def _check_flags(args: argparse.Namespace) -> None:
    """Raise `ValueError` for flags that do not go together, before anything takes time."""
    if args.use_ema and args.ema == "never":
        raise ValueError("--use-ema and --ema never exclude each other; give one of them.")
    require_writable(args.results_file, "--output (--results-file)")
    if args.overwrite and not args.report:
        raise ValueError("--overwrite is for the report that --report DIR writes; give that too, or leave it out.")
    if args.fit_threshold and args.threshold is not None:
        raise ValueError(f"--fit-threshold finds what --threshold {args.threshold:g} gives; give one of them.")
    if args.fit_temperature and args.fit_threshold:
        raise ValueError(
            "--fit-temperature is for one class per image and --fit-threshold for several labels; give one of them."
        )
    if args.fit_temperature and args.temperature is not None:
        raise ValueError(
            f"--fit-temperature finds the temperature that --temperature {args.temperature:g} gives; give one of them."
        )
    if args.fit_temperature and (args.valid_labels or args.real_labels):
        flag = "--valid-labels" if args.valid_labels else "--real-labels"
        raise ValueError(f"--fit-temperature needs one right class among all of the model's, which {flag} changes.")


def _report_folders(root: str, requests: Sequence[Request], is_single: bool) -> dict[Request, Path]:
    """Say where the report of each request goes: the folder itself, or one below it where there are several."""
    if not root:
        return {}
    if is_single:
        return {requests[0]: Path(root)}
    names = {request: request.checkpoint.name if request.checkpoint else str(request.model) for request in requests}
    return {request: Path(root, name.replace("/", "_")) for request, name in names.items()}


def find_requests(model: str | None, checkpoint: str) -> tuple[list[Request], bool]:
    """List what is to be evaluated, in natural order, and say whether it is one model by its name or file.

    Args:
        model: --model, one name or a word for several; None leaves it to the checkpoint.
        checkpoint: --checkpoint, a source of weights, or a folder of files; "" for published weights.

    Raises:
        ValueError: nothing matches, or a checkpoint is given for several models.
    """
    several = None if model is None else _model_names(model)
    if not checkpoint:
        return ([Request(model)], True) if several is None else ([Request(name) for name in several], False)
    if several is not None:
        raise ValueError(
            f"--model {model} stands for {len(several)} models and --checkpoint for the weights of one; "
            "name the model, or leave --checkpoint out to evaluate published weights."
        )
    path = Path(checkpoint)
    if not path.is_dir() or holds_one_model(path):  # also of the hub, whose names are no paths
        return [Request(model, path)], True
    files = [file for file in path.glob("[!.]*") if _is_model(file)]
    if not files:
        known = (*_SUFFIXES, *EXPORTED_SUFFIXES.values())
        raise ValueError(f"the folder {path} holds no checkpoint or exported model ({', '.join(known)}).")
    return [Request(model, file) for file in sorted(files, key=lambda file: natural_key(file.name))], False


def _is_model(file: Path) -> bool:
    """Tell whether a file of a folder is a checkpoint by its name, or an exported model."""
    if not file.is_file():
        return False
    if file.name.endswith(tuple(EXPORTED_SUFFIXES.values())):
        return is_exported(file)
    return file.name.endswith(_SUFFIXES) and not (file.suffix == ".bin" and is_exported(file.with_suffix(".xml")))


def _model_names(model: str) -> list[str] | None:
    """List the models that a wildcard, 'all' or a file stands for; None for the name of one model."""
    if model == "all" or any(sign in model for sign in _WILDCARDS):
        names = timm.list_models("" if model == "all" else model, pretrained=True)
        if not names:
            raise ValueError(
                f"--model {model!r} matches no model with published weights; for one without, name it and give "
                "its --checkpoint."
            )
        return list(names)
    if timm.is_model(model) or not Path(model).is_file():
        return None
    try:
        lines = Path(model).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--model {model}: a text file with a name a line is expected ({error}).") from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise ValueError(f"--model {model}: the file names no model.")
    return names


def _open_dataset(args: argparse.Namespace, world: World, task: str) -> tuple[PictureDataset, str]:
    """Open the split, or that of the handwritten digits where no data is named, and say where it lies.

    One process may download.
    """
    root = args.data
    with in_step(world):
        if root is None and not args.dataset:
            root = write_digits()
            log.info("no data folder given: evaluating on handwritten digits (%s)", root)
    options = {name: getattr(args, name) or None for name in ("class_map", "input_key", "target_key")}
    dataset = open_once(world, root, args.split, args.dataset_download, dataset=args.dataset, task=task, **options)
    return dataset, f"{args.dataset or root}, split {args.split}"


def _evaluate(request: Request, job: _Job) -> Row:
    args, world = job.args, job.world
    with in_step(world):
        loaded = load_model(request.model, request.checkpoint, job.options, world.device, takes_exported=True)
    if loaded.is_multilabel:
        return evaluate_labels(request, loaded, job)
    opened = job.data.of(CLASSIFICATION)
    with in_step(world):
        if args.fit_threshold:
            raise OtherTaskError(
                "--fit-threshold is for images with several labels, and this model tells one class: "
                "--fit-temperature makes its probabilities agree with the data."
            )
        num_classes = loaded.model.num_classes
        names = model_classes(loaded.class_names, num_classes)
        dataset, labels = _labelled(loaded, names, opened.dataset, args)
        if args.fit_temperature and labels is not None:
            raise ValueError(
                f"--fit-temperature needs all {num_classes} classes of the model to compete, as in predict.py; the "
                "data has some of them; --class-map FILE with the model's classes, a line each, lets all compete."
            )
        dataset.transform, dataset.decoding = loaded.transform(), loaded.decoding
    config, params = loaded.config, loaded.parameter_count / 1e6
    log.info(
        "%s, %s weights: %.2f M parameters, %d classes, %d images at %dx%d, crop %.4g (%s), %s%s",
        *(loaded.name, loaded.weights, params, num_classes, len(dataset)),
        *(*config["input_size"][-2:], config["crop_pct"], config["crop_mode"], config["interpolation"]),
        _how_run(loaded),
    )
    records = Records(keep_logits=bool(args.fit_temperature) or loaded.temperature != 1)
    result, batch_size = evaluate_within_memory(loaded, dataset, labels, records, args, world, job.precision)
    low, high = result.top1_interval
    log.info(
        "%s: top-1 %.3f %% (95 %% interval %.3f to %.3f), top-5 %.3f %%, loss %.5g, %d images",
        *(loaded.name, result.top1, low, high, result.top5, result.loss, result.count),
    )
    if result.correct1_of_all is not None:
        log.info("top-1 %.3f %% where all %d classes compete", result.top1_of_all, num_classes)
    _log_circumstances(result, world)
    outcomes = records.gather(world)
    trust, calibrated = _calibration(loaded, records, outcomes, job)
    slices = accuracy_by_slice(opened.slices, outcomes) if opened.slices else []
    log_slices(slices)
    counts = ("loss", "count", "scored", "correct1", "correct5", "skipped", "nonfinite")
    row = {
        "model": loaded.name,
        "checkpoint": str(request.checkpoint or ""),
        "weights": loaded.weights,
        "top1": result.top1,
        "top1_low": low,
        "top1_high": high,
        "top1_err": 100 - result.top1,
        "top5": result.top5,
        "top5_err": 100 - result.top5,
        **({} if result.correct1_of_all is None else {"top1_of_all": result.top1_of_all}),
        **{name: getattr(result, name) for name in counts},
        **trust,
        **_circumstances(loaded, result, batch_size, job),
        **({"slices": slices} if slices else {}),
    }
    with in_step(world):
        if world.is_main and request in job.reports:
            competing = range(num_classes) if labels is None or labels.columns is None else sorted(labels.columns)
            shown = display_names(num_classes, names, dataset, labels)
            normal = config["mean"], config["std"]
            report = Report(outcomes, dataset, shown, competing, normal, row, slices, calibrated)
            write_report(job.reports[request], report)
    return row


def _circumstances(loaded: LoadedModel, result: Evaluation, batch_size: int, job: _Job) -> Row:
    """Return the columns of a row that say how it was measured."""
    config, program = loaded.config, loaded.program
    return {
        "param_count": round(loaded.parameter_count / 1e6, 2),
        "img_size": config["input_size"][-1],
        **{name: config[name] for name in ("crop_pct", "crop_mode", "interpolation")},
        "test_time_pool": loaded.is_pooled,
        "precision": program.metadata.precision if program else job.precision.name,
        **({"runtime": program.runtime} if program else {}),
        "batch_size": batch_size,
        "processes": job.world.size,
        "images_per_second": round(result.images_per_second, 2),
        "data_wait": round(result.data_wait, 4),
        "peak_memory_mb": round(result.peak_memory_mb, 1),
    }


def _how_run(loaded: LoadedModel) -> str:
    """Say, as the end of a line, what is special about how a model is run."""
    if loaded.is_pooled:
        return ", test-time pooling"
    return f", run by {loaded.program.runtime}" if loaded.program else ""


def evaluate_labels(request: Request, loaded: LoadedModel, job: _Job) -> Row:
    """Evaluate a model of several labels per image, and return its row."""
    args, world, num_classes = job.args, job.world, loaded.model.num_classes
    with in_step(world):
        _check_labels_flags(args)
    opened = job.data.of(MULTILABEL)
    with in_step(world):
        dataset = opened.dataset
        names = model_classes(loaded.class_names, num_classes) or [f"class {index}" for index in range(num_classes)]
        if loaded.class_names is not None and not dataset.has_class_map:
            dataset = labels_numbered(dataset, names, "the checkpoint")
        check_classes(None, dataset, num_classes)
        dataset.width = num_classes
        dataset.transform, dataset.decoding = loaded.transform(), loaded.decoding
    assert loaded.thresholds is not None
    config, params = loaded.config, loaded.parameter_count / 1e6
    log.info(
        "%s, %s weights: %.2f M parameters, %d classes, several an image, %d images at %dx%d%s",
        *(loaded.name, loaded.weights, params, num_classes, len(dataset), *config["input_size"][-2:]),
        _how_run(loaded),
    )
    answers = AnswerRecords(num_classes)
    result, batch_size = evaluate_within_memory(
        loaded, dataset, None, None, args, world, job.precision, answers=answers
    )
    found, measures, cuts = answers.gather(world), result.measures, loaded.thresholds
    assert measures is not None
    row: Row = {"model": loaded.name, "checkpoint": str(request.checkpoint or ""), "weights": loaded.weights}
    if args.fit_threshold:
        cuts, fitted = _fit_thresholds(found, names, args.fit_threshold, opened.place, loaded, world)
        measures = measure(found, cuts)
        row |= fitted
    _say_measures(loaded.name, result, measures, names)
    _log_circumstances(result, world)
    span = [float(cuts.min()), float(cuts.max())]
    row |= {
        **as_row(measures),
        **{name: getattr(result, name) for name in ("loss", "count", "skipped", "nonfinite")},
        **({"threshold": span[0]} if span[0] == span[1] else {"threshold_low": span[0], "threshold_high": span[1]}),
        **_circumstances(loaded, result, batch_size, job),
    }
    with in_step(world):
        if world.is_main and request in job.reports:
            write_label_report(job.reports[request], LabelReport(found, measures, dataset, names, cuts.numpy(), row))
    return row


def _check_labels_flags(args: argparse.Namespace) -> None:
    """Raise `ValueError` for flags that are for one class per image."""
    for name, why in (
        ("fit_temperature", "--fit-threshold says from which probability on a class counts"),
        ("real_labels", "ImageNet's ReaL labels are for its one class per image"),
        ("valid_labels", "classes of several labels do not compete"),
        ("slices", "accuracy by a column is not measured for several labels; evaluate the parts as csv files"),
    ):
        if getattr(args, name):
            raise OtherTaskError(
                f"--{name.replace('_', '-')} {getattr(args, name)} is for one class per image, and this model tells "
                f"several: {why}."
            )


def _fit_thresholds(
    found: Answers, names: Sequence[str], part: str, place: str, loaded: LoadedModel, world: World
) -> tuple[Tensor, Row]:
    """Fit thresholds, test each half of the data at those of the other half, keep them, and return the columns."""
    usable = found.only(found.finite)
    cuts = torch.from_numpy(fit_thresholds(usable, part))
    before, after = 0.0, 0.0
    halves = [usable.only(usable.index % 2 == rest) for rest in (0, 1)]
    tested = all(len(half) and half.targets.any() for half in halves)
    for one, other in (halves, halves[::-1]) if tested else ():
        usual = torch.full((len(names),), thresholds.DEFAULT)
        before += 50 * measure(other, usual).macro_f1
        after += 50 * measure(other, torch.from_numpy(fit_thresholds(one, part))).macro_f1
    if not tested:
        before = after = math.nan
    span = f"{cuts.min():.4g}" if cuts.min() == cuts.max() else f"{cuts.min():.4g} to {cuts.max():.4g}"
    own = int((usable.targets.sum(0) >= LEAST_POSITIVES).sum()) if part == "class" else 0
    what = f"for each class, {own} of {len(names)} with one of their own" if own else "for all classes"
    log.info("threshold %s %s, fitted on %s (%d images)", span, what, place, len(usable))
    if part == "class" and not own:
        log.warning("no class has %d images, as many as a threshold of its own needs", LEAST_POSITIVES)
    log.info("macro F1 on the half that it was not fitted on: %.2f %% at 0.5, %.2f %% with it", before, after)
    if after < before:
        log.warning("the thresholds make these worse: there are too few images%s", ", try all" * bool(own))
    fitted = thresholds.FittedThresholds(
        named(cuts.numpy(), names), part, len(usable), before, after, place, calibration.fingerprint(loaded.model)
    )
    with in_step(world):
        if loaded.file is None:
            log.info("published weights have no folder for it: give predict.py --threshold P")
        elif world.is_main:
            file = thresholds.write_thresholds(loaded.file, fitted)
            log.info("written to %s: predict.py finds it there", as_line(file))
    return cuts, {"fitted_on": len(usable), "held_macro_f1": before, "held_macro_f1_fitted": after}


def _say_measures(name: str, result: Evaluation, measures: Measures, names: Sequence[str]) -> None:
    figures = measures.percent()
    log.info(
        "%s: mAP %.3f %%, micro AP %.3f %%, F1 macro %.3f %%, micro %.3f %%, loss %.5g, %d images, %d of them "
        "without labels, %d all right",
        *(name, figures["map"], figures["micro_map"], figures["macro_f1"], figures["micro_f1"], result.loss),
        *(result.count, measures.without, measures.exact),
    )
    if len(absent := measures.absent):
        share = 1 - len(absent) / len(names)
        log.warning(
            "%d of %d classes have no image here and are left out of mAP and macro F1: %s (counted as 0, as "
            "scikit-learn does, mAP is %.3f %%)",
            *(len(absent), len(names), some(names[index] for index in absent), figures["map"] * share),
        )


def _labelled(
    loaded: LoadedModel, names: Sequence[str] | None, dataset: PictureDataset, args: argparse.Namespace
) -> tuple[PictureDataset, Labels | None]:
    """Number the data's classes as the model does, and say which classes compete and what is right.

    Args:
        names: of the model's classes, where they are known.
    """
    num_classes = loaded.model.num_classes
    if not args.valid_labels and (labels := labels_by_name(dataset, names)) is not None:
        return dataset, real_labels(args.real_labels, dataset, labels) if args.real_labels else labels
    check_classes(None, dataset, None if args.valid_labels else num_classes, loaded.class_names)
    dataset = numbered_as_trained(loaded.class_names, dataset)
    _name_empty_classes(dataset)
    return dataset, labels_for(dataset, num_classes, args.valid_labels, args.real_labels)


def _name_empty_classes(dataset: PictureDataset) -> None:
    """Warn of classes that a class map or a table names, and that have no image."""
    targets = dataset.source.targets()
    if targets is None:
        return
    present = set(targets)
    if empty := [name for name, index in dataset.class_to_idx.items() if index not in present]:
        log.warning("%d of %d classes have no image here: %s", len(empty), len(dataset.class_to_idx), some(empty))


def _calibration(loaded: LoadedModel, records: Records, outcomes: Outcomes, job: _Job) -> tuple[Row, Outcomes | None]:
    """Measure how far probabilities can be trusted, and fit or apply a temperature.

    Returns:
        Columns of the results, and the outcomes at the temperature, where there is one.
    """
    raw = Calibration.of(outcomes)
    log.info("NLL %.5g, ECE %.2f %% (%d images, 15 bins of confidence)", raw.nll, 100 * raw.ece, raw.count)
    row: Row = {"nll": raw.nll, "ece": raw.ece}
    part, temperature = job.args.fit_temperature, loaded.temperature
    if not part and temperature == 1:
        return row, None
    if part:
        temperature, pictures, before, after = calibration.fit(records, part, job.world)
        place = job.data.of(CLASSIFICATION).place
        fitted = Fitted(temperature, part, pictures, before, after, place, calibration.fingerprint(loaded.model))
        row |= _say_fitted(loaded.file, fitted, job.world)
    calibrated = calibration.records_at(records, temperature, job.world)
    now = Calibration.of(calibrated)
    log.info("at temperature %g: NLL %.5g, ECE %.2f %%", temperature, now.nll, 100 * now.ece)
    return {**row, "temperature": temperature, "nll_calibrated": now.nll, "ece_calibrated": now.ece}, calibrated


def _say_fitted(file: Path | None, fitted: Fitted, world: World) -> Row:
    """Keep a temperature beside its checkpoint, say what it was fitted on and how it fares, and return the columns."""
    held, after = fitted.held, fitted.held_calibrated
    what = "every second image" if fitted.part == "half" else "all images"
    tested = "the others" if fitted.part == "half" else "each half at the temperature of the other"
    log.info("temperature %g, fitted on %s of %s (%d)", fitted.temperature, what, fitted.data, fitted.pictures)
    log.info(
        "on %d images that it was not fitted on (%s): NLL %.5g, then %.5g with it; ECE %.2f %%, then %.2f %%",
        *(held.count, tested, held.nll, after.nll, 100 * held.ece, 100 * after.ece),
    )
    if after.nll > held.nll:
        log.warning("the temperature makes these worse: there are too few images, or the model needs none")
    if fitted.temperature in (calibration.LEAST, calibration.MOST):
        log.warning("the temperature is at its limit: the answers are all right, or no better than chance")
    with in_step(world):
        if file is None:
            log.info("published weights have no folder for it: give predict.py --temperature %g", fitted.temperature)
        elif world.is_main:
            log.info("written to %s: predict.py finds it there", as_line(calibration.write_fitted(file, fitted)))
    return {
        "fitted_on": fitted.pictures,
        "held": held.count,
        "held_nll": held.nll,
        "held_nll_calibrated": after.nll,
        "held_ece": held.ece,
        "held_ece_calibrated": after.ece,
    }


def numbered_as_trained(trained: Sequence[str] | None, dataset: PictureDataset) -> PictureDataset:
    """Number the data set's classes as the checkpoint does, where they have the same names in another order.

    Other names, and an order that --class-map asks for, are warned of.
    """
    ours = dataset.class_names
    if not trained or len(trained) != len(ours):
        return dataset
    if other := in_other_order(trained, ours):
        if not dataset.has_class_map:
            log.warning("the checkpoint numbers the classes in another order (%s): its order is used", other)
            return dataset.numbered(trained)
        log.warning("--class-map numbers the classes in another order than the checkpoint: %s", other)
    elif not dataset.mapped and (different := [pair for pair in zip(trained, ours, strict=True) if len({*pair}) > 1]):
        log.warning(
            "%d of %d classes are called otherwise than in training (%s there, %s here): they are taken for the same, "
            "in this order; --class-map FILE would say which is which",
            *(len(different), len(ours), *different[0]),
        )
    return dataset


def evaluate_within_memory(
    loaded: LoadedModel,
    dataset: PictureDataset,
    labels: Labels | None,
    records: Records | None,
    args: argparse.Namespace,
    world: World,
    precision: Precision,
    answers: AnswerRecords | None = None,
) -> tuple[Evaluation, int]:
    """Evaluate, and return the batch size that memory sufficed for: it is halved for a new start while it does not.

    Of `args` it takes batch_size, workers, pin_mem, skip_bad_images, channels_last and log_freq.
    """
    batch_size = args.batch_size
    while True:
        loader = EvalLoader(
            dataset,
            batch_size=batch_size,
            rank=world.rank,
            world_size=world.size,
            workers=usable_workers(args.workers),
            pin_memory=args.pin_mem,
            skip_bad_images=args.skip_bad_images,
        )
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)
        try:
            result = evaluate(
                loaded.classifier,
                loader,
                world=world,
                autocast=precision.autocast,
                labels=labels,
                channels_last=args.channels_last,
                log_freq=args.log_freq,
                records=records,
                answers=answers,
                thresholds=loaded.thresholds,
            )
            return result, batch_size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            if batch_size == 1:
                raise ValueError(
                    f"there is not enough memory for one image of {loaded.config['input_size']} ({reason}); pass "
                    "a smaller --img-size, or --amp"
                ) from error
        finally:
            loader.close()
        batch_size //= 2
        log.warning("out of memory (%s): starting from the beginning with --batch-size %d", reason, batch_size)
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def _log_circumstances(result: Evaluation, world: World) -> None:
    log.info(
        "%.1f images/s, %.0f %% of the time waiting for data, peak memory %.0f MB (%s)",
        result.images_per_second,
        *(100 * result.data_wait, result.peak_memory_mb, world.device),
    )
    if result.scored < result.count:
        log.info("%d images have no ReaL label and are not scored", result.count - result.scored)
    if result.nonfinite:
        log.warning("%d images gave NaN or infinite logits and count as wrong", result.nonfinite)
    if result.skipped:
        log.warning("%d images could not be read and were skipped:", result.skipped)
        for file, reason in result.bad_images.items():
            log.warning("  %s: %s", as_line(file), reason)


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Sort by falling top1 (of several labels by mAP), then the rows without a number, then those with an error."""

    def rank(row: Row) -> tuple[bool, float]:
        top1 = row["top1"] if "top1" in row else row.get("map", math.nan)
        return "error" in row, math.inf if math.isnan(top1) else -top1

    return sorted(rows, key=rank)


def as_table(rows: Sequence[Row]) -> str:
    """Write rows for reading: a line each, under titles, in columns; --json and --output have every figure."""
    done = [row for row in rows if "error" not in row]
    text = ""
    for task in dict.fromkeys("map" in row for row in done):  # of several labels per image, or of one class
        few = ("mAP %", "micro mAP %", "macro F1 %", "micro F1 %") if task else ("top-1 %", "95 % interval", "top-5 %")
        lines: list[Sequence[str]] = [("model", "weights", *few, "loss", "n")]
        for row in (row for row in done if ("map" in row) == task):
            if task:
                figures = [f"{row[name]:.2f}" for name in ("map", "micro_map", "macro_f1", "micro_f1")]
            else:
                interval = f"{row['top1_low']:.2f} to {row['top1_high']:.2f}"
                figures = [f"{row['top1']:.2f}", interval, f"{row['top5']:.2f}"]
            weights = as_line(row["checkpoint"] or row["weights"])
            lines.append((as_line(row["model"]), weights, *figures, f"{row['loss']:.4g}", str(row["count"])))
        text += as_columns(lines, left=2)
    failed = [as_line(row["checkpoint"] or row["model"]) for row in rows if "error" in row]
    return text + "".join(f"{name}: failed\n" for name in failed)


def write_results(path: Path, rows: Sequence[Row], form: str | None = None) -> None:
    """Write rows as a JSON list, or as CSV with a column for every key but lists; in one step.

    `form` is json or csv; None goes by the suffix: .json, anything else is CSV.
    """
    if (form or path.suffix.lower().lstrip(".")) == "json":
        write_bytes(path, as_json(list(rows)).encode())
    else:
        flat = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]
        write_csv(path, flat)
