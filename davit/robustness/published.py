"""Hold published figures: AlexNet's errors, by which corruption errors are divided, and timm's rows of DaViT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Errors of AlexNet on ImageNet-C, 0 to 1, the mean of the five severities. Hendrycks and Dietterich (ICLR 2019), as
# printed in full in their repository (github.com/hendrycks/robustness) and in AugMix's.
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}

# Top-1 in percent of the released weights, from timm's results files (github.com/huggingface/pytorch-image-models,
# results/), at a crop of 0.95. ImageNet-A and -R with their 200 classes alone.
_COLUMNS = ("val", "real", "v2", "a", "r", "sketch")
TIMM = {
    "davit_tiny": dict(zip(_COLUMNS, (82.694, 87.561, 71.880, 28.893, 47.433, 34.666), strict=True)),
    "davit_small": dict(zip(_COLUMNS, (84.252, 88.639, 73.960, 38.107, 51.437, 38.651), strict=True)),
    "davit_base": dict(zip(_COLUMNS, (84.652, 88.703, 74.400, 40.760, 51.270, 38.501), strict=True)),
}


def published(model: str) -> dict[str, float]:
    """Return timm's top-1 of an architecture by the set's key; empty where there is none."""
    return TIMM.get(model.lower().partition(".")[0], {})


def corruption_error(corruption: str, errors: Sequence[float]) -> float:
    """Return CE in percent: the sum of a model's errors over the five severities, over that of AlexNet's.

    Args:
        errors: 0 to 1, of the five severities.
    """
    if len(errors) != 5:
        raise ValueError(f"a corruption error is of five severities, not {len(errors)}.")
    return 100 * sum(errors) / (5 * ALEXNET[corruption])


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """Return mCE in percent: the mean of the 15 corruption errors.

    Args:
        errors: corruption -> errors, 0 to 1, of the five severities.

    Raises:
        ValueError: one of the 15 is missing, or has other than five errors.
    """
    if errors.keys() != ALEXNET.keys():
        missing = ", ".join(sorted(ALEXNET.keys() ^ errors.keys()))
        raise ValueError(f"mCE is the mean of ImageNet-C's 15 corruptions; too many or too few are {missing}.")
    return sum(corruption_error(name, errors[name]) for name in ALEXNET) / len(ALEXNET)
