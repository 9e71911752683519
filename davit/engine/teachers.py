"""Open a model of the transformers library as a teacher: its classifier or features, and how it prepares images."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..files import read_small
from ..text import install_extra, some

log = logging.getLogger(__name__)

PREFIX = "transformers:"

_CONFIG = "config.json"
_MOST_CONFIG = 64 << 20  # bytes


@dataclass(frozen=True)
class Teacher:
    """A model to learn from, of any library, in eval mode.

    Attributes:
        config: input_size (C, H, W), mean and std, as it wants its images.
        class_names: by index; None where nothing tells them.
        num_classes: of its logits; 0 for a model without a classifier.
    """

    name: str
    model: nn.Module
    config: Mapping[str, Any]
    class_names: Sequence[str] | None
    num_classes: int


def named_for_transformers(teacher: str) -> str | None:
    """Return what --teacher names of the transformers library: transformers:NAME, or a folder with such a config.

    None for any other teacher, among them a folder in timm's format and one of a DaViT, which `load_model` opens.
    """
    if teacher.startswith(PREFIX):
        return teacher.removeprefix(PREFIX)
    file = Path(teacher) / _CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(read_small(file, _MOST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return None  # `load_model` says what is wrong with it
    if not isinstance(config, dict) or "architecture" in config:
        return None
    kind = config.get("model_type")
    return teacher if isinstance(kind, str) and kind != "davit" else None


def open_transformers(name: str, device: torch.device) -> Teacher:
    """Open a model of the transformers library: a folder, or a name of the hub.

    Nothing from the model's own files is run, and weights are read from safetensors alone.

    Raises:
        ValueError: the library is not installed, or it cannot read the model as one for images.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"it needs the transformers library ({error}): {install_extra('transformers')}") from error
    if not name.strip():
        raise ValueError(f"{PREFIX} names nothing after the colon; give a folder or OWNER/NAME of the hub.")
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        has_head = any("ForImageClassification" in one for one in config.architectures or ())
        kind = transformers.AutoModelForImageClassification if has_head else transformers.AutoModel
        model, info = kind.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"transformers cannot open it ({type(error).__name__}: {reason[:300]})") from error
    absent = sorted(info["missing_keys"])
    without_pooler = bool(absent) and all("pooler" in key for key in absent)
    if absent and not without_pooler:
        raise ValueError(f"its weights lack {len(absent)} tensors ({some(absent, 3)}), which would be random.")
    preparation = _preparation(transformers, name, config)
    adapter = TransformersTeacher(model, has_head, preparation["flipped"], use_pooler=not without_pooler)
    adapter.to(device).eval()
    try:
        adapter.measure(torch.zeros(1, *preparation["input_size"], device=device))
    except Exception as error:  # a model of any kind meets an image
        reason = " ".join(str(error).split())
        size = preparation["input_size"]
        raise ValueError(
            f"{type(model).__name__} gives nothing for an image of {size} ({type(error).__name__}: {reason[:300]}); "
            "a model of images with one vector each, or with logits, is needed."
        ) from error
    names = _class_names(config) if has_head else None
    return Teacher(f"{type(model).__name__} of {name}", adapter, preparation, names, adapter.num_classes)


