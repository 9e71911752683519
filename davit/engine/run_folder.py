"""Keep the states of a run in its folder, so that no crash can lose them and no damage goes unseen.

In the run's folder:
    last.pth.tar          the newest state: an epoch's end, a recovery point, or the step an interrupt came at
    previous.pth.tar      the one before, for the case that the newest is damaged
    checkpoint-N.pth.tar  the state at the end of epoch N, for the best --checkpoint-hist epochs
    model_best.pth.tar    the best of them
    milestone-N.pth.tar   the state after N epochs, for each N of --keep-epochs; nothing but --overwrite removes it
    merged.safetensors    with --lora: the weights of the best epoch with its adapters merged, once the run is done
    adapter               the adapters alone, in peft's format
    detector              of a detector: the best epoch's, in transformers' format, once the run is done
    checkpoint-N.aside.pth.tar  one whose metric cannot be compared with those of today
The epochs' are hard links, where the file system has them, so keeping an epoch costs no second write. Which is
newest follows from these names, never from the clock.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any

import torch

from ..checkpoint import (
    ADAPTER_CONFIG,
    CheckpointError,
    read_checkpoint,
    read_contents,
    unwrap,
    write_checkpoint,
)
from ..files import write_atomically, write_bytes
from ..text import some
from .distributed import World
from .finetune import split_adapters
from .flags import listed
from .state_check import check_types

log = logging.getLogger(__name__)

FORMAT = 1
LAST, PREVIOUS, BEST = "last.pth.tar", "previous.pth.tar", "model_best.pth.tar"
MERGED, ADAPTERS = "merged.safetensors", "adapter"
DETECTOR = "detector"
_EPOCH_FILE = re.compile(r"checkpoint-(\d+)\.pth\.tar")
_MILESTONE = re.compile(r"milestone-(\d+)\.pth\.tar")  # timm's name and count: of the epochs done
# what a run writes into its folder, and so what --overwrite removes from it
_OF_A_RUN = (
    *(
        LAST,
        PREVIOUS,
        BEST,
        "checkpoint-*.pth.tar",
        "milestone-*.pth.tar",
        "*.aside.pth.tar",
        "*.pth.tar.damaged",
        ".*.partial",
    ),
    *("options.yaml", "summary*.csv", "summary.json", "curves.png", "bad_images.csv", "tensorboard", "wandb*"),
    *("nonfinite-*.pt", "train-batch-*.jpg", MERGED, ADAPTERS, DETECTOR),
)
_LOCK = ".lock"
_STAMP = "%Y%m%d-%H%M%S"
_STAMPED = re.compile(r"(\d{8}-\d{6})-.+")  # the folder of a run without a name
_FOLDER = "davit/folder"  # the key under which restarts of a job find its folder


def has_our_format(state: dict[str, Any]) -> bool:
    """Tell whether a state says that this trainer wrote it; what is there instead may be of any type."""
    said = state.get("format")
    return isinstance(said, int) and said == FORMAT


def read_state(path: Path) -> dict[str, Any]:
    """Read a whole training state; every byte is checked, and nothing in it can run code.

    Raises:
        CheckpointError: the file is missing, damaged, not a state of this trainer, or one with values of wrong types.
    """
    state, _ = read_contents(path, foreign=False)
    if not isinstance(state, dict) or "state_dict" not in state:
        raise CheckpointError(f"{path} holds no training state.")
    if has_our_format(state):
        check_types(state, path)
    return state


def newest_whole(
    files_newest_first: Iterable[Path], log: logging.Logger, advice: str
) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest state that verifies, or None where there is no file at all; damaged ones are logged.

    Args:
        advice: what the error says to do.

    Raises:
        CheckpointError: there are files, and every one is damaged.
    """
    problems = []
    for file in files_newest_first:
        try:
            return file, read_state(file)
        except CheckpointError as error:
            problems.append(str(error))
            log.warning("passed over: %s", error)
    if problems:
        raise CheckpointError(f"no state in {file.parent} is whole: {' '.join(problems)} {advice}")
    return None


