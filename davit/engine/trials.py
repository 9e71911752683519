"""What one asks before spending a month of GPUs: what will run, does it, how fast, in how much memory."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .distributed import World
from .evaluate import peak_memory_mb
from .precision import precision_from

if TYPE_CHECKING:
    from .train import Trainer

log = logging.getLogger(__name__)


def announce(trainer: Trainer) -> None:
    """Say what is about to be trained: model, data, global batch, rate and steps."""
    args, loader = trainer.args, trainer.train_loader
    parameters = sum(p.numel() for p in trainer.model.parameters())
    log.info(
        "%s, %.2f M parameters, %d classes, %s px; %d training and %d validation pictures.",
        args.model,
        parameters / 1e6,
        trainer.data.num_classes,
        "x".join(str(n) for n in trainer.config["input_size"][1:]),
        len(trainer.data.train),
        len(trainer.data.val),
    )
    log.info(
        "Global batch %d = %d pictures x %d processes x %d micro-batches; learning rate %g for it; %d epochs of "
        "%d steps = %d steps; %s on %s.",
        loader.global_batch,
        args.batch_size,
        trainer.world.size,
        args.grad_accum_steps,
        args.lr,
        trainer.num_epochs,
        loader.steps_per_epoch,
        trainer.num_epochs * loader.steps_per_epoch,
        str(trainer.precision.dtype or torch.float32).removeprefix("torch."),
        trainer.world.device,
    )


def dry_run(trainer: Trainer) -> None:
    """Two steps and one evaluation batch, then memory and the time the whole run would take."""
    loader, device = trainer.train_loader, trainer.world.device
    trainer.stepper.forward.train()
    batches = trainer.on_device(loader.batches(0))
    seconds = []
    for step in range(min(2, loader.steps_per_epoch)):
        begun = time.perf_counter()
        micro_batches = list(islice(batches, trainer.args.grad_accum_steps))
        trainer.stepper.step(micro_batches, 0, step, False, trainer.on_nonfinite(step))
        seconds.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    trainer.evaluate_one(trainer.model, limit_batches=1)
    evaluation = (time.perf_counter() - begun) * max(1, trainer.val_loader.num_batches)
    total = trainer.num_epochs * (seconds[-1] * loader.steps_per_epoch + evaluation)
    log.info(
        "Dry run: peak memory %.0f MB for each process; %.2f s a step, so about %.1f hours for %d epochs "
        "(evaluation included). Nothing was written.",
        peak_memory_mb(device),
        seconds[-1],
        total / 3600,
        trainer.num_epochs,
    )


def measure_throughput(args: Namespace, model: nn.Module, config: dict[str, Any], world: World) -> None:
    """--throughput: images/s of the forward pass on random pictures, the median of 30 batches after 10."""
    model.eval()
    images = torch.randn(args.batch_size, *config["input_size"], device=world.device)
    precision = precision_from(args, world.device)
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
