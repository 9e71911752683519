"""What validate.py does: every model asked for is evaluated, and the results are told, written and printed."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import torch

from ..commands import OK, SOME_FAILED, run_cli, with_flags
from ..data import EvalLoader, PictureDataset, open_dataset, write_digits
from ..files import write_atomically
from ..pretrained import PretrainedError
from ..text import without_nan
from .build import usable_workers
from .distributed import World, close_world, init_world
from .evaluate import Evaluation, MiscountError, evaluate, in_step, is_out_of_memory
from .flags import (
    VALIDATE_NO_LONGER,
    changed,
    check_backend,
    parse_validate,
    require_number,
    say_no_longer,
    validate_parser,
)
from .load_model import Entry, Subject, find_entries, prepare
from .precision import Precision, precision_from

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run validate.py; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    failed: list[Row] = []
    status = run_cli(lambda: failed.extend(_main(argv)))
    return SOME_FAILED if status == OK and failed else status


def _main(argv: Sequence[str] | None) -> list[Row]:
    """The rows of the evaluations that failed."""
    args, named = parse_validate(argv)
    world = init_world(args.device)
    try:
        if not world.is_main:
            # what goes wrong elsewhere is told by the main process (`in_step`)
            logging.getLogger("davit").setLevel(logging.CRITICAL)
        return validate(args, world, named_model=named)
    finally:
        close_world()


def validate(args: argparse.Namespace, world: World, *, named_model: bool) -> list[Row]:
    """Evaluate what `args` (of `validate_parser`) ask for; the main process prints and writes the results.

    Args:
        named_model: whether args.model was given, rather than the parser's default.

    Returns:
        The rows of failed evaluations. The error of a single one is raised.

    Raises:
        ValueError: a flag, a checkpoint or the data cannot be used.
        MiscountError: a picture was evaluated twice or not at all.
    """
    say_no_longer(VALIDATE_NO_LONGER, changed(validate_parser(), args))
    with in_step(world):
        _check_flags(args)
        entries, single = find_entries(args, named_model)
    precision = precision_from(args, world.device, world.everywhere)
    precision.say()
    dataset = _open(args, world)
    rows: list[Row] = []
    done: dict[tuple[int, int], Row] = {}
    for entry in entries:
        same = _identity(entry)
        try:
            if same in done:  # the best of a run is a second name of one of its epochs
                row = {**done[same], "checkpoint": str(entry.checkpoint)}
                log.info("%s is the same file as %s", entry.checkpoint, done[same]["checkpoint"])
            else:
                row = _evaluate_entry(entry, args, dataset, world, precision)
        except MiscountError:
            raise
        except Exception as error:
            if single:
                raise
            ours = not isinstance(error, ValueError | PretrainedError)
            text = with_flags(str(error))
            log.error("%s failed: %s", entry, text, exc_info=ours)
            row = {"model": entry.model or "", "checkpoint": str(entry.checkpoint or ""), "error": text}
        else:
            if same is not None:
                done[same] = row
        rows = best_first([*rows, row])
        if args.results_file:
            with in_step(world):
                if world.is_main:
                    write_results(Path(args.results_file), rows, args.results_format)
    if world.is_main:
        print_results(rows[0] if single else rows)
    return [row for row in rows if "error" in row]


def _check_flags(args: argparse.Namespace) -> None:
    """What argparse cannot see; raises `ValueError` before anything takes time."""
    for name in ("batch_size", "num_classes", "img_size"):
        require_number(name, getattr(args, name), 1, math.inf, "a number of 1 or more")
    for name in ("log_freq", "workers"):
        require_number(name, getattr(args, name), 0, math.inf, "a number of 0 or more")
    require_number("crop_pct", args.crop_pct, math.ulp(0.0), math.inf, "a share above 0, such as 0.9")
    check_backend(args.torchcompile)
    if args.input_size and args.input_size[0] != 3:
        raise ValueError(f"--input-size {args.input_size}: pictures are read as RGB, so C must be 3.")
    for one, other in (
        ("use_ema", args.ema == "never" and "ema never"),
        ("test_time_pool", args.no_test_pool and "no-test-pool"),
        ("torchscript", args.torchcompile and "torchcompile"),
        ("pretrained", args.checkpoint and f"checkpoint {args.checkpoint}"),
    ):
        if getattr(args, one) and other:
            raise ValueError(f"--{one.replace('_', '-')} and --{other} exclude each other; give one of them.")
    if args.results_file:
        file = Path(args.results_file).absolute()
        if file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
            raise ValueError(f"--results-file {file}: no file can be written there; check the folder.")


def _open(args: argparse.Namespace, world: World) -> PictureDataset:
    """The split, or of the handwritten digits where no data is named. One process may download."""
    root = args.data
    with in_step(world):
        if root is None and not args.dataset:
            root = write_digits()
            log.info("no data folder given: evaluating on handwritten digits (%s)", root)
        if args.dataset_download and world.is_main:
            open_dataset(root, args.split, dataset=args.dataset, dataset_download=True)
    with in_step(world):
        return open_dataset(root, args.split, dataset=args.dataset, class_map=args.class_map)


def _identity(entry: Entry) -> tuple[int, int] | None:
    """What tells a checkpoint's file from others, whatever its name."""
    if entry.checkpoint is None or not entry.checkpoint.exists():
        return None
    found = entry.checkpoint.stat()
    return found.st_dev, found.st_ino