def read_any(path: Path) -> dict[str, Any]:
    """Read a state of ours, or another trainer's checkpoint: weights, their average if it has one, and epoch."""
    contents, header = read_contents(path)
    if isinstance(contents, dict) and has_our_format(contents):
        check_types(contents, path)
        return contents
    checkpoint, averaged = unwrap(contents, str(path), ema="never"), unwrap(contents, str(path))
    for one in (checkpoint, averaged):
        one.metadata.update(header)
    epoch = checkpoint.metadata.get("epoch")
    return {
        "state_dict": checkpoint.noted(),
        "epoch": epoch if isinstance(epoch, int) else -1,
        **({"state_dict_ema": averaged.noted()} if averaged.ema else {}),
    }


class FolderTakenError(ValueError):
    """Another run writes into the folder."""


_held: set[Path] = set()  # the locks of this process, which the operating system would grant it twice


def _lock(path: Path) -> IO[str]:
    """Lock a file against other processes until it is closed or this process ends, however it ends.

    A record lock (POSIX), because the loader processes that a killed run leaves behind do not inherit it.
    """
    path = path.resolve()
    taken = FolderTakenError(
        f"another run is writing into {path.parent}: wait for it, or give this one another --experiment."
    )
    if path in _held:
        raise taken
    stream = path.open("a+")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise taken from None
    _held.add(path)
    return stream


def _age(file: Path) -> tuple[int, int, str]:
    """Give the key that sorts states from the newest to the oldest."""
    match, milestone = _EPOCH_FILE.fullmatch(file.name), _MILESTONE.fullmatch(file.name)
    if match or milestone:
        return 2, -(int(match[1]) + 1 if match else int(milestone[1])), file.name  # type: ignore[index]
    return {LAST: 0, PREVIOUS: 1, BEST: 4}.get(file.name, 3), 0, file.name


def judged_by(state: Mapping[str, Any]) -> str | None:
    """Name the metric of a state's kept epochs (`eval_top1`); None where it does not tell."""
    if "metric_name" in state:
        return str(state["metric_name"])
    metric = state.get("args", {}).get("eval_metric")  # a state of an earlier version
    return None if metric is None else f"{'ema' if 'state_dict_ema' in state else 'eval'}_{metric}"


