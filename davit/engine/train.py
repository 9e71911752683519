"""Run a training: build, try out, resume, loop, save. One loop for one process or many machines."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from timm.scheduler import PlateauLRScheduler
from timm.utils import ModelEmaV3, distribute_bn
from torch import nn

from ..commands import Interrupted, run_cli, stop_signals
from ..data import Batch, prefetch, save_images, write_digits
from ..seeding import seed_everything
from . import run_folder as saved
from .build import (
    Data,
    build_loaders,
    build_loss,
    build_mixup,
    build_model,
    build_optimizer,
    build_schedule,
    data_config,
    open_data,
    set_transforms,
    wrap_for_training,
)
from .distributed import World, close_world, init_world
from .evaluate import Evaluation, StoppedError, evaluate, peak_memory_mb
from .flags import NO_LONGER, given_flags, parse_with_config, say_no_longer, train_parser
from .nonfinite import report_nonfinite
from .precision import precision_from
from .progress import Progress
from .resume import open_folder, restore, state_of
from .run_log import RunLog, plain, write_args, write_bad_images
from .steps import EpochTotals, Stepper

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, default_config: str | Path | None = None) -> int:
    """What train.py does; returns its exit status (`davit.commands`).

    Args:
        default_config: the recipe for a run without data: the embedded digits.
    """
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR,
        format="%(message)s" if rank == 0 else f"[rank {rank}] %(message)s",
        force=True,
    )

    def work() -> None:
        args = parse_with_config(train_parser(), argv, default_config)
        say_no_longer(NO_LONGER, given_flags(train_parser, argv))
        world = init_world(args.device)
        try:
            if args.data_dir is None and not args.dataset:
                args.data_dir = str(write_digits())
                log.info(
                    "No data folder given: training on scikit-learn's handwritten digits in %s.",
                    args.data_dir,
                )
            run(args, world)
        finally:
            close_world()

    return run_cli(work)


def run(args: Namespace, world: World) -> None:
    """Train as the flags say.

    Raises:
        ValueError: the flags, the data or the checkpoint do not fit (also its subclasses).
        Interrupted: told to stop, and saved.
        NonFiniteError: a loss or gradient was NaN or infinite.
    """
    data = open_data(args, world)
    seed_everything(args.seed)  # the same initial weights in every process
    model = build_model(args, data.num_classes)
    config = data_config(args, model)
    set_transforms(args, data, config)
    model.to(world.device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.sync_bn and world.is_distributed and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.throughput:
        measure_throughput(args, model, config, world)
        return
    trainer = Trainer(args, world, model, data, config)
    try:
        if args.dry_run:
            trainer.precision.say()
            trainer.dry_run()
        else:
            trainer.prepare_folder()
            trainer.fit()
    finally:
        trainer.close()


def measure_throughput(args: Namespace, model: nn.Module, config: dict[str, Any], world: World) -> None:
    """Log images/s of the forward pass on random pictures, the median of 30 batches after 10."""
    model.eval()
    images = torch.randn(args.batch_size, *config["input_size"], device=world.device)
    precision = precision_from(args, world.device, world.everywhere)
    precision.say()
    seconds = []
    with torch.inference_mode(), precision.autocast():
        for _ in range(40):
            begun = time.perf_counter()
            model(images)
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            seconds.append(time.perf_counter() - begun)
    median = sorted(seconds[10:])[len(seconds[10:]) // 2]
    log.info(
        "%s: %.1f images/s in batches of %d on %s.",
        args.model,
        args.batch_size / median,
        args.batch_size,
        world.device,
    )


class Trainer:
    """A run: its parts, where it stands, and the loop."""

    def __init__(self, args: Namespace, world: World, model: nn.Module, data: Data, config: dict[str, Any]):
        self.args, self.world, self.data, self.config = args, world, data, config
        self.model = model
        self.precision = precision_from(args, world.device, world.everywhere)
        self.train_loader, self.val_loader = build_loaders(args, data, world)
        self.mixup = build_mixup(args, data.num_classes)
        self.ema = (
            ModelEmaV3(model, args.model_ema_decay, device="cpu" if args.model_ema_force_cpu else None)
            if args.model_ema
            else None
        )
        self.stepper = Stepper(
            args,
            model,
            wrap_for_training(args, model, config, world),
            build_loss(args, self.mixup).to(world.device),
            build_optimizer(args, model),
            self.precision,
            world,
            self.mixup,
            self.ema,
        )
        self.scheduler, self.num_epochs = build_schedule(
            args, self.stepper.optimizer, self.train_loader.steps_per_epoch
        )
        self.epoch, self.start_step = args.start_epoch or 0, 0
        if self.epoch:
            self.enter_schedule()
        self.totals = EpochTotals()
        self.kept: dict[int, float] = {}
        self.bad_images: dict[str, str] = {}
        self.path = Path(args.output or "output")  # until the run's own folder is open
        self.folder: saved.RunFolder | None = None
        self.run_log: RunLog | None = None
        self._announce()

    # ---- before a month of GPUs is spent ----

    def _announce(self) -> None:
        """Say what is about to be trained: model, data, global batch, rate and steps."""
        args, loader = self.args, self.train_loader
        parameters = sum(p.numel() for p in self.model.parameters())
        log.info(
            "%s, %.2f M parameters, %d classes, %s px; %d training and %d validation pictures.",
            args.model,
            parameters / 1e6,
            self.data.num_classes,
            "x".join(str(n) for n in self.config["input_size"][1:]),
            len(self.data.train),
            len(self.data.val),
        )
        log.info(
            "Global batch %d = %d pictures x %d processes x %d micro-batches; learning rate %g for it; %d epochs of "
            "%d steps = %d steps; %s on %s.",
            loader.global_batch,
            args.batch_size,
            self.world.size,
            args.grad_accum_steps,
            args.lr,
            self.num_epochs,
            loader.steps_per_epoch,
            self.num_epochs * loader.steps_per_epoch,
            self.precision.name,
            self.world.device,
        )

    def dry_run(self) -> None:
        """Run two steps and one evaluation batch, then log memory and the time that the whole run would take."""
        loader, device = self.train_loader, self.world.device
        self.stepper.forward.train()
        batches = self.on_device(loader.batches(0))
        seconds = []
        for step in range(min(2, loader.steps_per_epoch)):
            begun = time.perf_counter()
            micro_batches = list(islice(batches, self.args.grad_accum_steps))
            self.stepper.step(micro_batches, 0, step, False, self.on_nonfinite(step))
            seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        self.evaluate_one(self.model, limit_batches=1)
        evaluation = (time.perf_counter() - begun) * max(1, self.val_loader.num_batches)
        total = self.num_epochs * (seconds[-1] * loader.steps_per_epoch + evaluation)
        log.info(
            "Dry run: peak memory %.0f MB for each process; %.2f s a step, so about %.1f hours for %d epochs "
            "(evaluation included). Nothing was written.",
            peak_memory_mb(device),
            seconds[-1],
            total / 3600,
            self.num_epochs,
        )

    # ---- where the run is written, and from where it goes on ----

    def prepare_folder(self) -> None:
        """Open the run's folder and, if asked, go on from what is saved; all processes agree or all stop."""
        state: dict[str, Any] | None = None
        own = False

        def open_it() -> None:
            nonlocal state, own
            self.folder, state, own = open_folder(self.args, self.config, self.world)
            self.path = self.folder.path

        self.world.on_main(open_it)
        self.path, own = self.world.broadcast((self.path, own))
        state = self.world.broadcast_state(state)
        self.precision.say(before=None if state is None else state.get("precision"))
        if state is not None:
            restore(self, state, own)
        if self.epoch >= self.num_epochs:
            log.warning("Epoch %d of %d: there is nothing left to train.", self.epoch, self.num_epochs)
        self.world.on_main(self._open_record)

    def _open_record(self) -> None:
        write_args(self.path, self.flags())
        self.run_log = RunLog(
            self.path,
            tensorboard=self.args.log_tensorboard,
            wandb=self.args.log_wandb,
            config=self.flags(),
            resume_epoch=self.epoch,
        )

    def flags(self) -> dict[str, Any]:
        """Every flag's value, for the record: those of the precision as they came out on this machine."""
        return plain({**vars(self.args), **self.precision.flags})

    def enter_schedule(self) -> None:
        """Set the learning rate of the place where the run is, as if it had come there step by step."""
        past = getattr(self.scheduler, "warmup_t", 0) if isinstance(self.scheduler, PlateauLRScheduler) else math.inf
        self.scheduler.step(int(min(self.epoch, past)))  # a plateau's rate after the warm-up depends on metrics
        self.scheduler.step_update(self.epoch * self.train_loader.steps_per_epoch + self.start_step)

    # ---- the loop ----

    def fit(self) -> None:
        """Train to the last epoch."""
        with stop_signals() as asked:
            while self.epoch < self.num_epochs:
                self._train_epoch(asked)
                try:
                    results = self._evaluate(asked)
                except StoppedError:
                    self._save_and_stop(self.train_loader.steps_per_epoch)
                self._end_epoch(results)
                if any(self.world.gather(asked())) and self.epoch < self.num_epochs:
                    self._stop()
        if self.world.is_main and self.folder is not None and self.kept:
            metric = self.args.eval_metric
            best = min(self.kept, key=lambda e: (self.folder.rank(self.kept[e]), e))  # type: ignore[union-attr]
            log.info(
                "Best %s %.4g at epoch %d; everything is in %s.",
                metric,
                self.kept[best],
                best,
                self.folder.path,
            )

    def _train_epoch(self, asked: Callable[[], bool]) -> None:
        args, loader = self.args, self.train_loader
        if self.mixup is not None and args.mixup_off_epoch and self.epoch >= args.mixup_off_epoch:
            self.mixup.mixup_enabled = False
        self.stepper.forward.train()
        if self.start_step == 0:
            self.totals = EpochTotals()
        progress = Progress(
            loader.steps_per_epoch,
            f"epoch {self.epoch}/{self.num_epochs - 1}",
            images_per_step=loader.global_batch,
            interval=args.log_interval,
            start=self.start_step,
            enabled=self.world.is_main,
        )
        batches = self.on_device(loader.batches(self.epoch, self.start_step))
        try:
            for step in range(self.start_step, loader.steps_per_epoch):
                begun = time.perf_counter()
                micro_batches = list(islice(batches, args.grad_accum_steps))
                waited = time.perf_counter() - begun
                result = self.stepper.step(micro_batches, self.epoch, step, asked(), self.on_nonfinite(step))
                self.scheduler.step_update(self.epoch * loader.steps_per_epoch + step + 1, metric=result.loss)
                self.totals.add(
                    result.loss,
                    result.top1,
                    result.grad_norm,
                    result.samples,
                    waited,
                    time.perf_counter() - begun,
                )
                progress.update(
                    1,
                    loss=result.loss,
                    top1=result.top1,
                    lr=self.stepper.optimizer.param_groups[0]["lr"],
                    grad_norm=result.grad_norm,
                    data_share=self.totals.data_share,
                )
                done = step + 1
                if args.save_images and done % args.log_interval == 0 and self.folder is not None:
                    save_images(micro_batches[0], self.folder.path / f"train-batch-{done}.jpg")
                if done < loader.steps_per_epoch:  # behind the last step the evaluation asks again
                    if result.stop_asked:
                        self._save_and_stop(done)
                    if args.recovery_interval and done % args.recovery_interval == 0:
                        self._save(self.epoch, done)
        finally:
            progress.close()
        if self.world.is_distributed and args.dist_bn:
            distribute_bn(self.model, self.world.size, args.dist_bn == "reduce")

    def on_device(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """Batches of a loader as the model gets them."""
        return prefetch(stream, self.world.device, channels_last=self.args.channels_last)

    def _evaluate(self, asked: Callable[[], bool]) -> dict[str, float]:
        """Metrics of the weights, and of their average where there is one.

        Raises:
            StoppedError: a process was told to stop.
        """
        results = {}
        for prefix, model in (("eval", self.model), ("ema", self.ema.module if self.ema else None)):
            if model is not None:
                device = next(model.parameters()).device  # the average may live in host memory
                if device != self.world.device:
                    model = copy.deepcopy(model).to(self.world.device)
                found = self.evaluate_one(model, stop=asked)
                results.update(
                    {f"{prefix}_loss": found.loss, f"{prefix}_top1": found.top1, f"{prefix}_top5": found.top5}
                )
        return results

    def evaluate_one(
        self, model: nn.Module, limit_batches: int | None = None, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation:
        return evaluate(
            model,
            self.val_loader,
            world=self.world,
            autocast=self.precision.autocast,
            channels_last=self.args.channels_last,
            limit_batches=limit_batches,
            stop=stop,
        )

    def _end_epoch(self, results: dict[str, float]) -> None:
        args = self.args
        metric = results[("ema_" if self.ema else "eval_") + args.eval_metric]
        bad = self._gather_bad_images()
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "train_loss": self.totals.loss,
            "train_top1": self.totals.top1,
            **results,
            "lr": self.stepper.optimizer.param_groups[0]["lr"],
            "grad_norm": self.totals.grad_norm,
            "bad_images": len(bad),
            "images_per_second": self.totals.images_per_second,
            "data_share": self.totals.data_share,
            "peak_memory_mb": peak_memory_mb(self.world.device),
            "seconds": self.totals.seconds,
        }
        log.info("%s", "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        finished = self.epoch
        self.epoch, self.start_step = self.epoch + 1, 0
        self.scheduler.step(self.epoch, metric)

        def write() -> None:
            # the row before the state: a run killed in between repeats the epoch and writes the same row again
            assert self.folder is not None and self.run_log is not None
            if bad:
                write_bad_images(self.folder.path, bad)
            self.run_log.epoch(row)
            self.folder.save(state_of(self, self.epoch, 0, metric))
            self.kept = self.folder.keep_epoch(finished, metric, self.kept)

        self.world.on_main(write)

    def _gather_bad_images(self) -> dict[str, str]:
        """File -> reason of all that any process met so far, from before a resumption too."""
        for found in self.world.gather({**self.train_loader.bad_images, **self.val_loader.bad_images}):
            self.bad_images.update(found)
        return self.bad_images

    def _save(self, epoch: int, step: int) -> None:
        self._gather_bad_images()

        def write() -> None:
            assert self.folder is not None
            self.folder.save(state_of(self, epoch, step, None))

        self.world.on_main(write)

    def _save_and_stop(self, step: int) -> NoReturn:
        self._save(self.epoch, step)
        self._stop()

    def _stop(self) -> NoReturn:
        raise Interrupted(
            f"Told to stop: saved at epoch {self.epoch}. The same command with --auto-resume goes on from there."
        )

    def on_nonfinite(self, step: int) -> Callable[[float, float, Batch], Exception]:
        """What makes the exception of a step whose numbers are not finite."""
        words = (self.args.seed, self.epoch, step, self.world.rank)

        def report(loss: float, grad_norm: float, batch: Batch) -> Exception:
            return report_nonfinite(
                self.path,
                epoch=self.epoch,
                step=step,
                loss=loss,
                grad_norm=grad_norm,
                model=self.model,
                batch=batch,
                files=[self.data.train.filename(int(i)) for i in batch.indices],
                autocast=self.precision.autocast,
                rank=self.world.rank,
                reseed=lambda: seed_everything(*words),
            )

        return report

    def close(self) -> None:
        """End the loaders' workers and let the folder go."""
        self.train_loader.close()
        self.val_loader.close()
        if self.run_log is not None:
            self.run_log.finish()
        if self.folder is not None:
            self.folder.close()