def _evaluate_entry(
    entry: Entry, args: argparse.Namespace, dataset: PictureDataset, world: World, precision: Precision
) -> Row:
    with in_step(world):
        subject = prepare(entry, args, dataset, world.device)
    config = subject.config
    log.info(
        "%s, %s weights: %.2f M parameters, %d classes, %d pictures at %dx%d, crop %.4g (%s), %s%s",
        *(subject.name, subject.weights, subject.params / 1e6, subject.num_classes, len(dataset)),
        *(*config["input_size"][-2:], config["crop_pct"], config["crop_mode"], config["interpolation"]),
        ", test-time pooling" if subject.pooled else "",
    )
    result, batch_size = evaluate_within_memory(subject, args, dataset, world, precision.autocast)
    _say(subject.name, result, world)
    low, high = result.top1_interval
    return {
        "model": subject.name,
        "checkpoint": str(entry.checkpoint or ""),
        "weights": subject.weights,
        "top1": result.top1,
        "top1_low": low,
        "top1_high": high,
        "top1_err": 100 - result.top1,
        "top5": result.top5,
        "top5_err": 100 - result.top5,
        "loss": result.loss,
        "count": result.count,
        "scored": result.scored,
        "correct1": result.correct1,
        "correct5": result.correct5,
        "skipped": result.skipped,
        "nonfinite": result.nonfinite,
        "param_count": round(subject.params / 1e6, 2),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        "interpolation": config["interpolation"],
        "test_time_pool": subject.pooled,
        "precision": precision.name,
        "batch_size": batch_size,
        "processes": world.size,
        "images_per_second": round(result.images_per_second, 2),
        "data_wait": round(result.data_wait, 4),
        "peak_memory_mb": round(result.peak_memory_mb, 1),
    }


def evaluate_within_memory(
    subject: Subject,
    args: argparse.Namespace,
    dataset: PictureDataset,
    world: World,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[Evaluation, int]:
    """The evaluation, and the batch size that memory sufficed for: halved, and begun anew, while it does not.

    Raises:
        ValueError: memory does not suffice for one picture. Any other error comes as it is.
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
                subject.model,
                loader,
                world=world,
                autocast=autocast,
                labels=subject.labels,
                channels_last=args.channels_last,
                log_freq=args.log_freq,
            )
            return result, batch_size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            if batch_size == 1:
                raise ValueError(
                    f"memory does not suffice for one picture of {subject.config['input_size']} ({reason}); pass "
                    "a smaller --img-size, or --amp"
                ) from error
        finally:
            loader.close()
        batch_size //= 2
        log.warning("out of memory (%s): beginning anew with --batch-size %d", reason, batch_size)
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def _say(name: str, result: Evaluation, world: World) -> None:
    low, high = result.top1_interval
    log.info(
        "%s: top-1 %.3f %% (95 %% interval %.3f to %.3f), top-5 %.3f %%, loss %.5g, %d pictures",
        *(name, result.top1, low, high, result.top5, result.loss, result.count),
    )
    log.info(
        "%.1f images/s, %.0f %% of the time waiting for data, peak memory %.0f MB (%s)",
        result.images_per_second,
        *(100 * result.data_wait, result.peak_memory_mb, world.device),
    )
    if result.scored < result.count:
        log.info("%d pictures have no ReaL label and are not scored", result.count - result.scored)
    if result.nonfinite:
        log.warning("%d pictures gave NaN or infinite logits and count as wrong", result.nonfinite)
    if result.skipped:
        log.warning("%d pictures could not be read and were skipped:", result.skipped)
        for file, reason in result.bad_images.items():
            log.warning("  %s: %s", file, reason)


# ---- tables of results ----

Row = dict[str, Any]


def best_first(rows: Sequence[Row]) -> list[Row]:
    """By falling top1, then rows without a number, then those with an error."""

    def rank(row: Row) -> tuple[bool, float]:
        top1 = row.get("top1", math.nan)
        return "error" in row, math.inf if math.isnan(top1) else -top1

    return sorted(rows, key=rank)


def write_results(path: Path, rows: Sequence[Row], form: str | None = None) -> None:
    """Write rows as a JSON list, or as CSV with a column for every key; in one step.

    `form` is json or csv; None goes by the suffix: .json, anything else is CSV.
    """
    if (form or path.suffix.lower().lstrip(".")) == "json":
        text = json.dumps([without_nan(row) for row in rows], indent=2, allow_nan=False) + "\n"
    else:
        stream = io.StringIO(newline="")
        columns = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(stream, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()

    def write(stream: IO[bytes]) -> None:
        stream.write(text.encode())

    write_atomically(path, write)


def print_results(results: Row | Sequence[Row]) -> None:
    """To standard output, as timm's script ends: a line --result, and JSON (here on one line) below it."""
    plain = without_nan(results) if isinstance(results, dict) else [without_nan(row) for row in results]
    sys.stdout.write(f"--result\n{json.dumps(plain, allow_nan=False)}\n")
    sys.stdout.flush()
