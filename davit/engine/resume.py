"""What is saved of a run, and how another process goes on from it."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from . import state as saved
from .runlog import plain
from .totals import EpochTotals

if TYPE_CHECKING:
    from .train import Trainer

log = logging.getLogger(__name__)

# flags that say where and how, not what
_MAY_DIFFER = {
    "config",
    "data_dir",
    "output",
    "experiment",
    "overwrite",
    "resume",
    "auto_resume",
    "no_resume_opt",
    "workers",
    "pin_mem",
    "log_interval",
    "recovery_interval",
    "log_tensorboard",
    "log_wandb",
    "device",
    "local_rank",
    "save_images",
    "dry_run",
    "checkpoint_hist",
    "input_size",
    "mean",
    "std",
    "crop_pct",
    "crop_mode",
    "interpolation",
    "num_classes",
    "validation_batch_size_multiplier",
}
# flags whose values the optimizer and the scheduler hold
_SCHEDULE_FLAGS = {
    "lr",
    "weight_decay",
    "layer_decay",
    "momentum",
    "opt_eps",
    "opt_betas",
    "sched",
    "sched_on_updates",
    "epochs",
    "warmup_epochs",
    "warmup_lr",
    "warmup_prefix",
    "min_lr",
    "cooldown_epochs",
    "decay_epochs",
    "decay_milestones",
    "decay_rate",
    "patience_epochs",
    "lr_noise",
    "lr_noise_pct",
    "lr_noise_std",
    "lr_cycle_mul",
    "lr_cycle_limit",
    "lr_cycle_decay",
    "lr_k_decay",
}


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


def open_folder(args: Namespace, config: dict[str, Any]) -> tuple[saved.RunFolder, dict[str, Any] | None]:
    """The folder of a run, and the state that it goes on from, if any. For the main process.

    Raises:
        ValueError: the folder holds another run, or one is writing there (also `CheckpointError`: no whole state).
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    path = saved.run_path(args, config, args.auto_resume or restarted)
    folder = saved.RunFolder(path, args.checkpoint_hist, higher_is_better=args.eval_metric != "loss")
    try:
        return folder, _starting_state(args, folder, args.auto_resume or restarted)
    except BaseException:
        folder.close()
        raise


def _starting_state(args: Namespace, folder: saved.RunFolder, resuming: bool) -> dict[str, Any] | None:
    """Make the folder ready to be written to; the state that the run goes on from, if any."""
    path = folder.path
    folder.remove_partials()
    if resuming:
        found = folder.newest_whole()
        if found is not None:
            file, state = found
            log.info("Going on from %s.", file)
            folder.make_last(file)
            if state["step"] == 0 and state["metric"] is not None:  # killed between saving and keeping
                kept = {int(epoch): metric for epoch, metric in state["kept"].items()}
                state["kept"] = folder.keep_epoch(state["epoch"] - 1, state["metric"], kept)
            return state
        log.info("Nothing to resume in %s: starting anew.", path)
    elif folder.holds_a_run():
        if not args.overwrite:
            raise ValueError(
                f"{path} holds an earlier run: pass --auto-resume to go on with it, --overwrite to replace it, "
                "or another --experiment."
            )
        folder.clear()
    log.info("Writing to %s.", path)
    return _read_any(Path(args.resume)) if args.resume else None


def _read_any(path: Path) -> dict[str, Any]:
    """A state of ours, or another trainer's checkpoint as weights and epoch."""
    try:
        return saved.read_state(path)
    except CheckpointError:
        checkpoint = read_checkpoint(path, ema="never")  # knows more formats, and says better what is wrong
        return {"state_dict": checkpoint.state_dict, "epoch": checkpoint.metadata.get("epoch", -1)}


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a run where a saved state was; from a foreign checkpoint, its weights and epoch."""
    args = trainer.args
    if args.no_resume_opt or state.get("format") != saved.FORMAT:
        load_checkpoint(trainer.model, {"state_dict": state["state_dict"]}, head="require")
        if not args.no_resume_opt:
            trainer.epoch = int(state.get("epoch", -1)) + 1
            trainer.scheduler.step(trainer.epoch)
            log.warning(
                "The checkpoint was not written by this trainer: its weights and epoch are used, the "
                "optimizer starts anew."
            )
        return
    load_checkpoint(trainer.model, {"state_dict": state["state_dict"]}, head="require")
    if trainer.ema is not None:
        trainer.ema.module.load_state_dict(state.get("state_dict_ema", state["state_dict"]))
    trainer.epoch, trainer.start_step = state["epoch"], _position(trainer, state)
    _restore_optimizer(trainer, state, _changed(args, state["args"]))
    trainer.totals = EpochTotals(**state["totals"])
    trainer.kept = {int(epoch): metric for epoch, metric in state["kept"].items()}
    trainer.bad_images = state["bad_images"]
    log.info("Resumed at epoch %d, step %d.", trainer.epoch, trainer.start_step)


def _changed(args: Namespace, then: dict[str, Any]) -> set[str]:
    """Names of the flags that differ from the interrupted run's; each is said aloud."""
    changed = set()
    for name, value in plain(vars(args)).items():
        if name in then and then[name] != value and name not in _MAY_DIFFER:
            changed.add(name)
            log.warning("--%s was %r and is %r from here on.", name.replace("_", "-"), then[name], value)
    return changed


def _restore_optimizer(trainer: Trainer, state: dict[str, Any], changed: set[str]) -> None:
    """The optimizer's moments, and the schedule: the saved one, or anew if its flags changed."""
    optimizer, scheduler = trainer.stepper.optimizer, trainer.scheduler
    anew = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    trainer.stepper.load_state_dict(state)
    if not changed & _SCHEDULE_FLAGS:
        scheduler.load_state_dict(state["scheduler"])
        return
    for group, values in zip(optimizer.param_groups, anew, strict=True):
        group.update(values)
    scheduler.step(trainer.epoch)
    scheduler.step_update(trainer.epoch * trainer.train_loader.steps_per_epoch + trainer.start_step)


def _position(trainer: Trainer, state: dict[str, Any]) -> int:
    """The step within the epoch, where the global batch may have changed."""
    before, now = state["global_batch"], trainer.train_loader.global_batch
    if before == now:
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
