"""Say what detection adds to a training: its data, its models, its loss, and how an epoch is judged."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn

from ..data import Batch, EvalLoader
from ..engine.build import Data, Parts, Task, settle_sizes, size_schedule
from ..engine.distributed import World
from ..engine.evaluate import Evaluation, evaluate
from ..engine.run_folder import DETECTOR
from ..engine.steps import Stepper
from .augment import MEAN, STD, ForEvaluation, ForTraining
from .data import BoxDataset, Reading, open_split
from .evaluate import BoxScores, require_coco
from .model import STRIDE, build_detector, check_side, load_detector, save_detector

log = logging.getLogger(__name__)


class DetectionStepper(Stepper):
    """Run steps of a detector, which computes its own loss of images and boxes."""

    has_accuracy = False

    def _loss_of(self, forward: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = forward(batch.images, batch.targets)
        return loss, loss.detach().new_zeros((), dtype=torch.float32)


class Detection(Task):
    """Learn the boxes of objects (`davit.engine.build.Task`)."""

    stepper = DetectionStepper

    def open_data(self, args: Namespace, world: World) -> Data:
        """Open both splits, with the classes of the training split."""
        require_coco()
        reading = Reading(args.data_check, args.skip_bad_images)
        if not args.data_check:
            log.warning("--no-data-check: the headers of images are not read; a bad image stops the run later.")
        train = open_split(args.data_dir, args.train_split, args.classes, world, reading, training=True)
        val = open_split(args.data_dir, args.val_split, train.class_names, world, reading, say=False)
        return Data(train, val, train.class_names, len(train.class_names))

    def build_model(self, args: Namespace, data: Data) -> nn.Module:
        """Build the detector of the flags."""
        return build_detector(args, data.class_names)

    def prepare(self, args: Namespace, data: Data, model: nn.Module) -> dict[str, Any]:
        """Give both splits their transforms."""
        settle_sizes(args, model)
        side = args.img_size
        check_side(side)
        if args.sizes and args.size_multiple % STRIDE:
            raise ValueError(f"--size-multiple {args.size_multiple} must be a multiple of {STRIDE} for these heads.")
        train, val = data.train, data.val
        assert isinstance(train, BoxDataset) and isinstance(val, BoxDataset)
        names = ("photometric", "zoom_out", "iou_crop", "hflip", "vflip")
        chances = {} if args.no_aug else {name: getattr(args, name) for name in names}
        rows = max(1, train.source.most)
        train.transform = ForTraining(side, rows, **chances)  # type: ignore[assignment]
        if (schedule := size_schedule(args, 1)) is not None:
            for size in schedule.all_sizes:
                train.transforms[size] = ForTraining(size, rows, **chances)  # type: ignore[assignment]
        val.transform = ForEvaluation(side)  # type: ignore[assignment]
        return {
            "input_size": (3, side, side),
            "mean": MEAN,
            "std": STD,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
        }

    def build_loss(self, args: Namespace, mixup: Mixup | None, data: Data) -> nn.Module:
        """Return a loss that does nothing: the detector's own is computed with its outputs."""
        return nn.Identity()

    def example(self, data: Data) -> Tensor:
        """Return the target of an image with as many objects as any has."""
        assert isinstance(data.train, BoxDataset)
        rows = max(1, data.train.source.most)
        draw = np.random.default_rng(0)
        sides = draw.uniform(0.05, 0.3, (rows, 2))
        centres = draw.uniform(0.2, 0.8, (rows, 2))
        labels = np.arange(rows)[:, None] % data.num_classes
        return torch.from_numpy(np.concatenate([labels, centres, sides], 1).astype(np.float32))

    def trial_loss(self, model: nn.Module, image: Tensor) -> Tensor:
        """Return the loss of images with an object each."""
        target = image.new_tensor([0.0, 0.5, 0.5, 0.4, 0.4]).expand(len(image), 1, 5)
        # queries for noisy boxes are there in training alone; batch norms keep their statistics
        changed = [one for one in model.modules() if not one.training and not isinstance(one, nn.BatchNorm2d)]
        for module in changed:
            module.training = True
        try:
            with torch.random.fork_rng():
                loss: Tensor = model(image, target)
                return loss
        finally:
            for module in changed:
                module.training = False

    def evaluate(self, model: nn.Module, loader: EvalLoader, **options: Any) -> Evaluation:
        """Measure COCO's average precision on the validation split."""
        dataset = loader.dataset
        assert isinstance(dataset, BoxDataset)
        scores = BoxScores(dataset, options["world"].device)
        return evaluate(model, loader, scores=scores, **options)

    def finish(self, parts: Parts, folder: Path) -> None:
        """Write the best epoch's detector as transformers reads it."""
        loaded = load_detector(folder, torch.device("cpu"))
        save_detector(loaded.detector, loaded.side, folder / DETECTOR)
        log.info("%s is the best epoch's detector in transformers' format.", folder / DETECTOR)