class TransformersTeacher(nn.Module):
    """Give a model of transformers the methods that timm's tasks call.

    Features are what its classifier takes, else the pooled output, else the mean over the last hidden states.

    Attributes:
        num_classes: 0 without a classifier.
        num_features: channels of the features.
    """

    def __init__(self, model: nn.Module, has_head: bool, flipped: bool, use_pooler: bool) -> None:
        super().__init__()
        self.model = model
        self._has_head, self._flipped, self._use_pooler = has_head, flipped, use_pooler
        self.num_classes = self.num_features = 0
        self._classifier: str = ""
        if has_head:
            count = int(model.config.num_labels)  # type: ignore[union-attr,arg-type]
            linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == count]
            self._classifier = linear[-1] if linear else ""

    @torch.no_grad()
    def measure(self, image_BCHW: Tensor) -> None:
        """Find the number of classes and of features by an image."""
        self.num_features = self.forward_features(image_BCHW).shape[1]
        self.num_classes = self(image_BCHW).shape[1] if self._has_head else 0

    def _run(self, image_BCHW: Tensor, model: Any = None) -> Any:
        pixels = image_BCHW.flip(1) if self._flipped else image_BCHW
        return (self.model if model is None else model)(pixel_values=pixels)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        logits: Tensor = self._run(image_BCHW).logits
        return logits

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        """Return one vector for each image (B, C)."""
        if self._classifier:
            taken: list[Tensor] = []
            linear = self.model.get_submodule(self._classifier)
            handle = linear.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
            try:
                self._run(image_BCHW)
            finally:
                handle.remove()
            return _one_vector(taken[-1])
        if hasattr(self.model, "get_image_features"):  # towers of text and images
            output = self._run(image_BCHW, self.model.get_image_features)
        else:
            output = self._run(image_BCHW)
        if isinstance(output, Tensor):
            return _one_vector(output)
        pooled = getattr(output, "pooler_output", None) if self._use_pooler else None
        return _one_vector(output.last_hidden_state if pooled is None else pooled)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the features as they are."""
        return x


def _one_vector(x: Tensor) -> Tensor:
    """Take the mean over the places of tokens (B, N, C) or of a map (B, C, H, W)."""
    if x.dim() == 3:
        return x.mean(1)
    return x.mean((2, 3)) if x.dim() == 4 else x


def _preparation(transformers: Any, name: str, config: Any) -> dict[str, Any]:
    """Return input_size, mean and std for values of 0 to 1, and whether the bands are in the order of blue to red."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        log.warning(
            "--teacher %s has no image processor (%s): its images are normalised as ImageNet's.",
            *(name, " ".join(str(error).split())[:120]),
        )
        processor = None

    def said(key: str, otherwise: Any) -> Any:
        value = getattr(processor, key, None)
        return otherwise if value is None else value

    bands = int(getattr(_vision(config), "num_channels", None) or 3)
    scale = 255 * said("rescale_factor", 1 / 255) if said("do_rescale", True) else 255.0
    mean, std = [0.0] * bands, [1.0] * bands
    if said("do_normalize", processor is None or hasattr(processor, "image_mean")):
        mean = list(said("image_mean", IMAGENET_DEFAULT_MEAN))
        std = list(said("image_std", IMAGENET_DEFAULT_STD))
    offset = 1.0 if said("rescale_offset", False) else 0.0
    mean, std = ([float(one) for one in values] for values in (mean, std))
    mean, std = ([*values] * bands if len(values) == 1 else values for values in (mean, std))
    flipped = bool(said("do_flip_channel_order", False))
    if flipped:  # the values are for the bands in the model's order
        mean, std = mean[::-1], std[::-1]
    return {
        "input_size": (bands, *_size(processor, config)),
        "mean": [(one + offset) / scale for one in mean],
        "std": [one / scale for one in std],
        "flipped": flipped,
    }


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", None) or config


def _size(processor: Any, config: Any) -> tuple[int, int]:
    """Find the height and the width of the images: as they leave the processor, else of the model's config."""
    crops = getattr(processor, "do_center_crop", None)
    for size in (getattr(processor, "crop_size", None) if crops else None, getattr(processor, "size", None)):
        if not size:
            continue
        given = {key: size[key] for key in ("height", "width", "shortest_edge", "longest_edge") if _has(size, key)}
        if {"height", "width"} <= given.keys():
            return int(given["height"]), int(given["width"])
        if given:
            side = int(given.get("shortest_edge") or given["longest_edge"])
            return side, side
    side = getattr(_vision(config), "image_size", None) or 224
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return int(height), int(width)


def _has(size: Any, key: str) -> bool:
    try:
        return size[key] is not None
    except (KeyError, AttributeError):
        return False


def _class_names(config: Any) -> list[str] | None:
    """Return the names of the classes by index; None where they are transformers' own LABEL_0, LABEL_1, ..."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    listed = [names[index] for index in sorted(names)]
    if sorted(names) != list(range(len(names))) or listed == [f"LABEL_{index}" for index in range(len(names))]:
        return None
    return listed
