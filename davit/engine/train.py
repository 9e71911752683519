"""Train: build, try out, resume, loop, save. One loop for one process or many machines."""

from __future__ import annotations

import copy
import logging
import sys
import time
import timeit
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch
from timm.utils import distribute_bn
from torch import nn

from .. import recipes
from ..commands import RESUME, Interrupted, log_of_rank, run_cli, stop_signals
from ..data import Batch, prefetch, save_images, write_digits
from ..parsing.results import as_json, json_alone, put
from ..seeding import seed_everything
from ..text import as_utf8
from .build import Parts, Task, build_optimizer, build_parts, mixes, name_model
from .data_facts import facts_of
from .distributed import StarvedError, StoppedError, World, close_world, init_world, is_out_of_memory
from .dry_run import DryRun, Watch, is_long, limit_of, step_seconds, timed
from .evaluate import Evaluation, peak_memory_mb
from .finetune import head_group
from .flags import (
    NO_LONGER,
    fit_decay,
    fit_metric,
    given_flags,
    parse_with_config,
    say_no_longer,
    say_unused,
    train_parser,
)
from .memory import AUTO, Trial, divisors, noted_batch, settle_batch, smaller, within_memory
from .nonfinite import report_nonfinite
from .precision import precision_from
from .progress import Progress
from .resume import Standing, enter_schedule, metric_name, restore, state_of
from .run_folder import BEST, FolderOptions, Opened, RunFolder, has_our_format, open_folder
from .run_log import RunLog, check_loggers, plain, write_args, write_bad_images
from .steps import EpochTotals, OnNonFinite, StepResult, reason_of

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run train.py; return its exit status (`davit.commands`). Without data it trains on the embedded digits."""
    log_of_rank()

    def work() -> None:
        args = parse_with_config(train_parser(), argv, recipes.folder_of("recipe") / "digits.yaml")
        given = given_flags(train_parser, argv)
        say_no_longer(NO_LONGER, {name for name in given if getattr(args, name)})  # args.yaml names those not used too
        say_unused(args)
        fit_decay(args, given)
        fit_metric(args, given)
        world = init_world(args.device)
        try:
            if args.data_dir is None and not args.dataset:
                args.data_dir = str(write_digits())
                log.info("No data folder given: training on scikit-learn's handwritten digits in %s.", args.data_dir)
            with json_alone(args.json):
                run(args, world)
        finally:
            close_world()

    return run_cli(work, when_full=RESUME)


def run(args: Namespace, world: World, task: Task | None = None) -> None:
    """Train as the flags say.

    Args:
        task: what is learnt; None for the classes of images.

    Raises:
        ValueError: the flags, the data or the checkpoint do not fit (also its subclasses).
        Interrupted: told to stop, and saved.
        NonFiniteError: a loss or gradient was NaN or infinite.
    """
    task = task or Task()
    name_model(args)
    if args.throughput and args.batch_size == AUTO:
        raise ValueError("--throughput needs a number of images: give --batch-size N.")
    is_auto = settle_batch(args, world.size, even=mixes(args))
    data = task.open_data(args, world)
    seed_everything(args.seed)  # the same initial weights in every process
    model = task.build_model(args, data)
    config = task.prepare(args, data, model)
    model.to(world.device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.sync_bn and world.is_distributed and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)

    def tell(document: dict[str, Any]) -> None:
        if args.json and world.is_main:
            put(as_json(document))

    if args.throughput:
        tell(measure_throughput(args, model, config, world))
        return
    parts = build_parts(args, model, data, config, world, task)
    # the flags of the precision as they came out on this machine; some flags are for one start alone
    asked = vars(args)
    precision = {name: value for name, value in parts.precision.flags.items() if name in asked}
    record = plain({**asked, **precision, "accept_changed_data": False, "json": False})
    if len(sizes := record.pop("sizes")) > 1:
        record["img_size"] = ",".join(map(str, sizes))
    options = RunOptions(**{flag.name: getattr(args, flag.name) for flag in fields(RunOptions)})
    trainer = Trainer(parts, options, record, world, is_auto=is_auto)
    try:
        if args.dry_run:
            parts.precision.say()
            trainer.settle_batch(None)
            trainer.dry_run(tell)
        else:
            trainer.prepare_folder()
            try:
                tell(trainer.document(trainer.fit()))
            except Interrupted:
                tell(trainer.document("interrupted"))
                raise
    finally:
        trainer.close()


def measure_throughput(
    args: Namespace, model: nn.Module, config: dict[str, Any], world: World
) -> dict[str, float | int]:
    """Log and return images/s of the forward pass on random images, the median of 30 batches after 10."""
    model.eval()
    precision = precision_from(args, world.device, world.everywhere)
    precision.say()
    model.to(precision.weights)
    images = torch.randn(args.batch_size, *config["input_size"], device=world.device, dtype=precision.weights)

    def forward() -> None:
        model(images)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)

    with torch.inference_mode(), precision.autocast():
        seconds = timeit.repeat(forward, number=1, repeat=40)
    speed, size = args.batch_size / median(seconds[10:]), args.batch_size
    log.info("%s: %.1f images/s in batches of %d on %s.", args.model, speed, size, world.device)
    return {"images_per_second": speed, "batch_size": size}


@dataclass(frozen=True)
class RunOptions(FolderOptions):
    """The flags that a run reads beside those of its parts; their names are the flags'."""

    lr: float
    batch_size: int
    grad_accum_steps: int
    validation_batch_size_multiplier: int
    aug_splits: int
    start_epoch: int | None
    stop_epoch: int | None
    early_stop: int | None
    val_interval: int
    no_resume_opt: bool
    accept_changed_data: bool
    mixup_off_epoch: int
    dist_bn: str
    channels_last: bool
    log_interval: int
    recovery_interval: int
    save_images: bool
    log_tensorboard: bool
    log_wandb: bool


