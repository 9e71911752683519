"""Save the state of a run's parts and where the run stands, and put both back."""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from timm.scheduler import PlateauLRScheduler
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_checkpoint, unwrap
from ..text import some
from .build import Parts, build_optimizer
from .data_facts import compare_classes, compare_files, compare_pairs, name_replaced
from .run_folder import FORMAT, has_our_format, judged_by
from .run_log import plain
from .state_check import are_alike, check_whole
from .steps import EpochTotals, parameter_names

log = logging.getLogger(__name__)

# flags that say where and how, not what
_MAY_DIFFER = {
    *("config", "data_dir", "dataset", "input_key", "target_key", "output", "experiment", "overwrite", "resume"),
    *("stop_epoch", "early_stop", "val_interval", "torchcompile_mode"),
    *("auto_resume", "no_resume_opt", "dry_run", "json", "accept_changed_data"),
    *("workers", "pin_mem", "log_interval", "recovery_interval", "checkpoint_hist", "save_images", "device"),
    *("keep_epochs", "global_batch"),
    *("log_tensorboard", "log_wandb", "local_rank", "validation_batch_size_multiplier"),
    *("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "num_classes"),
    # what comes of them depends on the machine, is recorded as the state's precision and compared on its own
    *("amp", "native_amp", "apex_amp", "amp_dtype"),
}
# flags whose values the optimizer and the scheduler hold
_SCHEDULE_FLAGS = {
    *("head_lr_scale", "layer_decay_min_scale", "opt_kwargs"),
    *("lr", "weight_decay", "layer_decay", "momentum", "opt_eps", "opt_betas", "sched", "sched_on_updates"),
    *("epochs", "warmup_epochs", "warmup_lr", "warmup_prefix", "min_lr", "cooldown_epochs", "patience_epochs"),
    *("decay_epochs", "decay_milestones", "decay_rate", "lr_noise", "lr_noise_pct", "lr_noise_std"),
    *("lr_cycle_mul", "lr_cycle_limit", "lr_cycle_decay", "lr_k_decay"),
}
_GROUPING_FLAGS = ("weight_decay", "layer_decay")  # by which timm groups the parameters
# how images are prepared, as evaluation needs it too
_PREPARATION = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")


@dataclass
class Standing:
    """Where a run stands.

    Attributes:
        epoch, step: the next step to be done; after an epoch's last step, its evaluation.
        totals: sums over the steps done of this epoch.
        kept: epoch -> metric of the checkpoints that are kept.
        results: epoch -> all that was measured of these, by name.
        is_judged_anew: the metric of kept epochs is another than in the folder that the run continues in.
        aside: epochs kept there whose metric cannot be compared with those of today.
        bad_images: file -> reason of the images left out so far.
    """

    epoch: int = 0
    step: int = 0
    totals: EpochTotals = field(default_factory=EpochTotals)
    kept: dict[int, float] = field(default_factory=dict)
    results: dict[int, dict[str, float]] = field(default_factory=dict)
    is_judged_anew: bool = False
    aside: set[int] = field(default_factory=set)
    bad_images: dict[str, str] = field(default_factory=dict)


def metric_name(parts: Parts, flags: Mapping[str, Any]) -> str:
    """Name what the best epoch is judged by: --eval-metric, of the average of the weights where there is one."""
    return f"{'ema' if parts.ema else 'eval'}_{flags['eval_metric']}"


def state_of(
    parts: Parts,
    standing: Standing,
    flags: dict[str, Any],
    facts: dict[str, dict[str, Any]],
    metric: float | None = None,
) -> dict[str, Any]:
    """Gather everything that a run continuing from here needs, as plain values and tensors.

    Args:
        flags: every flag's value, for the record.
        facts: of the data, as `facts_of` gives them.
        metric: of the epoch that ended here, if one did.
    """
    scheduler, plateau = parts.scheduler, {}
    pictures = {"num_classes": parts.data.num_classes, **{name: parts.config[name] for name in _PREPARATION}}
    if parts.sizes is not None:
        pictures["img_size"] = parts.sizes.sizes[-1]
    if isinstance(scheduler, PlateauLRScheduler):  # what it remembers of earlier metrics, which timm leaves out
        memory = {"rule": scheduler.lr_scheduler.state_dict(), "restore_lr": scheduler.restore_lr}
        plateau = {"plateau": plain(memory)}
    return {
        "format": FORMAT,
        "arch": flags["model"],
        "epoch": standing.epoch,
        "step": standing.step,
        "num_epochs": parts.num_epochs,
        "steps_per_epoch": parts.train_loader.steps_per_epoch,
        "metric": metric,
        "metric_name": metric_name(parts, flags),
        "global_batch": parts.train_loader.global_batch,
        "micro_batch": parts.train_loader.sampler.batch_size,
        "eval_batch": parts.val_loader.batch_size,
        **({} if parts.sizes is None else {"sizes": flags["img_size"]}),
        "state_dict": parts.model.state_dict(),
        **({"state_dict_ema": parts.ema.module.state_dict()} if parts.ema else {}),
        **parts.stepper.state_dict(),
        "scheduler": plain(scheduler.state_dict()),
        **plateau,
        "totals": vars(standing.totals),
        "kept": standing.kept,
        "results": standing.results,
        "bad_images": standing.bad_images,
        **({"adapter_config": parts.model.adapter_config} if hasattr(parts.model, "adapter_config") else {}),
        "args": {**flags, **plain(pictures)},
        "precision": parts.precision.name,
        "class_names": parts.data.class_names,
        "data": facts,
    }


@contextmanager
def _edited_states_named() -> Iterator[None]:
    """Make one error of what a state lacks or has of another type."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise CheckpointError(
            f"the checkpoint does not hold what a run needs to continue ({type(error).__name__}: {error}): it was "
            "edited, or written by another program."
        ) from error


@_edited_states_named()
def restore(
    parts: Parts,
    state: dict[str, Any],
    flags: dict[str, Any],
    facts: dict[str, dict[str, Any]],
    is_own: bool,
    accepted: bool = False,
) -> Standing:
    """Put the parts of a run where a saved state was, and return where the run continues.

    Args:
        flags: every flag's value now, to be compared with those of the state.
        facts: of the data now, likewise.
        is_own: as `Opened` has it. Then --start-epoch and --no-resume-opt have had their effect already.
        accepted: other data are no error (--accept-changed-data).

    Raises:
        CheckpointError: the state is not whole, or its values are not of the types that they have to be.
        ValueError: the data, the model or the flags do not fit the state.
    """
    is_ours = has_our_format(state)
    changed: set[str] = set()
    if is_ours:
        check_whole(state)
        same_outputs = state["args"].get("num_classes", parts.data.num_classes) == parts.data.num_classes
        names = parts.data.class_names
        compare_classes(state["class_names"], names, same_outputs=same_outputs, accepted=accepted)
        compare_pairs(state.get("data"), facts, names, accepted=accepted)
        starts_anew = flags["start_epoch"] is not None and not is_own
        step = 0 if starts_anew or state["step"] == state.get("steps_per_epoch") else state["step"]
        changed = compare_files(
            state.get("data"),
            facts,
            epoch=state["epoch"],
            step=step,
            pictures=step * state["global_batch"],
            accepted=accepted,
        )
        name_replaced(state.get("data"), facts, parts.data)
        _compare_preparation(parts, state["args"])
    else:
        log.warning(
            "The checkpoint was not written by this trainer: its weights and epoch are used, the optimizer starts "
            "anew."
        )
    _load_weights(parts.model, state["state_dict"])
    if parts.ema is not None:
        _load_weights(parts.ema.module, state.get("state_dict_ema", state["state_dict"]))
        parts.stepper.updates = 1  # else the first update would put the weights in the average's place
    if flags["start_epoch"] is not None and not is_own:
        standing = Standing(flags["start_epoch"])
    elif is_ours:
        standing = Standing(state["epoch"], _position(parts, state, train_changed="train" in changed))
    else:  # it names the epoch that it ends
        standing = Standing(int(state["epoch"]) + 1)
    if is_ours and (is_own or not flags["no_resume_opt"]):
        _restore_optimizer(parts, standing, state, flags)
    else:
        enter_schedule(parts, standing)
    if is_ours:
        standing.bad_images = state["bad_images"]
    if is_own and is_ours:  # those of --resume lie in another folder
        _restore_kept(standing, state, metric_name(parts, flags), val_changed="val" in changed)
    if standing.step:
        standing.totals = EpochTotals(**state["totals"])
    log.info("Resumed at epoch %d, step %d.", standing.epoch, standing.step)
    return standing


def _load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        load_checkpoint(model, unwrap({"state_dict": weights}, "the checkpoint to continue from"), head="require")
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} A run continues with the model that it began with. For another one name another folder "
            "(--experiment), and these weights, if they are to start it, with --initial-checkpoint."
        ) from error


def _restore_kept(standing: Standing, state: dict[str, Any], name: str, val_changed: bool) -> None:
    """Take over the kept epochs, judged by the metric of today; those that have none to compare are set aside."""
    kept = {int(epoch): float(metric) for epoch, metric in state["kept"].items()}
    results = {int(epoch): dict(found) for epoch, found in state.get("results", {}).items() if int(epoch) in kept}
    before = judged_by(state)
    if not val_changed and before in (None, name):
        standing.kept, standing.results = kept, results
        return
    standing.is_judged_anew = True
    if val_changed:
        standing.aside = {*kept}
        return
    metric = name.partition("_")[2]
    for epoch in kept:
        # of the weights that are taken from that checkpoint: the average, if it has one
        found = [results.get(epoch, {}).get(f"{which}_{metric}") for which in ("ema", "eval")]
        value = next((value for value in found if value is not None), None)
        if value is None:
            standing.aside.add(epoch)
        else:
            standing.kept[epoch], standing.results[epoch] = value, results[epoch]
    log.warning(
        "The best epoch was judged by %s and is judged by %s from here on: %s.",
        before,
        name,
        ", ".join(f"epoch {epoch} {value:.4g}" for epoch, value in standing.kept.items()) or "none so far",
    )
    if standing.aside:
        log.warning("Epochs %s have no %s to compare and are set aside.", some(sorted(standing.aside)), name)


def _compare_preparation(parts: Parts, before: Mapping[str, Any]) -> None:
    """Warn where images are prepared in another way than the state's were."""
    for name in _PREPARATION:
        now = plain(parts.config[name])
        if name in before and before[name] != now:
            log.warning("Images were prepared with %s %r, and are with %r from here on.", name, before[name], now)


def enter_schedule(parts: Parts, standing: Standing) -> None:
    """Set the learning rate of the place where the run is, as if it had come there step by step."""
    scheduler = parts.scheduler
    past = getattr(scheduler, "warmup_t", 0) if isinstance(scheduler, PlateauLRScheduler) else math.inf
    scheduler.step(int(min(standing.epoch, past)))  # a plateau's rate after the warm-up depends on metrics
    scheduler.step_update(standing.epoch * parts.train_loader.steps_per_epoch + standing.step)


def _restore_optimizer(parts: Parts, standing: Standing, state: dict[str, Any], flags: dict[str, Any]) -> None:
    """Put back the optimizer's moments, and the schedule: the saved one, or again if its flags changed."""
    optimizer, scheduler = parts.stepper.optimizer, parts.scheduler
    sizes = {"img_size": state["sizes"]} if "sizes" in state else {}
    changed = _changed(flags, {**state["args"], **sizes})
    if "opt" in changed:
        raise ValueError(
            f"the checkpoint was saved with --opt {state['args']['opt']}, whose moments --opt {flags['opt']} cannot "
            "take over: keep the optimizer, or start a new run from the weights with --resume FILE --no-resume-opt."
        )
    anew = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    same_groups = parts.stepper.load_state_dict(state, _names_then(parts, state, flags))
    steps = parts.train_loader.steps_per_epoch
    # a schedule of updates has the length of an epoch in it
    same_length = getattr(scheduler, "t_in_epochs", True) or state.get("steps_per_epoch", steps) == steps
    if changed & _SCHEDULE_FLAGS or not same_groups or not same_length:
        for group, values in zip(optimizer.param_groups, anew, strict=True):
            group.update(values)
        enter_schedule(parts, standing)
        return
    fresh = scheduler.state_dict()
    saved = {key: value for key, value in state["scheduler"].items() if key in fresh}
    if not are_alike(fresh, saved) or not all(map(are_alike, anew, optimizer.param_groups)):
        raise CheckpointError("the checkpoint's schedule or optimizer has values of other types than this run's.")
    scheduler.load_state_dict(saved)
    if isinstance(scheduler, PlateauLRScheduler):
        rule, fresh = scheduler.lr_scheduler, scheduler.lr_scheduler.state_dict()
        if not are_alike(fresh, state["plateau"]["rule"]):
            raise CheckpointError("the checkpoint's schedule has values of other types than this run's.")
        rule.load_state_dict(state["plateau"]["rule"])
        if judged_by(state) not in (None, metric_name(parts, flags)):  # what was best is a value of another metric
            rule.load_state_dict({key: fresh[key] for key in ("mode", "mode_worse", "best", "num_bad_epochs")})
        scheduler.restore_lr = state["plateau"]["restore_lr"]
    if standing.step == 0 and state["step"]:  # the epoch starts again
        scheduler.step_update(standing.epoch * steps)


def _names_then(parts: Parts, state: dict[str, Any], flags: dict[str, Any]) -> list[list[str]]:
    """Name the parameters in each group of the state's optimizer.

    A state of an earlier version does not name them; then they are those that its flags give this model.

    Raises:
        ValueError: such a state has other groups than that.
    """
    optimizer, sizes = parts.stepper.optimizer, [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    if "parameters" in state:
        found = [state["parameters"]]
    else:
        found = [parameter_names(optimizer, parts.stepper.trainable)]
        then = Namespace(**{**flags, **state["args"]})
        if any(getattr(then, name) != flags[name] for name in _GROUPING_FLAGS):
            found = [parameter_names(build_optimizer(then, parts.model), parts.model)]
    for names in found:
        if [len(group) for group in names] == sizes:
            return names
    raise ValueError(
        f"the checkpoint's optimizer has groups of {sizes} parameters, which cannot be told by name: continue with "
        "the flags of then, or start a new run from the weights with --resume FILE --no-resume-opt."
    )


def _changed(flags: dict[str, Any], before: dict[str, Any]) -> set[str]:
    """Find the flags that differ from the interrupted run's, and log each."""
    compared = [name for name in flags if name in before and name not in _MAY_DIFFER]
    changed = [name for name in compared if before[name] != flags[name]]
    for name in changed:
        log.warning("--%s was %r and is %r from here on.", name.replace("_", "-"), before[name], flags[name])
    return set(changed)


def _position(parts: Parts, state: dict[str, Any], train_changed: bool) -> int:
    """Return the step within the epoch, where the global batch or the training images may have changed."""
    loader, step = parts.train_loader, int(state["step"])
    before, now = state["global_batch"], loader.global_batch
    if step and step == state.get("steps_per_epoch"):  # trained, and yet to be evaluated
        return loader.steps_per_epoch
    if train_changed:
        return 0
    if before != now:
        samples = step * before
        if samples % now:
            raise ValueError(
                f"the checkpoint was saved in the middle of an epoch, after {samples} images, which is no multiple of "
                f"the global batch of {now} (it was {before}): choose --batch-size, --grad-accum-steps and "
                "processes so that their product is the same as before."
            )
        log.warning("The global batch was %d and is %d now: the run is another one from here.", before, now)
        step = int(samples // now)
    if step > loader.steps_per_epoch:
        raise ValueError(
            f"the checkpoint was saved at step {step} of an epoch, which has {loader.steps_per_epoch} steps now: "
            "there are fewer images than then, or --epoch-repeats has changed. Put back what it was, or start a new "
            "run from the weights with --resume FILE --start-epoch N."
        )
    return step
