"""Build timm's transforms, which end in a normalised float tensor made on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import Compose, Normalize

from .crop_first import CropFirst
from .dataset import Transform
from .errors import require, require_choice

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
ERASE_MODES = ("const", "rand", "pixel")
Size = int | Sequence[int]

_ONLY_RESIZING = (Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.HAMMING)  # Pillow cannot rotate by


def train_transform(
    *,
    img_size: Size = 224,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    aa: str | None = "rand-m9-mstd0.5-inc1",
    train_interpolation: str = "bicubic",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    reprob: float = 0.25,
    remode: str = "pixel",
    recount: int = 1,
    resplit: bool = False,
    aug_splits: int = 0,
    no_aug: bool = False,
    scaled_decoding: bool = True,
) -> Transform:
    """Build the training transform: PIL picture -> (3, H, W), or (aug_splits, 3, H, W); float32, normalised.

    `img_size` is H = W, (H, W) or (C, H, W). Of several splits the first is not augmented, and `resplit` keeps random
    erasing off it; without splits timm then erases in the second half of each batch only, which for a single sample
    is half the probability. With `scaled_decoding` a data set decodes a JPEG that is much larger than its crop needs
    at a fraction of its size (see `davit.data.crop_first`); not with splits.

    Raises `ValueError` naming the value and the choices.
    """
    require_choice("train_interpolation", train_interpolation, ("random", *INTERPOLATIONS))
    require_choice("remode", remode, ERASE_MODES)
    for name, share in (("hflip", hflip), ("vflip", vflip), ("reprob", reprob)):
        require(0 <= share <= 1, name, share, "a probability between 0 and 1")
    for name, bounds in (("scale", scale), ("ratio", ratio)):
        is_range = len(bounds) == 2 and 0 < bounds[0] <= bounds[1]
        require(is_range, name, list(bounds), "a range: two positive numbers, the smaller first")
    splits = "0, the only choice with `no_aug=True`" if no_aug else "0, or 2 and more (one of them clean)"
    require(aug_splits == 0 or (aug_splits > 1 and not no_aug), "aug_splits", aug_splits, splits)
    require(recount >= 1, "recount", recount, "a count of 1 or more")
    transform = _create(
        img_size,
        mean,
        std,
        is_training=True,
        no_aug=no_aug,
        scale=tuple(scale),
        ratio=tuple(ratio),
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        auto_augment=aa if aa and aa.lower() != "none" else None,
        interpolation=train_interpolation,
        re_mode=remode,
        re_count=recount,
        re_prob=0.0 if aug_splits else reprob / 2 if resplit else reprob,
        separate=aug_splits > 0,
    )
    if aug_splits:
        clean_splits = aug_splits if resplit else 0
        eraser = RandomErasing(reprob, mode=remode, max_count=recount, num_splits=clean_splits, device="cpu")
        base, augment, normalise = transform
        return SplitTransform(base, augment, normalise, num_splits=aug_splits, erase=eraser)
    first, *rest = transform.transforms
    if scaled_decoding and isinstance(first, RandomResizedCropAndInterpolation):
        return CropFirst(first, Compose(rest))
    return transform


def eval_transform(
    *,
    img_size: Size = 224,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str = "bicubic",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Transform:
    """Build the evaluation transform: PIL picture -> (3, H, W) float32, normalised.

    Its steps are a resizing to img_size / crop_pct and a centre crop. `crop_pct` None is timm's 0.875; `crop_mode` is
    center (default), squash or border.
    """
    require_choice("interpolation", interpolation, INTERPOLATIONS)
    require_choice("crop_mode", crop_mode or "center", CROP_MODES)
    require(crop_pct is None or crop_pct > 0, "crop_pct", crop_pct, "a share above 0, such as 0.9")
    return _create(img_size, mean, std, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation)


@dataclass
class SplitTransform:
    """Turn a picture into its clean split and `num_splits` - 1 augmented ones, (S, C, H, W), as AugMix asks for.

    The same steps as timm's `AugMixDataset`, which wraps a data set and erases the clean split too.
    """

    base: Any
    augment: Any
    normalise: Transform
    num_splits: int
    erase: RandomErasing

    def __call__(self, image: Image.Image) -> Tensor:
        clean = self.base(image)
        augmented = [self.normalise(self.augment(clean)) for _ in range(self.num_splits - 1)]
        return self.erase(torch.stack([self.normalise(clean), *augmented]))


class ToNormalizedTensor:
    """Turn an RGB picture into (3, H, W) float32, (x / 255 - mean) / std, in place.

    The result is that of torchvision's two steps, to the last bit.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, image: Image.Image) -> Tensor:
        bands = (image if image.mode == "RGB" else image.convert("RGB")).split()
        pixels = torch.from_numpy(np.stack([np.asarray(band) for band in bands]))
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)


def _create(img_size: Size, mean: Sequence[float], std: Sequence[float], **options: Any) -> Any:
    """Create timm's transform; its assertions about the user's values become `ValueError`."""
    size: Any = img_size if isinstance(img_size, int) else tuple(img_size)[-2:]
    require(min((size,) if isinstance(size, int) else size) >= 1, "img_size", img_size, "a size of 1 pixel or more")
    require(len(mean) == 3, "mean", list(mean), "three numbers")
    require(len(std) == 3 and min(std) > 0, "std", list(std), "three numbers above 0")
    try:
        transform = create_transform(size, mean=tuple(mean), std=tuple(std), use_prefetcher=False, **options)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"timm cannot build the transform with `aa={options.get('auto_augment')!r}`: {error!r}; "
            "known are such as rand-m9-mstd0.5-inc1, augmix-m5-w4, original, v0, 3a and none"
        ) from error
    for operation in _augment_ops(transform):
        if operation.aug_fn is posterize:
            operation.aug_fn = posterize_or_black
        if operation.kwargs["resample"] in _ONLY_RESIZING:
            operation.kwargs["resample"] = Image.Resampling.BICUBIC
    for steps in transform if isinstance(transform, tuple) else (transform,):
        _join_ending(steps, ToNormalizedTensor(mean, std))
    return transform


def _join_ending(steps: Compose, ending: ToNormalizedTensor) -> None:
    """Replace timm's conversion to a tensor and the normalisation behind it by one step."""
    kinds = [type(step) for step in steps.transforms]
    if MaybeToTensor in kinds:
        at = kinds.index(MaybeToTensor)
        assert kinds[at + 1] is Normalize, kinds
        steps.transforms[at : at + 2] = [ending]


def _augment_ops(part: Any) -> Iterator[AugmentOp]:
    """Yield the single operations inside a (nested) transform of timm's."""
    if isinstance(part, AugmentOp):
        yield part
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _augment_ops(inner)
    else:
        for name in ("transforms", "ops", "policy"):
            yield from _augment_ops(getattr(part, name, ()))


def posterize_or_black(image: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """Posterize as timm does, and give black for the 0 bits (or fewer) of its highest magnitudes.

    Pillow before 13 did this itself; Pillow 13 raises, in the midst of a run with the default `aa`.
    """
    return posterize(image, bits_to_keep, **kwargs) if bits_to_keep > 0 else Image.new(image.mode, image.size)
