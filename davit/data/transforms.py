"""timm's transforms under the command line's words, ending in a normalised float tensor made on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

from .dataset import Transform
from .crop_first import CropFirst

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
ERASE_MODES = ("const", "rand", "pixel")
Size = int | Sequence[int]


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
    """PIL picture -> (3, H, W), or (aug_splits, 3, H, W) with split 0 unaugmented; float32, normalised.

    `img_size` is H = W, (H, W) or (C, H, W). `resplit` keeps random erasing off the clean split; without
    splits timm then erases in the second half of each batch only, which for a single sample is half the
    probability. With `scaled_decoding` a data set decodes a JPEG that is much larger than its crop needs at a
    fraction of its size (see `davit.data.crop_first`); not with splits. Raises `ValueError` naming the value and the choices.
    """
    _check_choice("--train-interpolation", train_interpolation, ("random", *INTERPOLATIONS))
    _check_choice("--remode", remode, ERASE_MODES)
    for flag, share in (("--hflip", hflip), ("--vflip", vflip), ("--reprob", reprob)):
        if not 0 <= share <= 1:
            raise ValueError(f"{flag} {share} is not a probability between 0 and 1")
    for flag, bounds in (("--scale", scale), ("--ratio", ratio)):
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"{flag} {list(bounds)} is not a range: two positive numbers, the smaller first")
    if aug_splits < 0 or aug_splits == 1 or (aug_splits and no_aug):
        choices = "only 0 with --no-aug" if no_aug else "0, or 2 and more (one of them clean)"
        raise ValueError(f"--aug-splits {aug_splits} is not possible: {choices}")
    if recount < 1:
        raise ValueError(f"--recount {recount} is not a count of 1 or more")
    options: dict[str, Any] = {
        "is_training": True,
        "no_aug": no_aug,
        "scale": tuple(scale),
        "ratio": tuple(ratio),
        "hflip": hflip,
        "vflip": vflip,
        "color_jitter": color_jitter,
        "auto_augment": aa if aa and aa.lower() != "none" else None,
        "interpolation": train_interpolation,
        "re_mode": remode,
        "re_count": recount,
    }
    if not aug_splits:
        transform = _create(img_size, mean, std, **options, re_prob=reprob / 2 if resplit else reprob)
        first, *rest = transform.transforms
        if scaled_decoding and isinstance(first, RandomResizedCropAndInterpolation):
            return CropFirst(first, Compose(rest))
        return transform
    eraser = RandomErasing(
        reprob, mode=remode, max_count=recount, num_splits=aug_splits if resplit else 0, device="cpu"
    )
    base, augment, normalise = _create(img_size, mean, std, **options, separate=True)
    return SplitTransform(base, augment, normalise, num_splits=aug_splits, erase=eraser)


def eval_transform(
    *,
    img_size: Size = 224,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str = "bicubic",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Transform:
    """PIL picture -> (3, H, W) float32: resized to img_size / crop_pct, centre crop, normalised.

    `crop_pct` None is timm's 0.875; `crop_mode` is center (default), squash or border.
    """
    _check_choice("--interpolation", interpolation, INTERPOLATIONS)
    _check_choice("--crop-mode", crop_mode or "center", ("center", "squash", "border"))
    if crop_pct is not None and crop_pct <= 0:
        raise ValueError(f"--crop-pct {crop_pct} is not a share above 0, such as 0.9")
    return _create(img_size, mean, std, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation)


class SplitTransform:
    """One picture -> its clean split and `num_splits` - 1 augmented ones, (S, C, H, W), as AugMix asks for.

    The same steps as timm's `AugMixDataset`, which wraps a data set and erases the clean split too.
    """

    def __init__(
        self, base: Any, augment: Any, normalise: Transform, num_splits: int, erase: RandomErasing
    ) -> None:
        self.base = base
        self.augment = augment
        self.normalise = normalise
        self.num_splits = num_splits
        self.erase = erase

    def __call__(self, image: Image.Image) -> Tensor:
        clean = self.base(image)
        augmented = [self.normalise(self.augment(clean)) for _ in range(self.num_splits - 1)]
        return self.erase(torch.stack([self.normalise(clean), *augmented]))


class ToNormalizedTensor:
    """RGB picture -> (3, H, W) float32, (x / 255 - mean) / std: torchvision's two steps, to the last bit, in place."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, image: Image.Image) -> Tensor:
        bands = (image if image.mode == "RGB" else image.convert("RGB")).split()
        pixels = torch.from_numpy(np.stack([np.asarray(band) for band in bands]))
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)


def _create(img_size: Size, mean: Sequence[float], std: Sequence[float], **options: Any) -> Any:
    """timm's transform; its assertions about the user's values become `ValueError`."""
    size: Any = img_size if isinstance(img_size, int) else tuple(img_size)[-2:]
    if min((size,) if isinstance(size, int) else size) < 1:
        raise ValueError(f"--img-size {img_size} is not a size of 1 pixel or more")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"--mean {list(mean)} and --std {list(std)} must be three numbers each, std above 0")
    try:
        transform = create_transform(size, mean=tuple(mean), std=tuple(std), use_prefetcher=False, **options)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"timm cannot build the transform with --aa {options.get('auto_augment')!r}: {error!r}; "
            "known are such as rand-m9-mstd0.5-inc1, augmix-m5-w4, original, v0, 3a and none"
        ) from error
    for operation in _augment_ops(transform):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    for steps in transform if isinstance(transform, tuple) else (transform,):
        _join_ending(steps, ToNormalizedTensor(mean, std))
    return transform


def _join_ending(steps: Compose, ending: ToNormalizedTensor) -> None:
    """Let one step stand for timm's conversion to a tensor and the normalisation behind it."""
    kinds = [type(step) for step in steps.transforms]
    if MaybeToTensor in kinds:
        at = kinds.index(MaybeToTensor)
        assert kinds[at + 1] is Normalize, kinds
        steps.transforms[at : at + 2] = [ending]


def _augment_ops(part: Any) -> Iterator[AugmentOp]:
    """The single operations inside a (nested) transform of timm's."""
    if isinstance(part, AugmentOp):
        yield part
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _augment_ops(inner)
    else:
        for name in ("transforms", "ops", "policy"):
            yield from _augment_ops(getattr(part, name, ()))


def _posterize(image: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """timm's operation also for the 0 bits (or fewer) of its highest magnitudes: black.

    Pillow before 13 did this itself; Pillow 13 raises, in the midst of a run with the default --aa.
    """
    return posterize(image, bits_to_keep, **kwargs) if bits_to_keep > 0 else Image.new(image.mode, image.size)


def _check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{flag} {value!r} is unknown; choose from {', '.join(choices)}")