class Trainer:
    """A run: its parts, where it stands, and the loop.

    Args:
        record: every flag's value, for the run's folder and its states.
        is_auto: the micro-batch is to be found by trying (--batch-size auto).
    """

    def __init__(
        self, parts: Parts, options: RunOptions, record: dict[str, Any], world: World, *, is_auto: bool = False
    ):
        self.parts, self.options, self.record, self.world = parts, options, record, world
        self.is_auto = is_auto
        share = parts.train_loader.global_batch // world.size
        # the sizes of micro-batches that divide a step evenly
        self.micro_batches = divisors(share, even=parts.stepper.mixup is not None)
        self._head_group = head_group(parts.stepper.optimizer, parts.model)
        self.standing = Standing(options.start_epoch or 0)
        if self.standing.epoch:
            enter_schedule(parts, self.standing)
        self.path = Path(options.output or "output")  # until the run's own folder is open
        self.facts: dict[str, dict[str, Any]] = {}  # of the data, noted once the folder is open
        self.folder: RunFolder | None = None
        self.run_log: RunLog | None = None
        self._size = 0  # of the training images so far, where it changes

    # ---- before a month of GPUs is spent ----

    def _announce(self) -> None:
        """Say what is about to be trained: model, data, global batch, rate and steps."""
        parts, options, loader = self.parts, self.options, self.parts.train_loader
        sampler, sizes = loader.sampler, parts.sizes
        log.info(
            "%s, %.2f M parameters, %d classes, %s px; %d training and %d validation images.",
            options.model,
            sum(p.numel() for p in parts.model.parameters()) / 1e6,
            parts.data.num_classes,
            "x".join(str(n) for n in parts.config["input_size"][1:]) if sizes is None else sizes,
            len(parts.data.train),
            len(parts.data.val),
        )
        log.info(
            "Global batch %d = %d images x %d process%s x %d micro-batch%s; learning rate %g, not scaled; "
            "%d epochs of %d steps = %d steps; %s on %s.",
            *(loader.global_batch, sampler.batch_size, self.world.size, "es" if self.world.size > 1 else ""),
            *(sampler.grad_accum_steps, "es" if sampler.grad_accum_steps > 1 else "", options.lr),
            *(parts.num_epochs, loader.steps_per_epoch, parts.num_epochs * loader.steps_per_epoch),
            *(parts.precision.name, self.world.device),
        )
        rates, head = [group["lr"] for group in parts.stepper.optimizer.param_groups], self._rate()
        if head and min(rates) < max(rates):
            log.info(
                "Layers learn at different rates, %.3g to %.3g of the classifier's, which is the lr of the log and of "
                "summary.csv.",
                *(min(rates) / head, max(rates) / head),
            )

    def settle_batch(self, state: dict[str, Any] | None) -> None:
        """Decide on the micro-batches of a step: as a state has them, by trying, or as the flags say; and log it.

        Args:
            state: that the run continues from, if any.
        """
        sampler = self.parts.train_loader.sampler
        flags = {**self.record, "input_size": plain(self.parts.config["input_size"])}
        noted = None
        if state is not None and has_our_format(state):
            noted = noted_batch(state, flags, self.micro_batches, self.is_auto)
        if noted is not None:
            assert state is not None
            asked = state["args"]["batch_size"]
            if noted != asked:
                log.warning(
                    "Micro-batches of %d images had been reduced to %d when memory ran out, and the run continues so. "
                    "Give another --batch-size to change that.",
                    *(asked, noted),
                )
            self._deal(noted)
            multiplier = self.options.validation_batch_size_multiplier
            if state["args"].get("validation_batch_size_multiplier") == multiplier:
                self.parts.val_loader.split(state.get("eval_batch", self.parts.val_loader.batch_size))
        elif self.is_auto:
            asked = self._largest_batch()
            self._deal(asked)
        else:
            asked = self.options.batch_size
        # what this run was begun with, in numbers, from which a resume starts
        accumulate = self.parts.train_loader.global_batch // (asked * self.world.size)
        self.options = replace(self.options, batch_size=asked, grad_accum_steps=accumulate)
        self.record |= {"batch_size": asked, "grad_accum_steps": accumulate}
        if self.is_auto:
            log.info(
                "--batch-size auto: %d images at once and %d micro-batches a step (--batch-size %d "
                "--grad-accum-steps %d).",
                *(sampler.batch_size, sampler.grad_accum_steps) * 2,
            )
        self._announce()

    def _largest_batch(self) -> int:
        """Find the largest micro-batch that memory holds in every process, at the largest size of the images."""
        parts, options = self.parts, self.options
        if parts.stepper.has_sync_bn:
            raise ValueError("--batch-size auto cannot try sizes with --sync-bn: give a number.")
        trial = Trial(
            parts.stepper,
            build_optimizer(Namespace(**self.record), parts.stepper.trainable, parts.model),
            shape=parts.config["input_size"],
            share=parts.train_loader.global_batch // self.world.size,
            splits=max(1, options.aug_splits),
            channels_last=options.channels_last,
            waiting=parts.train_loader.waiting,
            target=parts.task.example(parts.data),
        )
        size = trial.largest(self.micro_batches)
        if trial.reason:
            log.info("More than %d images at once do not fit: %s.", size, trial.reason)
        return size

    def _deal(self, size: int) -> None:
        """Deal steps in micro-batches of another size from now on, and evaluate in batches that fit it."""
        self.parts.train_loader.sampler.split(size)
        self.parts.val_loader.split(size * self.options.validation_batch_size_multiplier)

    def _halve(self, error: Exception) -> None:
        """Deal steps in smaller micro-batches, as memory did not suffice; the samples of each step stay."""
        sampler = self.parts.train_loader.sampler
        size = smaller(sampler.batch_size, self.micro_batches)
        if size is None:
            raise ValueError(
                f"there is not enough memory for a micro-batch of {sampler.batch_size} images ({reason_of(error)}), "
                "and it cannot be made smaller: take smaller images (--img-size), --grad-checkpointing, --amp or a "
                "smaller model."
            ) from error
        before = sampler.batch_size
        self._deal(size)
        log.warning(
            "Memory ran out (%s): from this step on %d micro-batches of %d images in place of %d. The step is "
            "repeated with the same samples.",
            *(reason_of(error), sampler.grad_accum_steps, size, before),
        )

    def dry_run(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Measure two steps and an evaluation batch, or as much of them as a bounded time allows; and say it.

        Args:
            tell: gets the document for programs.
        """
        parts, loader, world = self.parts, self.parts.train_loader, self.world
        is_compiled = bool(self.record.get("torchcompile"))  # which another number of images would do twice
        limit = limit_of(is_compiled)
        known = [(limit, 0)]  # the seconds of a step, and by how many images

        def say(evaluation: float | None = None) -> None:
            found = self._found(*known[-1], evaluation)
            log.info("%s", found)
            tell(found.document())

        watch = Watch(world, say) if world.is_distributed and world.store is not None else None
        evaluation = None
        try:
            parts.stepper.train()
            epoch = 0 if parts.sizes is None else parts.sizes.epochs  # with images of the last size
            predicted = (0.0, 0) if is_compiled else self._predicted_step(epoch, limit, watch)
            if predicted is not None and not is_long(predicted[0]):
                seconds = self._whole_steps(epoch, limit, watch)
                measured = None if seconds is None else (seconds, loader.global_batch)
            elif predicted is not None:
                measured = predicted[0], predicted[1] * world.size
                parts.val_loader.split(max(1, measured[1] // world.size))
            else:
                measured = None
            if measured is not None:
                known.append(measured)
                batch = timed(lambda: self._evaluate_one(parts.model, limit_batches=1), limit, watch)
                evaluation = None if batch is None else batch * max(1, parts.val_loader.num_batches)
        finally:  # also where another process has left, which ends this one
            if watch is not None:
                watch.close()
        say(evaluation)

    def _found(self, seconds: float, images: int, evaluation: float | None) -> DryRun:
        """Say what a dry run has found: the seconds of a step by so many images, and of the evaluation."""
        parts = self.parts
        evaluations = -(-parts.num_epochs // self.options.val_interval)
        total = parts.num_epochs * seconds * parts.train_loader.steps_per_epoch + evaluations * (evaluation or 0.0)
        return DryRun(
            images_per_step=parts.train_loader.global_batch,
            images_measured=images,
            step_seconds=seconds,
            evaluation_seconds=evaluation,
            epochs=parts.num_epochs,
            hours=total / 3600,
            is_least=evaluation is None,
            peak_memory_mb=peak_memory_mb(self.world.device),
        )

    def _predicted_step(self, epoch: int, limit: float, watch: Watch | None) -> tuple[float, int] | None:
        """Predict the seconds of a step by a smaller one (`step_seconds`)."""
        loader, first = self.parts.train_loader, []
        stream = self._on_device(loader.batches(epoch, 0))
        if timed(lambda: first.append(next(stream)), limit, watch) is None:
            return None

        def step(micro_batches: Sequence[Batch]) -> None:
            self.parts.stepper.step(micro_batches, epoch, 0, False, self._on_nonfinite(0))

        share = loader.global_batch // self.world.size
        return step_seconds(step, first[0], share, limit, lambda mine: max(self.world.gather(mine)), watch)

    def _whole_steps(self, epoch: int, limit: float, watch: Watch | None) -> float | None:
        """Return the seconds of the second step, as the first takes longer; of the first where that takes long."""
        seconds: list[float] = []
        steps = self._steps(epoch, 0, lambda: False)

        def work() -> None:
            for _ in range(min(2, self.parts.train_loader.steps_per_epoch)):
                begun = time.perf_counter()
                next(steps)
                seconds.append(max(self.world.gather(time.perf_counter() - begun)))
                if is_long(seconds[-1]):
                    break

        timed(work, limit, watch)
        steps.close()
        return seconds[-1] if seconds else None

    # ---- where the run is written, and from where it goes on ----

    def prepare_folder(self) -> None:
        """Open the run's folder and, if asked, continue from what is saved; all processes agree or all stop."""
        loggers = {"tensorboard": self.options.log_tensorboard, "wandb": self.options.log_wandb}

        def open_it() -> Opened:
            check_loggers(**loggers)  # before anything is removed
            return open_folder(self.options, self.parts.config["input_size"][-1], self.world)

        opened = self.world.on_main(open_it)
        if opened is not None:
            self.folder, self.path = opened.folder, opened.folder.path
        found = (self.path, opened.state, opened.is_own) if opened is not None else (self.path, None, False)
        self.path, state, is_own = self.world.broadcast_state(found)
        self.parts.precision.say(before=None if state is None else state.get("precision"))
        self.facts = facts_of(self.parts.data, self.world)
        self.settle_batch(state)
        if state is not None:
            accepted = self.options.accept_changed_data
            self.standing = restore(self.parts, state, self.record, self.facts, is_own, accepted)
        epoch = self.standing.epoch
        if epoch >= self.parts.num_epochs:
            log.warning("Epoch %d of %d: there is nothing left to train.", epoch, self.parts.num_epochs)

        def open_record() -> None:
            assert self.folder is not None
            standing = self.standing
            if standing.is_judged_anew:
                standing.kept = self.folder.judge_anew(standing.kept, standing.aside)
            write_args(self.path, self.record)
            self.run_log = RunLog(self.path, **loggers, config=self.record, resume_epoch=epoch)

        self.world.on_main(open_record)

    # ---- the loop ----

    def fit(self) -> str:
        """Train to the last epoch; return what ended the run: "finished", "early stop" or "stop epoch"."""
        standing, num_epochs = self.standing, min(self.parts.num_epochs, self.options.stop_epoch or sys.maxsize)
        with stop_signals() as asked:
            while standing.epoch < num_epochs and not self._is_stalled():
                self._train_epoch(asked)
                results: dict[str, float] = {}
                is_last = standing.epoch + 1 == num_epochs
                if is_last or (standing.epoch + 1) % self.options.val_interval == 0:
                    try:
                        results = self._evaluate(asked)
                    except StoppedError:
                        self._save()
                        self._stop()
                self._end_epoch(results)
                if any(self.world.gather(asked())) and standing.epoch < num_epochs and not self._is_stalled():
                    self._stop()
        is_stalled = self._is_stalled()
        if self.folder is not None and (kept := self.folder.on_disk(standing.kept)):
            best, metric = self.folder.best(kept), self.options.eval_metric
            if is_stalled:
                log.info("No better %s for %d epochs: stopped by --early-stop.", metric, standing.epoch - 1 - best)
            elif standing.epoch < self.parts.num_epochs:
                log.info("Stopped by --stop-epoch %d; --auto-resume with a later one continues.", num_epochs)
            adapters: Any = getattr(self.parts.model, "adapter_config", None)
            if adapters is not None:
                self.folder.write_adapters(adapters)
            self.parts.task.finish(self.parts, self.folder.path)
            log.info("Best %s %.4g at epoch %d; everything is in %s.", metric, kept[best], best, self.folder.path)
        if is_stalled:
            return "early stop"
        return "finished" if standing.epoch >= self.parts.num_epochs else "stop epoch"

    def document(self, ended: str) -> dict[str, Any]:
        """Describe the run for programs (--json); on the main process alone, which has the folder.

        Args:
            ended: why it ended, as `fit` says it.
        """
        if self.folder is None or self.run_log is None:
            return {}
        kept, metric = self.folder.on_disk(self.standing.kept), self.options.eval_metric
        best = None
        if kept:
            epoch = self.folder.best(kept)
            best = {"epoch": epoch, metric: kept[epoch], "checkpoint": as_utf8(self.folder.path / BEST)}
        return {
            "folder": as_utf8(self.folder.path),
            "ended": ended,
            "epochs_done": self.standing.epoch,
            "epochs": self.parts.num_epochs,
            "best": best,
            "history": self.run_log.rows(),
        }

    def _is_stalled(self) -> bool:
        """Return whether the epochs since the best one are as many as --early-stop allows.

        Only an evaluation can tell, so a run stops behind one.
        """
        patience, kept, is_stalled = self.options.early_stop, self.standing.kept, False
        if patience is not None and self.standing.epoch % self.options.val_interval == 0:
            if self.folder is not None and kept:  # only the main process judges
                is_stalled = self.standing.epoch - 1 - self.folder.best(kept) >= patience
            is_stalled = self.world.broadcast(is_stalled)
        return is_stalled

    def _train_epoch(self, asked: Callable[[], bool]) -> None:
        """Run the steps of an epoch that are still to be done."""
        options, standing, stepper, loader = self.options, self.standing, self.parts.stepper, self.parts.train_loader
        epoch = standing.epoch
        if stepper.mixup is not None and options.mixup_off_epoch and epoch >= options.mixup_off_epoch:
            stepper.mixup.mixup_enabled = False
        stepper.train()
        if standing.step == 0:
            standing.totals = EpochTotals()
        progress = Progress(
            loader.steps_per_epoch,
            f"epoch {epoch}/{self.parts.num_epochs - 1}",
            images_per_step=loader.global_batch,
            interval=options.log_interval,
            start=standing.step,
            enabled=self.world.is_main,
        )
        with progress:
            begun = time.perf_counter()
            for result, waited, micro_batches in self._steps(epoch, standing.step, asked):
                standing.step = done = standing.step + 1
                self.parts.scheduler.step_update(epoch * loader.steps_per_epoch + done, metric=result.loss)
                standing.totals.add(result, waited, time.perf_counter() - begun)
                progress.update(
                    loss=result.loss,
                    top1=result.top1 if stepper.has_accuracy else None,
                    lr=self._rate(),
                    grad_norm=result.grad_norm,
                    data_share=standing.totals.data_share,
                )
                if options.save_images and done % options.log_interval == 0 and self.folder is not None:
                    self._secure()
                    save_images(micro_batches[0], self.path / f"train-batch-{done}.jpg")
                if done < loader.steps_per_epoch:  # behind the last step the evaluation asks again
                    is_recovery_point = options.recovery_interval and done % options.recovery_interval == 0
                    if result.stop_asked or is_recovery_point:
                        self._save()
                    if result.stop_asked:
                        self._stop()
                begun = time.perf_counter()
        if self.world.is_distributed and options.dist_bn:
            distribute_bn(self.parts.model, self.world.size, options.dist_bn == "reduce")

    def _steps(
        self, epoch: int, start: int, asked: Callable[[], bool]
    ) -> Generator[tuple[StepResult, float, list[Batch]]]:
        """Run the steps of an epoch from one on; yield what each did, the seconds it waited for data, and its batches.

        A step for which memory does not suffice is repeated in smaller micro-batches, and so are those behind it.
        """
        loader, stepper = self.parts.train_loader, self.parts.stepper
        batches = self._on_device(loader.batches(epoch, start))
        for step in range(start, loader.steps_per_epoch):
            self._say_size(epoch, step)
            waited = 0.0
            while True:
                begun = time.perf_counter()
                micro_batches = list(islice(batches, loader.sampler.grad_accum_steps))
                waited += time.perf_counter() - begun
                try:
                    result = stepper.step(micro_batches, epoch, step, asked(), self._on_nonfinite(step))
                    break
                except Exception as error:
                    if not is_out_of_memory(error) or (self.world.size > 1 and not isinstance(error, StarvedError)):
                        raise
                    micro_batches = []
                    self._halve(error)
                batches = self._on_device(loader.batches(epoch, step))
            yield result, waited, micro_batches

    def _say_size(self, epoch: int, step: int) -> None:
        """Log the size of the training images where it changes."""
        sizes = self.parts.sizes
        if sizes is not None and (size := sizes.at(epoch, step)) != self._size:
            log.info("Epoch %d, step %d: training images of %d px.", epoch, step, size)
            self._size = size

    def _rate(self) -> float:
        """Return the learning rate of the next step: the classifier's, where layers differ."""
        rate: float = self.parts.stepper.optimizer.param_groups[self._head_group]["lr"]
        return rate

    def _on_device(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Move batches of a loader to where the model gets them."""
        layout, dtype = self.options.channels_last, self.parts.precision.weights
        return prefetch(stream, self.world.device, channels_last=layout, dtype=dtype)

    def _evaluate(self, asked: Callable[[], bool]) -> dict[str, float]:
        """Measure the weights, and their average where there is one; `StoppedError` if told to stop meanwhile."""
        results: dict[str, float] = {}
        ema = self.parts.ema
        for prefix, model in (("eval", self.parts.model), ("ema", ema.module if ema else None)):
            if model is not None:
                device = next(model.parameters()).device  # the average may live in host memory
                if device != self.world.device:
                    model = copy.deepcopy(model).to(self.world.device)
                found = self._evaluate_one(model, stop=asked)
                results |= {f"{prefix}_{name}": value for name, value in found.figures().items()}
        return results

    def _evaluate_one(
        self, model: nn.Module, limit_batches: int | None = None, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation:
        loader = self.parts.val_loader
        work = partial(
            self.parts.task.evaluate,
            model,
            loader,
            world=self.world,
            autocast=self.parts.precision.autocast,
            channels_last=self.options.channels_last,
            limit_batches=limit_batches,
            stop=stop,
        )
        return within_memory(loader, work)

    def _end_epoch(self, results: dict[str, float]) -> None:
        """Record an epoch, and save the state that the next one begins with.

        Args:
            results: of its evaluation; empty where there was none (--val-interval).
        """
        standing = self.standing
        totals, finished, sizes = standing.totals, standing.epoch, self.parts.sizes
        metric = results[metric_name(self.parts, self.record)] if results else None
        self._gather_bad_images()
        row: dict[str, Any] = {
            "epoch": finished,
            "train_loss": totals.loss,
            **({"train_top1": totals.top1} if self.parts.stepper.has_accuracy else {}),
            **results,
            **({} if sizes is None else {"img_size": sizes.at(finished, self.parts.train_loader.steps_per_epoch - 1)}),
            "lr": self._rate(),
            "grad_norm": totals.grad_norm,
            "bad_images": len(standing.bad_images),
            "images_per_second": totals.images_per_second,
            "data_share": totals.data_share,
            "peak_memory_mb": peak_memory_mb(self.world.device),
            "seconds": totals.seconds,
        }
        log.info("%s", "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        standing.epoch, standing.step = finished + 1, 0
        if results:
            standing.results[finished] = results
        self.parts.scheduler.step(standing.epoch, metric)

        def write() -> None:
            # the row before the state: a run killed in between repeats the epoch and writes the same row again
            assert self.folder is not None and self.run_log is not None
            self._secure(metric)
            if standing.bad_images:
                write_bad_images(self.path, standing.bad_images)
            self.run_log.epoch(row)
            self.folder.save(self._state(metric))
            self.folder.keep_milestone(standing.epoch)
            if metric is not None:
                standing.kept = self.folder.keep_epoch(finished, metric, standing.kept)
            standing.results = {epoch: standing.results[epoch] for epoch in standing.kept if epoch in standing.results}

        self.world.on_main(write)

    def _gather_bad_images(self) -> None:
        """Add what any process met so far."""
        for found in self.world.gather({**self.parts.train_loader.bad_images, **self.parts.val_loader.bad_images}):
            self.standing.bad_images.update(found)

    def _save(self) -> None:
        """Save the state as the run stands now, between two steps."""
        self._gather_bad_images()

        def write() -> None:
            assert self.folder is not None
            self._secure()
            self.folder.save(self._state())

        self.world.on_main(write)

    def _state(self, metric: float | None = None) -> dict[str, Any]:
        """Gather the state; `metric`: of the epoch that ended here, if one did."""
        return state_of(self.parts, self.standing, self.record, self.facts, metric)

    def _secure(self, metric: float | None = None) -> None:
        """On the main process, see that the folder is there and ours; one that was removed gets its record again."""
        assert self.folder is not None and self.run_log is not None
        if self.folder.secure(lambda: self._state(metric)):
            write_args(self.path, self.record)
            self.run_log.write_again()

    def _stop(self) -> NoReturn:
        epoch = self.standing.epoch
        raise Interrupted(
            f"Told to stop: saved at epoch {epoch}. The same command with --auto-resume continues from there."
        )

    def _on_nonfinite(self, step: int) -> OnNonFinite:
        """Return what makes the exception of a step whose numbers are not finite."""
        parts, epoch, rank = self.parts, self.standing.epoch, self.world.rank
        reseed = partial(seed_everything, parts.stepper.seed, epoch, step, rank)
        return partial(
            report_nonfinite,
            self.path,
            epoch=epoch,
            step=step,
            rank=rank,
            model=parts.model,
            filename=parts.data.train.filename,
            autocast=parts.precision.autocast,
            reseed=reseed,
        )

    def close(self) -> None:
        """End the loaders' workers and let the folder go."""
        self.parts.train_loader.close()
        self.parts.val_loader.close()
        if self.run_log is not None:
            self.run_log.finish()
        if self.folder is not None:
            self.folder.close()
