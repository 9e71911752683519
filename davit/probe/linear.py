"""Train one linear layer on a frozen model's features of augmented images, by the parts that train.py is made of."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Batch, prefetch
from ..engine.build import Data, build_parts, set_transforms
from ..engine.distributed import World
from ..engine.features import Features, pooled_features
from ..engine.flags import train_parser
from ..engine.load_model import LoadedModel
from ..engine.precision import Precision
from ..engine.progress import Progress
from .classifiers import Fitted

log = logging.getLogger(__name__)

_LEAST_STEPS = 10  # of an epoch, where the batch can be made smaller
# a random crop and a flip are all the augmentation; everything else that train.py adds is off
_FLAGS = (
    *("--opt", "adamw", "--weight-decay", "0", "--sched", "cosine", "--sched-on-updates"),
    *("--warmup-epochs", "0", "--cooldown-epochs", "0", "--min-lr", "0", "--mixup", "0", "--cutmix", "0"),
    *("--smoothing", "0", "--aa", "none", "--color-jitter", "0", "--reprob", "0", "--drop-path", "0"),
    "--skip-bad-images",
)


@dataclass(frozen=True)
class Schedule:
    """How the layer is trained; the names are the flags'."""

    epochs: int = 20
    lr: float = 0.01
    scale: tuple[float, float] = (0.35, 1.0)
    hflip: float = 0.5
    batch_size: int = 256
    workers: int = 0
    seed: int = 42


class _Probed(nn.Module):
    """A frozen model in eval mode, and a linear layer on its features, each brought to mean 0 and std 1.

    Mean and std are those of the images as they are evaluated.
    """

    mean_C: Tensor
    deviation_C: Tensor

    def __init__(self, backbone: nn.Module, train: Features, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        for parameter in backbone.parameters():
            parameter.requires_grad_(False)
        deviation_C = train.vectors_NC.std(0)
        self.register_buffer("mean_C", torch.from_numpy(train.vectors_NC.mean(0)))
        self.register_buffer("deviation_C", torch.from_numpy(np.where(deviation_C > 0, deviation_C, np.float32(1))))
        self.layer = nn.Linear(len(deviation_C), num_classes)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def train(self, mode: bool = True) -> _Probed:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            features_BC = pooled_features(self.backbone, images_BCHW)
        return self.classify(features_BC)

    def classify(self, features_BC: Tensor) -> Tensor:
        return self.layer((features_BC.float() - self.mean_C) / self.deviation_C)


def linear_probe(
    loaded: LoadedModel,
    data: Data,
    features: tuple[Features, Features],
    schedule: Schedule,
    precision: Precision,
    world: World,
) -> Fitted:
    """Train the layer on augmented images and classify the validation images by their features.

    Args:
        loaded: its parameters are frozen and stay as they are.
        features: of the training and of the validation images.

    Raises:
        ValueError: the loss became NaN or infinite, or fewer images than make a batch.
    """
    train, test = features
    model = _Probed(loaded.model, train, data.num_classes).to(world.device)
    batch_size = max(2, min(schedule.batch_size, len(data.train) // _LEAST_STEPS))
    given = {"epochs": schedule.epochs, "batch-size": batch_size, "workers": schedule.workers, "seed": schedule.seed}
    words = [f"--{name}={value}" for name, value in {**given, "lr": schedule.lr, "hflip": schedule.hflip}.items()]
    args = train_parser().parse_args([*_FLAGS, *words, "--scale", *map(str, schedule.scale)])
    vars(args).update(precision.flags)
    set_transforms(args, data, dict(loaded.config))
    data.train.decoding = loaded.decoding
    parts = build_parts(args, model, data, dict(loaded.config), world)
    loader, stepper = parts.train_loader, parts.stepper
    steps = parts.num_epochs * loader.steps_per_epoch
    try:
        with Progress(steps, "linear layer", images_per_step=batch_size) as shown:
            for epoch in range(parts.num_epochs):
                stepper.forward.train()
                batches = prefetch(loader.batches(epoch), world.device)
                for step in range(loader.steps_per_epoch):
                    result = stepper.step(list(islice(batches, 1)), epoch, step, False, _not_finite)
                    parts.scheduler.step_update(epoch * loader.steps_per_epoch + step + 1)
                    shown.update(loss=result.loss, top1=result.top1)
                parts.scheduler.step(epoch + 1)
    finally:
        loader.close()
        parts.val_loader.close()
    with torch.inference_mode():
        logits_NK = model.classify(torch.from_numpy(test.vectors_NC).to(world.device))
    classes_N = logits_NK.argmax(1).cpu().numpy().astype(np.int64)
    return Fitted(classes_N, f"lr={schedule.lr:g}, {schedule.epochs} epochs")


def _not_finite(loss: float, norm: float, _: Batch) -> Exception:
    return ValueError(
        f"the linear layer's loss is {loss:g} and its gradient {norm:g}: lower `lr=...`, or look at the weights."
    )
