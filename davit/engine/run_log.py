"""Record a run in its folder: summary.csv, curves.png, args.yaml, bad_images.csv, TensorBoard, wandb."""

from __future__ import annotations

import argparse
import importlib
import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from ..files import write_bytes, write_csv
from ..text import install_extra
from .curves import draw_curves, read_summary

log = logging.getLogger(__name__)

SUMMARY, CURVES, ARGS, BAD_IMAGES = "summary.csv", "curves.png", "args.yaml", "bad_images.csv"
_WANDB_ID = "wandb-id.txt"


class RunLog:
    """Record a run an epoch at a time. Only the main process makes one: it writes into the folder.

    Args:
        folder: of the run; it exists.
        tensorboard: write TensorBoard's events under folder/tensorboard.
        wandb: log to Weights & Biases.
        config: the run's arguments, for TensorBoard and wandb to show.
        resume_epoch: the epoch the run continues with. Rows of it and of later ones, which an interrupted run
            left, are dropped from the summary, and a TensorBoard drops its points: what is recorded in the
            end is what one uninterrupted run would have. 0 starts again.

    Raises:
        ValueError: TensorBoard or wandb is asked for and not installed, or wandb cannot start.
        OSError: the summary cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        config: Mapping[str, Any],
        resume_epoch: int = 0,
    ) -> None:
        self.folder = Path(folder)
        # before the summary is touched
        board, service = check_loggers(tensorboard=tensorboard, wandb=wandb)
        self._summary = Summary(self.folder / SUMMARY, resume_epoch)
        self._board = None
        if board is not None:
            self._board = board.SummaryWriter(str(self.folder / "tensorboard"), purge_step=resume_epoch)
            self._board.add_text("arguments", f"```\n{_as_yaml(config)}```", resume_epoch)
        self._wandb = None
        if service is not None:
            # a resumed run continues as the same run of wandb's
            file = self.folder / _WANDB_ID
            if not file.exists():
                write_bytes(file, uuid.uuid4().hex[:8].encode())
            run = {"name": self.folder.name, "id": file.read_text(encoding="utf-8"), "resume": "allow"}
            try:
                self._wandb = service.init(config=plain(config), dir=str(self.folder), **run)
            except Exception as error:  # no account, no network, an old version: its own types of error
                raise ValueError(
                    f"--log-wandb: wandb cannot start ({type(error).__name__}: {error}); see `wandb login`, set "
                    "WANDB_MODE=offline, or leave --log-wandb out."
                ) from error
            # rows after a resume may repeat epochs, which wandb's own step, always rising, could not
            self._wandb.define_metric("epoch")
            self._wandb.define_metric("*", step_metric="epoch")

    def epoch(self, row: Mapping[str, float]) -> None:
        """Record an epoch. `row` has "epoch" and any other columns, those that `draw_curves` knows among them.

        The summary comes first and its errors are raised; what fails behind it is a warning.

        Raises:
            OSError: the summary cannot be written; the old one is whole.
        """
        self._summary.add(row)
        self._try("draw curves.png", lambda: draw_curves([self.folder / SUMMARY], self.folder / CURVES))
        if self._board is not None:
            self._try("write TensorBoard's events", lambda: self._to_board(row))
        if self._wandb is not None:
            self._try("log to wandb", lambda: self._wandb.log(dict(row)))  # type: ignore[union-attr]

    def rows(self) -> list[dict[str, float | int | None]]:
        """Return the rows of the summary so far as numbers; None for an empty cell."""
        return self._summary.numbers()

    def write_again(self) -> None:
        """Write the summary so far into a folder that was made again."""
        self._summary.write()

    def finish(self) -> None:
        """Close what is open."""
        if self._board is not None:
            self._try("close TensorBoard's events", self._board.close)
        if self._wandb is not None:
            self._try("finish wandb", self._wandb.finish)
        self._board = self._wandb = None

    def _to_board(self, row: Mapping[str, float]) -> None:
        assert self._board is not None
        for name, value in row.items():
            if name != "epoch":
                group, _, rest = name.partition("_")
                tag = f"{group}/{rest}" if group in ("train", "eval", "ema") else f"run/{name}"
                self._board.add_scalar(tag, value, int(row["epoch"]))
        self._board.flush()

    def _try(self, what: str, action: Callable[[], object]) -> None:
        """Do something whose failure, whatever it is, must not end a month of training."""
        try:
            action()
        except Exception as error:
            log.warning("could not %s: %s: %s", what, type(error).__name__, error)


class Summary:
    """Keep a CSV file with a row for each epoch, whole on disk at any moment.

    Columns are those of the first row; a later new one is added on the right, and what a row does not have is
    an empty cell. Numbers are written so that they read back as the same bits.
    """

    def __init__(self, path: Path, resume_epoch: int = 0) -> None:
        self.path = path
        self._rows: list[dict[str, str]] = []
        if not path.exists():
            return
        found = self._read() if resume_epoch else []
        self._rows = [row for row in found if int(row["epoch"]) < resume_epoch]
        if not self._rows:
            path.unlink(missing_ok=True)
        elif len(self._rows) < len(found):
            self.write()

    def add(self, row: Mapping[str, float]) -> None:
        """Write a row, in the place of any of the same epoch or later."""
        epoch = int(row["epoch"])
        cells = {"epoch": str(epoch), **{name: _cell(value) for name, value in row.items() if name != "epoch"}}
        self._rows = [*(row for row in self._rows if int(row["epoch"]) < epoch), cells]
        self.write()

    def numbers(self) -> list[dict[str, float | int | None]]:
        """Return the rows so far as numbers, whole ones as such; what is no number, as None."""
        return [{name: _number(cell) for name, cell in row.items()} for row in self._rows]

    def write(self) -> None:
        """Write the rows so far, if there are any."""
        if self._rows:
            write_csv(self.path, self._rows)

    def _read(self) -> list[dict[str, str]]:
        """Read the rows of an earlier part of the run; a file that is none of ours is set aside."""
        try:
            rows = read_summary(self.path)
        except ValueError as error:
            aside = self.path.with_name(f"{self.path.stem}-unreadable{self.path.suffix}")
            self.path.replace(aside)
            log.warning("%s It is kept as %s, and a new one is begun.", error, aside.name)
            return []
        return [{name: cell for name, cell in row.items() if cell} for row in rows]


def write_args(folder: str | Path, args: Mapping[str, Any]) -> None:
    """Write args.yaml, in the order given and in plain types: `train.py -c` reads it back."""
    write_bytes(Path(folder) / ARGS, _as_yaml(args).encode())


def write_bad_images(folder: str | Path, bad: Mapping[str, str]) -> None:
    """Write bad_images.csv: file and reason of the images left out, sorted by file."""
    write_csv(Path(folder) / BAD_IMAGES, [{"file": file, "reason": bad[file]} for file in sorted(bad)])


def plain(value: Any) -> Any:
    """Convert a value to the types that YAML, JSON and ``torch.load(weights_only=True)`` all read back.

    Paths, dtypes, devices and other objects become their text; tuples and sets lists, sets sorted; a Namespace
    a dict; numpy's and torch's scalars and enums of numbers or text the number or text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(inner) for inner in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if getattr(value, "ndim", None) == 0:
        return plain(value.item())
    return str(value)


def _as_yaml(args: Mapping[str, Any]) -> str:
    return yaml.safe_dump(plain(args), sort_keys=False, allow_unicode=True)


def _cell(value: float) -> str:
    return str(int(value)) if isinstance(value, Integral) else repr(float(value))


def _number(cell: str) -> float | int | None:
    with suppress(ValueError):
        return int(cell)
    with suppress(ValueError):
        return float(cell)
    return None


def check_loggers(*, tensorboard: bool, wandb: bool) -> tuple[ModuleType | None, ModuleType | None]:
    """Import the loggers asked for; raises `ValueError` for one that is not installed."""
    return (
        _require("torch.utils.tensorboard", "tensorboard") if tensorboard else None,
        _require("wandb", "wandb") if wandb else None,
    )


def _require(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"--log-{package} needs the package {package}, which cannot be imported ({error}): install it with "
            f"{install_extra(package)}, or leave --log-{package} out."
        ) from error
