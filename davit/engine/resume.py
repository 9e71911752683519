"""What is saved of a run, and how another process goes on from it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..checkpoint import load_checkpoint
from . import state as saved
from .runlog import plain
from .totals import EpochTotals

if TYPE_CHECKING:
    from .train import Trainer

log = logging.getLogger(__name__)


def state_of(trainer: Trainer, epoch: int, step: int, metric: float | None) -> dict[str, Any]:
    """Everything that a run going on from (epoch, step) needs, as plain values and tensors."""
    return {
        "format": saved.FORMAT,
        "arch": trainer.args.model,
        "epoch": epoch,
        "step": step,
        "metric": metric,
        "global_batch": trainer.train_loader.global_batch,
        "state_dict": trainer.model.state_dict(),
        **({"state_dict_ema": trainer.ema.module.state_dict()} if trainer.ema else {}),
        **trainer.stepper.state_dict(),
        "scheduler": plain(trainer.scheduler.state_dict()),
        "totals": vars(trainer.totals),
        "kept": trainer.kept,
        "bad_images": trainer.bad_images,
        "args": plain({**vars(trainer.args), **_data_words(trainer)}),
        "class_names": trainer.data.class_names,
    }


def _data_words(trainer: Trainer) -> dict[str, Any]:
    """What evaluation needs to read pictures as this run did."""
    return {
        "num_classes": trainer.data.num_classes,
        "input_size": trainer.config["input_size"],
        "mean": trainer.config["mean"],
        "std": trainer.config["std"],
        "crop_pct": trainer.config["crop_pct"],
        "crop_mode": trainer.config["crop_mode"],
        "interpolation": trainer.config["interpolation"],
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a run where a saved state was; from a foreign checkpoint, its weights and epoch."""
    args = trainer.args
    if args.no_resume_opt or state.get("format") != saved.FORMAT:
        load_checkpoint(trainer.model, state, ema="never", head="require")
        if not args.no_resume_opt:
            trainer.epoch = int(state.get("epoch", -1)) + 1
            trainer.scheduler.step(trainer.epoch)
            log.warning(
                "The checkpoint was not written by this trainer: its weights and epoch are used, the "
                "optimizer starts anew."
            )
        return
    then = state["args"]
    for name in ("model", "seed", "opt"):
        if then[name] != getattr(args, name):
            log.warning("--%s was %r and is %r now.", name, then[name], getattr(args, name))
    load_checkpoint(trainer.model, {"state_dict": state["state_dict"]}, head="require")
    if trainer.ema is not None:
        trainer.ema.module.load_state_dict(state.get("state_dict_ema", state["state_dict"]))
    trainer.stepper.load_state_dict(state)
    trainer.scheduler.load_state_dict(state["scheduler"])
    trainer.epoch, trainer.start_step = state["epoch"], _position(trainer, state)
    trainer.totals = EpochTotals(**state["totals"])
    trainer.kept = {int(e): m for e, m in state["kept"].items()}
    trainer.bad_images = state["bad_images"]
    if trainer.folder is not None and trainer.start_step == 0 and state["metric"] is not None:
        if (trainer.folder.path / saved.LAST).exists():  # killed between saving and keeping
            trainer.kept = trainer.folder.keep_epoch(trainer.epoch - 1, state["metric"], trainer.kept)
    log.info("Resumed at epoch %d, step %d.", trainer.epoch, trainer.start_step)


def _position(trainer: Trainer, state: dict[str, Any]) -> int:
    """The step within the epoch, where the global batch may have changed."""
    before, now = state["global_batch"], trainer.train_loader.global_batch
    if before == now or state["step"] == 0:
        return int(state["step"])
    samples = state["step"] * before
    if samples % now:
        raise ValueError(
            f"the state was saved in the middle of an epoch, after {samples} pictures, which is no multiple of "
            f"the global batch of {now} (it was {before}): choose --batch-size, --grad-accum-steps and "
            "processes so that their product is the same as before."
        )
    log.warning("The global batch was %d and is %d now: the run is another one from here.", before, now)
    return int(samples // now)
