"""Save the state of a run's parts and where the run stands, and put both back."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from timm.scheduler import PlateauLRScheduler

from ..checkpoint import load_checkpoint
from ..data import in_other_order
from .build import Parts
from .run_folder import FORMAT
from .run_log import plain
from .steps import EpochTotals

log = logging.getLogger(__name__)

# flags that say where and how, not what
_MAY_DIFFER = {
    *(
        "config",
        "data_dir",
        "dataset",
        "input_key",
        "target_key",
        "output",
        "experiment",
        "overwrite",
        "resume",
        "auto_resume",
        "no_resume_opt",
        "dry_run",
    ),
    *("workers", "pin_mem", "log_interval", "recovery_interval", "checkpoint_hist", "save_images", "device"),
    *("log_tensorboard", "log_wandb", "local_rank", "validation_batch_size_multiplier"),
    *("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "num_classes"),
    # what comes of them depends on the machine, is recorded as the state's precision and compared on its own
    *("amp", "native_amp", "apex_amp", "amp_dtype"),
}
# flags whose values the optimizer and the scheduler hold
_SCHEDULE_FLAGS = {
    *("lr", "weight_decay", "layer_decay", "momentum", "opt_eps", "opt_betas", "sched", "sched_on_updates"),
    *("epochs", "warmup_epochs", "warmup_lr", "warmup_prefix", "min_lr", "cooldown_epochs", "patience_epochs"),
    *("decay_epochs", "decay_milestones", "decay_rate", "lr_noise", "lr_noise_pct", "lr_noise_std"),
    *("lr_cycle_mul", "lr_cycle_limit", "lr_cycle_decay", "lr_k_decay"),
}


@dataclass
class Standing:
    """Where a run stands.

    Attributes:
        epoch, step: the next step to be done; after an epoch's last step, its evaluation.
        totals: sums over the steps done of this epoch.
        kept: epoch -> metric of the checkpoints that are kept.
        bad_images: file -> reason of the pictures left out so far.
    """

    epoch: int = 0
    step: int = 0
    totals: EpochTotals = field(default_factory=EpochTotals)
    kept: dict[int, float] = field(default_factory=dict)
    bad_images: dict[str, str] = field(default_factory=dict)


def state_of(parts: Parts, standing: Standing, flags: dict[str, Any], metric: float | None = None) -> dict[str, Any]:
    """Gather everything that a run going on from here needs, as plain values and tensors.

    Args:
        flags: every flag's value, for the record.
        metric: of the epoch that ended here, if one did.
    """
    scheduler, plateau = parts.scheduler, {}
    preparation = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")  # as evaluation needs it
    pictures = {"num_classes": parts.data.num_classes, **{name: parts.config[name] for name in preparation}}
    if isinstance(scheduler, PlateauLRScheduler):  # what it remembers of earlier metrics, which timm leaves out
        memory = {"rule": scheduler.lr_scheduler.state_dict(), "restore_lr": scheduler.restore_lr}
        plateau = {"plateau": plain(memory)}
    return {
        "format": FORMAT,
        "arch": flags["model"],
        "epoch": standing.epoch,
        "step": standing.step,
        "metric": metric,
        "global_batch": parts.train_loader.global_batch,
        "state_dict": parts.model.state_dict(),
        **({"state_dict_ema": parts.ema.module.state_dict()} if parts.ema else {}),
        **parts.stepper.state_dict(),
        "scheduler": plain(scheduler.state_dict()),
        **plateau,
        "totals": vars(standing.totals),
        "kept": standing.kept,
        "bad_images": standing.bad_images,
        "args": {**flags, **plain(pictures)},
        "precision": parts.precision.name,
        "class_names": parts.data.class_names,
    }


def restore(parts: Parts, state: dict[str, Any], flags: dict[str, Any], is_own: bool) -> Standing:
    """Put the parts of a run where a saved state was, and return where the run goes on.

    Args:
        flags: every flag's value now, to be compared with those of the state.
        is_own: as `Opened` has it. Then --start-epoch and --no-resume-opt have had their effect already.
    """
    is_ours = state.get("format") == FORMAT
    if not is_ours:
        log.warning(
            "The checkpoint was not written by this trainer: its weights and epoch are used, the optimizer starts "
            "anew."
        )
    _compare_classes(parts.data.class_names, state.get("class_names"))
    load_checkpoint(parts.model, {"state_dict": state["state_dict"]}, head="require")
    if parts.ema is not None:
        load_checkpoint(parts.ema.module, state.get("state_dict_ema", state["state_dict"]), head="require")
        parts.stepper.updates = 1  # else the first update would put the weights in the average's place
    if flags["start_epoch"] is not None and not is_own:
        standing = Standing(flags["start_epoch"])
    elif is_ours:
        standing = Standing(state["epoch"], _position(parts, state))
    else:  # it names the epoch that it ends
        standing = Standing(int(state["epoch"]) + 1)
    if is_ours and (is_own or not flags["no_resume_opt"]):
        _restore_optimizer(parts, standing, state, flags)
    else:
        enter_schedule(parts, standing)
    if is_ours:
        standing.bad_images = state["bad_images"]
    if is_own:  # those of --resume lie in another folder
        standing.kept = {int(epoch): metric for epoch, metric in state["kept"].items()}
    if standing.step:
        standing.totals = EpochTotals(**state["totals"])
    log.info("Resumed at epoch %d, step %d.", standing.epoch, standing.step)
    return standing


def _compare_classes(names: Sequence[str], before: Any) -> None:
    """Compare the data's classes with those that a state was trained on.

    Raises:
        ValueError: they are the same in another order, so that going on would confuse them.
    """
    if not isinstance(before, list) or len(before) != len(names):
        return
    if other := in_other_order(before, names):
        raise ValueError(
            f"the state was trained on the same classes in another order: {other}. Give the same --class-map as then, "
            "or a file with the names in that order."
        )
    if differing := [(one, two) for one, two in zip(before, names, strict=True) if one != two]:
        log.warning(
            "%d of %d classes are called otherwise than in the state (%s there, %s here): taken for the same ones.",
            *(len(differing), len(names), *differing[0]),
        )


def enter_schedule(parts: Parts, standing: Standing) -> None:
    """Set the learning rate of the place where the run is, as if it had come there step by step."""
    scheduler = parts.scheduler
    past = getattr(scheduler, "warmup_t", 0) if isinstance(scheduler, PlateauLRScheduler) else math.inf
    scheduler.step(int(min(standing.epoch, past)))  # a plateau's rate after the warm-up depends on metrics
    scheduler.step_update(standing.epoch * parts.train_loader.steps_per_epoch + standing.step)


def _restore_optimizer(parts: Parts, standing: Standing, state: dict[str, Any], flags: dict[str, Any]) -> None:
    """Put back the optimizer's moments, and the schedule: the saved one, or anew if its flags changed."""
    optimizer, scheduler = parts.stepper.optimizer, parts.scheduler
    changed = _changed(flags, state["args"])
    if "opt" in changed:
        raise ValueError(
            f"the state was saved with --opt {state['args']['opt']}, whose moments --opt {flags['opt']} cannot "
            "take over: keep the optimizer, or start a new run from the weights with --resume FILE --no-resume-opt."
        )
    anew = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    parts.stepper.load_state_dict(state)
    if changed & _SCHEDULE_FLAGS:
        for group, values in zip(optimizer.param_groups, anew, strict=True):
            group.update(values)
        enter_schedule(parts, standing)
        return
    scheduler.load_state_dict(state["scheduler"])
    if isinstance(scheduler, PlateauLRScheduler):
        scheduler.lr_scheduler.load_state_dict(state["plateau"]["rule"])
        scheduler.restore_lr = state["plateau"]["restore_lr"]


def _changed(flags: dict[str, Any], before: dict[str, Any]) -> set[str]:
    """Find the flags that differ from the interrupted run's, and log each."""
    compared = [name for name in flags if name in before and name not in _MAY_DIFFER]
    changed = [name for name in compared if before[name] != flags[name]]
    for name in changed:
        log.warning("--%s was %r and is %r from here on.", name.replace("_", "-"), before[name], flags[name])
    return set(changed)


def _position(parts: Parts, state: dict[str, Any]) -> int:
    """Return the step within the epoch, where the global batch may have changed."""
    before, now = state["global_batch"], parts.train_loader.global_batch
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
