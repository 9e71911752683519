"""Let an exported model stand where a model of PyTorch does: in predictions, evaluations and features."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.dataset import Transform
from ..data.transforms import ToNormalizedTensor
from ..runtimes import ExportedModel, files_of
from ..text import as_line

log = logging.getLogger(__name__)

#: options that say how a model of PyTorch is built or run; an exported program is what it is
FIXED = (
    *("ema", "num_classes", "gp", "model_kwargs", "test_time_pool", "channels_last", "torchscript", "torchcompile"),
    *("amp", "native_amp", "apex_amp", "amp_dtype"),
)
TASKS = {"classification": "classes", "features": "features"}


class ExportedNetwork(nn.Module):
    """Run an exported program as a module: logits from `forward`, or features by timm's protocol.

    A batch of another number than the program takes is cut into such, the last filled up with zeros. Its only state is
    the hash of its files, so that what is noted of weights (a temperature, features) is of this export.

    Attributes:
        program: what computes.
        num_classes: 0 for a program of features.
    """

    file_sha256: Tensor

    def __init__(self, program: ExportedModel) -> None:
        super().__init__()
        self.program = program
        self.register_buffer("file_sha256", torch.tensor(list(_digest(program.path)), dtype=torch.uint8))
        self.num_classes = _count_classes(program)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute logits (B, num_classes)."""
        if self.program.metadata.task != "classification":
            raise ValueError(
                f"{self.program.path} gives features and no classes: `embed` takes it. Export the checkpoint without "
                "--features for classes."
            )
        return self._compute(images_BCHW)

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Compute features (B, C), which `forward_head` passes on."""
        if self.program.metadata.task != "features":
            raise ValueError(
                f"{self.program.path} gives classes and no features: export its checkpoint with --features for them."
            )
        return self._compute(images_BCHW)

    def forward_head(self, features_BC: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the features; there are no logits behind them."""
        if not pre_logits:
            raise ValueError(f"{self.program.path} gives features and no classes.")
        return features_BC

    def _compute(self, images_BCHW: Tensor) -> Tensor:
        least, most = self.program.metadata.axes.get("batch", (1, None))
        parts = []
        for part in images_BCHW.split(most or max(len(images_BCHW), 1)):
            missing = max(0, least - len(part))
            filled = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
            parts.append(self.program(filled)[0][: len(part)])
        outputs = torch.cat(parts) if len(parts) > 1 else parts[0]
        return outputs.float().to(images_BCHW.device)


class ToBytes:
    """Turn a decoded and cropped image into (C, H, W) uint8, for programs that normalise themselves."""

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, Image.Image):
            bands = (image if image.mode == "RGB" else image.convert("RGB")).split()
            return torch.from_numpy(np.stack([np.asarray(band) for band in bands]))
        array_CHW = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(np.clip(np.rint(array_CHW), 0, 255).astype(np.uint8))


def as_bytes(transform: Any) -> Transform:
    """Let a transform of `davit.data.eval_transform` end in bytes instead of normalised numbers."""
    for at, step in enumerate(transform.transforms):
        if isinstance(step, ToNormalizedTensor):
            transform.transforms[at] = ToBytes()
            return transform
    raise AssertionError(transform)


def network_of(program: ExportedModel, *, needs_head: bool) -> ExportedNetwork:
    """Make a module of an exported classifier, or of the features of one.

    Raises:
        ValueError: it is neither, or a classifier is needed and it is none.
    """
    path, task = program.path, program.metadata.task
    if task not in TASKS:
        raise ValueError(
            f"{path} is an export for {task}, and this takes those of classes or features. "
            f"davit.runtimes.open_exported({str(path)!r}) runs it."
        )
    if needs_head and task != "classification":
        raise ValueError(f"{path} gives features and no classes: export its checkpoint without --features.")
    return ExportedNetwork(program)


def require_applicable(path: Path, options: Any, name: str | None, program: ExportedModel) -> None:
    """Raise `ValueError` for options that an exported program has no use for, each by name.

    Args:
        options: a `davit.engine.load_model.ModelOptions`.
        name: of the model, where it was given.
    """
    metadata, plain = program.metadata, type(options)()
    fixed = [*FIXED, *(("mean", "std") if metadata.preprocess == "uint8" else ())]
    given = [option for option in fixed if (getattr(options, option) or None) != (getattr(plain, option) or None)]
    if "num_classes" in given and options.num_classes == len(metadata.class_names or ()):
        given.remove("num_classes")
    if given:
        written = ", ".join(f"`{option}={_written(getattr(options, option))}`" for option in given)
        raise ValueError(
            f"{path} is an exported model, whose weights and computation are fixed: {written} cannot be applied to "
            "it. Leave it out, or give the checkpoint."
        )
    if name is not None and name != metadata.model:
        raise ValueError(f"{path} is an export of {metadata.model}, not of {name}; leave `model={name}` out.")


def _written(value: Any) -> str:
    return " ".join(f"{key}={one}" for key, one in value.items()) if isinstance(value, Mapping) else str(value)


def _digest(path: Path) -> bytes:
    """Hash the files of a program."""
    digest = hashlib.sha256()
    for file in files_of(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.digest()


def _count_classes(program: ExportedModel) -> int:
    metadata = program.metadata
    if metadata.task != "classification":
        return 0
    if metadata.class_names is not None:
        return len(metadata.class_names)
    least = metadata.axes.get("batch", (1, None))[0]
    kind = torch.uint8 if metadata.preprocess == "uint8" else torch.float32
    return int(program(torch.zeros(least, *metadata.input_size, dtype=kind))[0].shape[1])


def say_device(path: Path, device: torch.device) -> None:
    """Say that an exported program computes on the CPU, where a GPU was chosen."""
    if device.type != "cpu":
        log.info("%s is computed on the CPU, not on %s", as_line(path), device)