class RunFolder:
    """Hold the folder of one run, for one run at a time. Only the main process has one.

    Args:
        path: created where it does not exist.
        keep: how many of the best epochs to keep.
        higher_is_better: the order of the metric.
        milestones: numbers of epochs after which the state is kept for good.

    Raises:
        FolderTakenError: another run holds the folder now.
    """

    def __init__(
        self, path: Path, keep: int = 10, higher_is_better: bool = True, milestones: Collection[int] = ()
    ) -> None:
        self.path = path
        self.keep = keep
        self.milestones = set(milestones)
        self.sign = 1.0 if higher_is_better else -1.0
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path / _LOCK)
        for entry in path.glob(".*.partial"):  # what a killed process had begun to write; the folder is ours alone
            entry.unlink()

    def holds_a_run(self) -> bool:
        """Return whether an earlier run left something here."""
        return any(self.path.glob("*.pth.tar")) or (self.path / "summary.csv").exists()

    def clear(self) -> None:
        """Remove what an earlier run left, and nothing else."""
        for pattern in _OF_A_RUN:
            for entry in self.path.glob(pattern):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def close(self) -> None:
        """Let the folder go."""
        if not self._lock.closed:
            _held.discard(Path(self._lock.name))
            self._lock.close()

    def secure(self, state: Callable[[], dict[str, Any]]) -> bool:
        """See that the folder is there and held by this run, as it was; return whether it had to be made again.

        To be called before anything is written. A folder or a lock that somebody removed is made again.

        Args:
            state: makes the state of now, to be saved elsewhere where the folder is lost.

        Raises:
            FolderTakenError: another run holds it; the state is saved in a folder beside it, which is named.
        """
        lock = self.path / _LOCK
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(lock.stat(), os.fstat(self._lock.fileno())):
                return False
        is_gone = not self.path.is_dir()
        self.path.mkdir(parents=True, exist_ok=True)
        self.close()
        try:
            self._lock = _lock(lock)
        except FolderTakenError:
            beside = self._save_beside(state())
            raise FolderTakenError(
                f"the file {lock} was removed, and another run writes into {self.path} now, so this one stops. Its "
                f"state is in {beside}: continue with --experiment {beside.name} --auto-resume."
            ) from None
        if is_gone:
            log.warning("%s was removed or renamed: it is made again, and this run continues in it.", self.path)
        else:
            log.warning("%s was removed. It tells other runs that this one writes here, so it is made again.", lock)
        return is_gone

    def _save_beside(self, state: dict[str, Any]) -> Path:
        """Save a state in a new folder beside this one, and return that."""
        path = _new_folder(self.path.with_name(f"{self.path.name}-{n}") for n in itertools.count(2))
        folder = RunFolder(path, self.keep)
        folder.save(state)
        folder.close()
        return path

    def save(self, state: dict[str, Any]) -> Path:
        """Write the newest state; the one before stays beside it, and if it cannot be written both stay."""
        last = self.path / LAST

        def keep_the_one_before() -> None:
            if last.exists():
                self._link(last, PREVIOUS)

        write_atomically(last, lambda stream: torch.save(state, stream), before_replacing=keep_the_one_before)
        return last

    def keep_epoch(self, epoch: int, metric: float, kept: dict[int, float]) -> dict[int, float]:
        """Keep the last state as that of an epoch, if it is among the best; safe to repeat.

        Args:
            metric: by which epochs are ordered.
            kept: epoch -> metric of those kept so far.

        Returns:
            Those kept now.
        """
        among_best = self._best_first({**kept, epoch: metric})[: self.keep]  # files of others may be gone by right
        kept = {**self.on_disk({e: kept[e] for e in among_best if e != epoch}), epoch: metric}
        best_first = self._best_first(kept)
        best = sorted(best_first[: self.keep])
        if epoch in best:
            self._link(self.path / LAST, _epoch_file(epoch))
        if epoch == best_first[0]:
            self._link(self.path / LAST, BEST)
        for file in self.path.glob("checkpoint-*.pth.tar"):
            match = _EPOCH_FILE.fullmatch(file.name)
            if match and int(match[1]) not in best:
                file.unlink()
        return {e: kept[e] for e in best}

    def keep_milestone(self, epochs: int) -> None:
        """Keep the last state, which is that after so many epochs, for good if it was asked for; safe to repeat."""
        if epochs in self.milestones:
            self._link(self.path / LAST, f"milestone-{epochs}.pth.tar")

    def on_disk(self, kept: dict[int, float]) -> dict[int, float]:
        """Return the kept epochs whose files are there; of the best one either of its two names will do."""
        if not kept:
            return kept
        best, best_file = self._best_first(kept)[0], self.path / BEST
        if not (self.path / _epoch_file(best)).exists() and _says(best_file, best + 1):
            self._link(best_file, _epoch_file(best))
        left = {epoch: metric for epoch, metric in kept.items() if (self.path / _epoch_file(epoch)).exists()}
        if gone := sorted({*kept} - {*left}):
            log.warning("%s: the checkpoints of epochs %s were removed and no longer count.", self.path, some(gone))
        if left and (best not in left or not best_file.exists()):
            self._link(self.path / _epoch_file(self._best_first(left)[0]), BEST)
        return left

    def write_adapters(self, config: dict[str, Any]) -> None:
        """Write the best epoch's weights with its adapters merged, and the adapters alone in peft's format.

        Args:
            config: of the adapters, as `add_lora` returns it.
        """
        checkpoint = read_checkpoint(self.path / BEST)
        write_checkpoint(self.path / MERGED, checkpoint.state_dict, {}, force=True)
        folder = self.path / ADAPTERS
        folder.mkdir(exist_ok=True)
        write_bytes(folder / ADAPTER_CONFIG, json.dumps(config, indent=2).encode())
        write_checkpoint(folder / "adapter_model.safetensors", split_adapters(checkpoint, config), {}, force=True)
        log.info("The merged weights are in %s, the adapters alone in %s.", MERGED, ADAPTERS)

    def judge_anew(self, kept: dict[int, float], aside: Collection[int]) -> dict[int, float]:
        """Make the best of `kept` the best one, after its metrics have changed; return those whose files are there.

        Args:
            aside: the epochs whose metric is not comparable; their files get names that nothing removes or replaces.
        """
        files = {epoch: self.path / _epoch_file(epoch) for epoch in (*kept, *aside)}
        best = self.path / BEST
        if best.exists() and not any(file.exists() and file.samefile(best) for file in files.values()):
            best.replace(self.path / "model_best.aside.pth.tar")  # no second name of one of them
        best.unlink(missing_ok=True)
        for epoch in aside:
            if files[epoch].exists():
                files[epoch].replace(self.path / f"checkpoint-{epoch}.aside.pth.tar")
        return self.on_disk(kept)

    def _best_first(self, kept: dict[int, float]) -> list[int]:
        return sorted(kept, key=lambda epoch: (self.rank(kept[epoch]), epoch))

    def best(self, kept: dict[int, float]) -> int:
        """Return the best of the kept epochs, the first of those that are as good."""
        return self._best_first(kept)[0]

    def rank(self, metric: float) -> float:
        """Order metrics: lower is better, and a metric that is not a number is the worst."""
        return math.inf if math.isnan(metric) else -self.sign * metric

    def go_on(self) -> dict[str, Any] | None:
        """Read the newest whole state, if there is any, and make it the last one; a damaged one is set aside.

        Else the next save would put the damaged one in the place of the whole one before.
        """
        advice = "Start over with --overwrite, or from other weights with --initial-checkpoint."
        found = newest_whole(sorted(self.path.glob("*.pth.tar"), key=_age), log, advice)
        if found is None:
            log.info("Nothing to resume in %s: starting from the beginning.", self.path)
            return None
        file, state = found
        log.info("Continuing from %s.", file)
        last = self.path / LAST
        if last.exists() and not last.samefile(file):
            last.replace(self.path / f"{LAST}.damaged")
        if not last.exists():
            self._link(file, LAST)
        is_between = has_our_format(state) and state.get("step") == 0
        if is_between and not (self.path / f"milestone-{state['epoch']}.pth.tar").exists():
            self.keep_milestone(state["epoch"])  # it may have been killed between saving and keeping
        if is_between and state.get("metric") is not None:  # the same
            sign, name = self.sign, judged_by(state)
            if name is not None:  # the state's own metric, which the flags may no longer be of
                self.sign = -1.0 if name.endswith("loss") else 1.0
            kept = {int(epoch): metric for epoch, metric in state["kept"].items()}
            state["kept"] = self.keep_epoch(state["epoch"] - 1, state["metric"], kept)
            self.sign = sign
        return state

    def _link(self, source: Path, name: str) -> None:
        """Give a file a second name, replacing what had it, with no moment at which the name is gone."""
        beside = self.path / f".{name}.partial"
        with suppress(FileNotFoundError):
            beside.unlink()
        try:
            os.link(source, beside)
        except OSError:  # a file system without hard links
            shutil.copy2(source, beside)
        beside.replace(self.path / name)
        with suppress(FileNotFoundError):
            beside.unlink()  # a rename onto another name of the same file does nothing


