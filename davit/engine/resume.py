"""What is saved of a run, and how another process goes on from it."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any, Protocol

from timm.scheduler import PlateauLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from ..checkpoint import load_checkpoint, read_contents, unwrap
from ..data import TrainLoader
from . import run_folder as saved
from .build import Data
from .distributed import World
from .precision import Precision
from .run_log import check_loggers, plain
from .steps import EpochTotals, Stepper

log = logging.getLogger(__name__)

_FOLDER = "davit/folder"  # under which a job remembers its folder over restarts

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
    # what comes of them depends on the machine, is recorded as the state's precision and compared on its own
    "amp",
    "native_amp",
    "apex_amp",
    "amp_dtype",
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


class Run(Protocol):
    """What is saved of a run and put back: its parts, and where it stands. `davit.engine.train.Trainer` is one."""

    args: Namespace
    config: dict[str, Any]
    data: Data
    model: nn.Module
    ema: ModelEmaV3 | None
    stepper: Stepper
    scheduler: Any
    train_loader: TrainLoader
    epoch: int
    start_step: int
    totals: EpochTotals
    kept: dict[int, float]
    bad_images: dict[str, str]
    precision: Precision

    def flags(self) -> dict[str, Any]:
        """Every flag's value, for the record."""

    def enter_schedule(self) -> None:
        """Set the learning rate of the place where the run is, as if it had come there step by step."""


def state_of(run: Run, epoch: int, step: int, metric: float | None) -> dict[str, Any]:
    """Everything that a run going on from (epoch, step) needs, as plain values and tensors."""
    return {
        "format": saved.FORMAT,
        "arch": run.args.model,
        "epoch": epoch,
        "step": step,
        "metric": metric,
        "global_batch": run.train_loader.global_batch,
        "state_dict": run.model.state_dict(),
        **({"state_dict_ema": run.ema.module.state_dict()} if run.ema else {}),
        **run.stepper.state_dict(),
        "scheduler": plain(run.scheduler.state_dict()),
        **_plateau(run.scheduler),
        "totals": vars(run.totals),
        "kept": run.kept,
        "bad_images": run.bad_images,
        "args": {**run.flags(), **plain(_data_words(run))},
        "precision": run.precision.name,
        "class_names": run.data.class_names,
    }


def _plateau(scheduler: Any) -> dict[str, Any]:
    """What --sched plateau remembers of earlier metrics, which timm leaves out of its state."""
    if not isinstance(scheduler, PlateauLRScheduler):
        return {}
    return {"plateau": plain({"rule": scheduler.lr_scheduler.state_dict(), "restore_lr": scheduler.restore_lr})}


def _data_words(run: Run) -> dict[str, Any]:
    """What evaluation needs to read pictures as this run did."""
    return {
        "num_classes": run.data.num_classes,
        "input_size": run.config["input_size"],
        "mean": run.config["mean"],
        "std": run.config["std"],
        "crop_pct": run.config["crop_pct"],
        "crop_mode": run.config["crop_mode"],
        "interpolation": run.config["interpolation"],
    }


def open_folder(
    args: Namespace, config: dict[str, Any], world: World
) -> tuple[saved.RunFolder, dict[str, Any] | None, bool]:
    """The folder of a run, the state that it goes on from, if any, and whether that is the run's own.

    For the main process. A job that torchrun restarted goes on in the folder that it had opened, without
    --auto-resume; one that had opened none yet is as new.

    Raises:
        ValueError: the folder holds another run, or one is writing there (also `CheckpointError`: no whole state).
    """
    check_loggers(tensorboard=args.log_tensorboard, wandb=args.log_wandb)
    opened = world.recall(_FOLDER)
    path = Path(opened) if opened is not None else saved.run_path(args, config)
    folder = saved.RunFolder(path, args.checkpoint_hist, higher_is_better=args.eval_metric != "loss")
    try:
        folder.remove_partials()
        state = _newest(folder) if args.auto_resume or opened is not None else None
        own = state is not None
        if state is None and args.resume:
            state = read_any(Path(args.resume))  # before anything is removed: it may lie in this folder
        if not own and opened is None and folder.holds_a_run():
            _make_room(folder, args)
        world.remember(_FOLDER, str(path))
    except BaseException:
        folder.close()
        raise
    if not own:
        log.info("Writing to %s.", path)
    return folder, state, own


