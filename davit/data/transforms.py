"""Build timm's transforms, which end in a normalised float tensor made on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import CenterCropOrPad, MaybeToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import Compose, Normalize

from .crop_first import CropFirst, each_band
from .dataset import Transform
from .decode import Pixels
from .errors import require, require_choice
from .limits import bounded

log = logging.getLogger(__name__)

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
ERASE_MODES = ("const", "rand", "pixel")
Size = int | Sequence[int]

COLOUR_JITTER = 0.4
AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"

_ONLY_RESIZING = (Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.HAMMING)  # Pillow cannot rotate by


def train_transform(
    *,
    img_size: Size = 224,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = COLOUR_JITTER,
    aa: str | None = AUTO_AUGMENT,
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
    """Build the training transform: decoded image -> (C, H, W), or (aug_splits, 3, H, W); float32, normalised.

    `img_size` is H = W, (H, W) or (C, H, W), and C is 3 where it does not say. Other numbers of bands have a mean and
    a std each, and the crop, flips and erasing; colour jitter, auto-augmentation and splits are for RGB, so that
    their defaults are left out and other values refused.

    Of several splits the first is not augmented, and `resplit` keeps random erasing off it; without splits timm then
    erases in the second half of each batch only, which for a single sample is half the probability. With
    `scaled_decoding` a data set decodes a JPEG that is much larger than its crop needs at a fraction of its size (see
    `davit.data.crop_first`); not with splits.

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
    bands = bands_of(img_size)
    if bands != 3:
        color_jitter, aa = _without_colour(bands, color_jitter, aa)
        require(aug_splits == 0, "aug_splits", aug_splits, f"0 for images of {bands} bands: splits are of RGB")
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
    if (scaled_decoding or bands != 3) and isinstance(first, RandomResizedCropAndInterpolation):
        return CropFirst(first, Compose(rest))
    return transform


def bands_of(img_size: Size) -> int:
    """Return C of (C, H, W), and 3 where a size does not say."""
    return img_size[0] if not isinstance(img_size, int) and len(img_size) == 3 else 3


def _without_colour(
    bands: int, color_jitter: float | Sequence[float] | None, aa: str | None
) -> tuple[float | None, str | None]:
    """Leave out the defaults that change colours, which other than three bands do not have; refuse other values."""
    has_jitter = any(np.atleast_1d(color_jitter or 0.0))
    has_aa = bool(aa) and aa.lower() != "none"  # type: ignore[union-attr]
    right = f"left out for images of {bands} bands: it changes the colours of RGB"
    require(not has_jitter or color_jitter == COLOUR_JITTER, "color_jitter", color_jitter, f"0, or {right}")
    require(not has_aa or aa == AUTO_AUGMENT, "aa", aa, f"none, or {right}")
    if has_jitter or has_aa:
        log.info("Images of %d bands: no auto-augmentation or colour jitter, which are for RGB.", bands)
    return None, None


def eval_transform(
    *,
    img_size: Size = 224,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str = "bicubic",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Transform:
    """Build the evaluation transform: decoded image -> (C, H, W) float32, normalised; C is that of `img_size`, or 3.

    Its steps are a resizing to img_size / crop_pct and a centre crop. `crop_pct` None is timm's 0.875; `crop_mode` is
    center (default), squash or border.
    """
    require_choice("interpolation", interpolation, INTERPOLATIONS)
    require_choice("crop_mode", crop_mode or "center", CROP_MODES)
    require(crop_pct is None or crop_pct > 0, "crop_pct", crop_pct, "a share above 0, such as 0.9")
    return _create(img_size, mean, std, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation)


@dataclass
class SplitTransform:
    """Turn an image into its clean split and `num_splits` - 1 augmented ones, (S, C, H, W), as AugMix asks for.

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
    """Turn a decoded image into (C, H, W) float32, (x / 255 - mean) / std, in place.

    The result is that of torchvision's two steps, to the last bit.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, image: Pixels) -> Tensor:
        if not isinstance(image, Image.Image):
            array_CHW = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            return array_CHW.to(torch.float32, copy=True).div_(255).sub_(self.mean).div_(self.std)
        bands = (image if image.mode == "RGB" else image.convert("RGB")).split()
        pixels = torch.from_numpy(np.stack([np.asarray(band) for band in bands]))
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)


def _create(img_size: Size, mean: Sequence[float], std: Sequence[float], **options: Any) -> Any:
    """Create timm's transform; its assertions about the user's values become `ValueError`."""
    size: Any = img_size if isinstance(img_size, int) else tuple(img_size)[-2:]
    require(min((size,) if isinstance(size, int) else size) >= 1, "img_size", img_size, "a size of 1 pixel or more")
    bands = bands_of(img_size)
    require(len(mean) == bands, "mean", list(mean), f"{bands} numbers, one for each band")
    require(len(std) == bands and min(std) > 0, "std", list(std), f"{bands} numbers above 0, one for each band")
    rgb = {"mean": tuple(mean), "std": tuple(std)} if bands == 3 else {}  # timm knows no other number of bands
    try:
        transform: Any = create_transform(size, use_prefetcher=False, **rgb, **options)
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
    if not isinstance(transform, tuple):
        transform = bounded(transform)
    for steps in transform if isinstance(transform, tuple) else (transform,):
        _join_ending(steps, ToNormalizedTensor(mean, std))
        if bands != 3:
            _take_arrays(steps, mean)
    return transform


@dataclass
class EachBand:
    """Apply steps for greyscale images to each band of an array (H, W, C), padding each with its own fill."""

    steps: Sequence[Callable[[Image.Image], Image.Image]]
    fill: Sequence[int]

    def __call__(self, image: Pixels) -> Pixels:
        fills = iter(self.fill)

        def change(band: Image.Image) -> Image.Image:
            fill = next(fills)
            for step in self.steps:
                if isinstance(step, CenterCropOrPad):
                    step = CenterCropOrPad(step.size, fill=fill)
                band = step(band)
            return band

        return each_band(change, image)


def _take_arrays(steps: Compose, mean: Sequence[float]) -> None:
    """Let timm's transform take arrays (H, W, C): the steps behind the crop work on tensors, those before on bands."""
    kinds = [type(step) for step in steps.transforms]
    ending = steps.transforms.pop(kinds.index(ToNormalizedTensor))
    if RandomResizedCropAndInterpolation in kinds:  # `CropFirst` crops arrays; flips and erasing take tensors
        steps.transforms.insert(1, ending)
    else:
        steps.transforms[:] = [EachBand(list(steps.transforms), [round(255 * value) for value in mean]), ending]


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