def _epoch_file(epoch: int) -> str:
    return f"checkpoint-{epoch}.pth.tar"


# ---- the folder of a run that begins or goes on ----


@dataclass(frozen=True)
class FolderOptions:
    """The flags that say where a run is written, and from where it continues; their names are the flags'."""

    model: str
    output: str
    experiment: str
    overwrite: bool
    resume: str
    auto_resume: bool
    checkpoint_hist: int
    keep_epochs: str | None
    eval_metric: str


@dataclass(frozen=True)
class Opened:
    """The open folder of a run and the state that it continues from, if any.

    Attributes:
        is_own: the state is of this very run (--auto-resume, a restart), rather than the file of --resume.
    """

    folder: RunFolder
    state: dict[str, Any] | None
    is_own: bool


def open_folder(options: FolderOptions, size: int, world: World) -> Opened:
    """Open the folder of a run, on the main process, and read the state that it continues from.

    A job that torchrun restarted continues in the folder that it had opened, without --auto-resume; one that had
    opened none yet is as new.

    Args:
        size: side of the images, for the name of a run without one.

    Raises:
        ValueError: the folder holds another run, or one is writing there (also `CheckpointError`: no whole state).
    """
    opened = world.recall(_FOLDER)
    path = Path(opened) if opened is not None else run_path(options, size)
    higher_is_better, milestones = options.eval_metric != "loss", listed(options.keep_epochs)
    folder = RunFolder(path, options.checkpoint_hist, higher_is_better, milestones)
    try:
        state = folder.go_on() if options.auto_resume or opened is not None else None
        is_own = state is not None
        if state is None and options.resume:
            state = read_any(Path(options.resume))  # before anything is removed: it may lie in this folder
        # with --auto-resume it holds a summary and no state yet: the interrupted run had not come far
        if not is_own and opened is None and not options.auto_resume and folder.holds_a_run():
            if not options.overwrite:
                raise ValueError(
                    f"{path} holds an earlier run: pass --auto-resume to continue with it, --overwrite to replace it, "
                    "or another --experiment."
                )
            folder.clear()
        world.remember(_FOLDER, str(path))
    except BaseException:
        folder.close()
        raise
    if not is_own:
        log.info("Writing to %s.", path)
    return Opened(folder, state, is_own)