def _newest(folder: saved.RunFolder) -> dict[str, Any] | None:
    """The newest whole state of a run's folder, made its last one."""
    found = folder.newest_whole()
    if found is None:
        log.info("Nothing to resume in %s: starting anew.", folder.path)
        return None
    file, state = found
    log.info("Going on from %s.", file)
    folder.make_last(file)
    if state["step"] == 0 and state["metric"] is not None:  # killed between saving and keeping
        kept = {int(epoch): metric for epoch, metric in state["kept"].items()}
        state["kept"] = folder.keep_epoch(state["epoch"] - 1, state["metric"], kept)
    return state


def _make_room(folder: saved.RunFolder, args: Namespace) -> None:
    if args.auto_resume:
        return  # a summary, and no state yet: the interrupted run had not come far
    if not args.overwrite:
        raise ValueError(
            f"{folder.path} holds an earlier run: pass --auto-resume to go on with it, --overwrite to replace it, "
            "or another --experiment."
        )
    folder.clear()


def read_any(path: Path) -> dict[str, Any]:
    """Read a state of ours, or another trainer's checkpoint: weights, their average if it has one, and epoch."""
    contents, _ = read_contents(path)
    if isinstance(contents, dict) and contents.get("format") == saved.FORMAT:
        return contents
    checkpoint, averaged = unwrap(contents, str(path), ema="never"), unwrap(contents, str(path))
    epoch = checkpoint.metadata.get("epoch")
    return {
        "state_dict": checkpoint.state_dict,
        "epoch": epoch if isinstance(epoch, int) else -1,
        **({"state_dict_ema": averaged.state_dict} if averaged.ema else {}),
    }


def restore(run: Run, state: dict[str, Any], own: bool) -> None:
    """Put a run where a saved state was.

    Args:
        own: the state is of this very run (--auto-resume, a restart), rather than the file of --resume. Then
            --no-resume-opt and --start-epoch have had their effect already.
    """
    args = run.args
    whole = state.get("format") == saved.FORMAT
    if not whole:
        log.warning(
            "The checkpoint was not written by this trainer: its weights and epoch are used, the optimizer starts "
            "anew."
        )
    load_checkpoint(run.model, {"state_dict": state["state_dict"]}, head="require")
    if run.ema is not None:
        load_checkpoint(run.ema.module, state.get("state_dict_ema", state["state_dict"]), head="require")
        run.stepper.updates = 1  # else the first update would put the weights in the average's place
    if not whole:  # it names the epoch that it ends
        run.epoch = int(state["epoch"]) + 1
    else:
        run.epoch, run.start_step = state["epoch"], _position(run, state)
    if args.start_epoch is not None and not own:
        run.epoch, run.start_step = args.start_epoch, 0
    if whole and (own or not args.no_resume_opt):
        _restore_optimizer(run, state, _changed(args, state["args"]))
    else:
        run.enter_schedule()
    if whole:
        run.bad_images = state["bad_images"]
    if own:  # those of --resume lie in another folder
        run.kept = {int(epoch): metric for epoch, metric in state["kept"].items()}
    if run.start_step:
        run.totals = EpochTotals(**state["totals"])
    log.info("Resumed at epoch %d, step %d.", run.epoch, run.start_step)


def _changed(args: Namespace, then: dict[str, Any]) -> set[str]:
    """Names of the flags that differ from the interrupted run's; each is said aloud."""
    changed = set()
    for name, value in plain(vars(args)).items():
        if name in then and then[name] != value and name not in _MAY_DIFFER:
            changed.add(name)
            log.warning("--%s was %r and is %r from here on.", name.replace("_", "-"), then[name], value)
    return changed


def _restore_optimizer(run: Run, state: dict[str, Any], changed: set[str]) -> None:
    """The optimizer's moments, and the schedule: the saved one, or anew if its flags changed."""
    optimizer, scheduler = run.stepper.optimizer, run.scheduler
    if "opt" in changed:
        raise ValueError(
            f"the state was saved with --opt {state['args']['opt']}, whose moments --opt {run.args.opt} cannot "
            "take over: keep the optimizer, or start a new run from the weights with --resume FILE --no-resume-opt."
        )
    anew = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    run.stepper.load_state_dict(state)
    if not changed & _SCHEDULE_FLAGS:
        scheduler.load_state_dict(state["scheduler"])
        if isinstance(scheduler, PlateauLRScheduler):
            scheduler.lr_scheduler.load_state_dict(state["plateau"]["rule"])
            scheduler.restore_lr = state["plateau"]["restore_lr"]
        return
    for group, values in zip(optimizer.param_groups, anew, strict=True):
        group.update(values)
    run.enter_schedule()


def _position(run: Run, state: dict[str, Any]) -> int:
    """The step within the epoch, where the global batch may have changed."""
    before, now = state["global_batch"], run.train_loader.global_batch
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