def run_path(options: FolderOptions, size: int) -> Path:
    """Return the folder of a run: --output/--experiment.

    Without a name: the time (UTC), the model and the size, in a folder that is made here, so that no two runs meet.
    With --auto-resume a run without a name takes the unfinished one of that model and size that began last, or where
    all are finished the one that did.
    """
    output = Path(options.output or "output/train")
    if options.experiment:
        return output / options.experiment
    name = f"{options.model.replace('/', '_')}-{size}"
    if options.auto_resume:
        begun = [path for path in output.glob(f"*-{name}") if _STAMPED.fullmatch(path.name)]
        newest_first = sorted((path for path in begun if any(path.glob("*.pth.tar"))), reverse=True)
        for path in newest_first:
            if _is_unfinished(path):
                return path
        if newest_first:
            return newest_first[0]
    return _new_folder(output / f"{stamp:{_STAMP}}-{name}" for stamp in _stamps(output))


def _stamps(output: Path) -> Iterator[datetime]:
    """Yield times for the name of a new run: now, or later than all names there, if a clock was set back; and on."""
    stamp = datetime.now(timezone.utc).replace(tzinfo=None, microsecond=0)
    for path in output.glob("*"):
        if match := _STAMPED.fullmatch(path.name):
            with suppress(ValueError, OverflowError):  # digits that are no time, and the year 9999
                stamp = max(stamp, datetime.strptime(match[1], _STAMP) + timedelta(seconds=1))
    while True:
        yield stamp
        stamp += timedelta(seconds=1)


def _new_folder(paths: Iterator[Path]) -> Path:
    """Make the first of the folders that does not exist yet; of two processes that try at once only one makes it."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("names never end")


def _is_unfinished(folder: Path) -> bool:
    """Return whether a run has epochs to train; its newest state is glanced at, its weights are not read.

    A state that cannot be read counts as unfinished: whoever opens the folder says what is wrong with it.
    """
    state = _glance(min(folder.glob("*.pth.tar"), key=_age))
    flags = state.get("args")
    num_epochs = state.get("num_epochs", flags.get("epochs") if isinstance(flags, dict) else None)
    return not (isinstance(num_epochs, int) and isinstance(state.get("epoch"), int) and state["epoch"] >= num_epochs)


def _says(file: Path, epoch: int) -> bool:
    said = _glance(file).get("epoch")
    return isinstance(said, int) and said == epoch


def _glance(file: Path) -> dict[str, Any]:
    """Read what a state says of itself, without its weights; empty where it cannot be read."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged file can make the reader fail in any way
        return {}
    return state if isinstance(state, dict) else {}
