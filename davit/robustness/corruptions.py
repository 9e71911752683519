"""Corrupt images in the 15 ways and 5 severities of ImageNet-C.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019).
What each corruption stands for is the paper's, and the numbers of each severity are those that its data set was made
with; the code is ours. Frost there is a photograph of ice laid over the image; none is shipped here, and the ice is
drawn by `_ice`. The paper's images have 224 pixels a side: at other sizes lengths grow and shrink with the side, so
that the same share of the image is touched; noise, and the blocks of JPEG, are of pixels as they are.

Shapes: H, W rows and columns, C = 3 bands. Images are float32 of 0 to 1.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates  # type: ignore[import-untyped]
from scipy.signal import fftconvolve  # type: ignore[import-untyped]
from scipy.spatial import cKDTree  # type: ignore[import-untyped]

SIDE = 224  # pixels, of the images for which the severities were chosen
SEVERITIES = (1, 2, 3, 4, 5)

Array: TypeAlias = np.ndarray[Any, Any]
Random: TypeAlias = np.random.Generator


def corrupt(image: Image.Image, corruption: str, severity: int, random: Random) -> Image.Image:
    """Return a corrupted copy of an RGB image.

    Args:
        corruption: of `CORRUPTIONS`.
        severity: 1 to 5.
        random: where all that is random comes from; the same state gives the same image.

    Raises:
        ValueError: there is no such corruption or severity.
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"`corruption={corruption}` at `severity={severity}` is unknown; there are "
            f"{', '.join(CORRUPTIONS)}, at 1 to 5."
        )
    image = image.convert("RGB")
    image_HWC = np.asarray(image, dtype=np.float32) / 255
    scale = min(image.size) / SIDE
    changed_HWC = CORRUPTIONS[corruption](image_HWC, severity - 1, scale, random)
    return Image.fromarray((255 * np.clip(changed_HWC, 0, 1)).round().astype(np.uint8))


# ---- noise ----


def gaussian_noise(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Add normal noise, as low light gives."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity]
    return image_HWC + deviation * random.standard_normal(image_HWC.shape, dtype=np.float32)


def shot_noise(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Count photons: of white this many come in the mean."""
    photons = (60, 25, 12, 5, 3)[severity]
    return random.poisson(photons * image_HWC) / photons


def impulse_noise(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Set a share of all values to 0 or 1, as broken bits do."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity]
    drawn_HWC = random.random(image_HWC.shape, dtype=np.float32)
    low_HWC, high_HWC = drawn_HWC < share / 2, drawn_HWC > 1 - share / 2
    return np.where(low_HWC, 0, np.where(high_HWC, 1, image_HWC))


# ---- blur ----


def defocus_blur(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Spread each point over a disc, as a lens out of focus does."""
    radius, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity]
    reach = math.ceil(radius * scale) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # a pixel at the rim counts by the part of it that the disc covers
    disc = np.clip(max(radius * scale, 0.5) + 0.5 - np.hypot(y, x), 0, 1)
    return _convolved(image_HWC, gaussian_filter(disc, softness * scale))


def glass_blur(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Exchange each pixel with one near it, as frosted glass does; blur before and after."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity]
    share = min(1.0, reach * scale)  # of the pixels that move, where a whole pixel is more than the reach
    reach = max(1, round(reach * scale))
    H, W = image_HWC.shape[:2]
    blurred_HWC = gaussian_filter(image_HWC, (sigma * scale, sigma * scale, 0))
    step = 2 * reach + 1  # pixels so far apart do not meet when they are exchanged, and go at once
    for _ in range(rounds):
        for start in random.permutation(step * step):
            y, x = np.mgrid[start // step : H : step, start % step : W : step]
            dy, dx = random.integers(-reach, reach, (2, *y.shape))  # one less to the right, as in the paper's data
            moves = random.random(y.shape) < share
            dy, dx = dy * moves, dx * moves
            to_y, to_x = np.clip(y + dy, 0, H - 1), np.clip(x + dx, 0, W - 1)
            here, there = blurred_HWC[y, x], blurred_HWC[to_y, to_x]
            blurred_HWC[y, x], blurred_HWC[to_y, to_x] = there, here
    return gaussian_filter(blurred_HWC, (sigma * scale, sigma * scale, 0))


def motion_blur(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Draw each point out along a line, up to 45 degrees from the horizontal, as a camera that moves does."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity]
    return _convolved(image_HWC, _streak(radius * scale, sigma * scale, random.uniform(-45, 45)))


def zoom_blur(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Average the image with magnified ones, as a camera that comes nearer does."""
    largest, step = ((1.11, 0.01), (1.16, 0.01), (1.2, 0.02), (1.26, 0.02), (1.33, 0.03))[severity]
    picture = Image.fromarray((255 * image_HWC).round().astype(np.uint8))
    W, H = picture.size
    factors = np.linspace(1, largest, round((largest - 1) / step) + 1)
    total_HWC = image_HWC.copy()
    for factor in factors:
        margin_x, margin_y = W * (1 - 1 / factor) / 2, H * (1 - 1 / factor) / 2
        box = (margin_x, margin_y, W - margin_x, H - margin_y)
        total_HWC += np.asarray(picture.resize((W, H), Image.Resampling.BILINEAR, box), dtype=np.float32) / 255
    return total_HWC / (len(factors) + 1)


# ---- weather ----


def snow(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Whiten the image, and let flakes fall through it, drawn out along their way."""
    mean, deviation, size, threshold, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity]
    H, W = image_HWC.shape[:2]
    size = max(1.0, size * scale)
    grains = random.normal(mean, deviation, (math.ceil(H / size), math.ceil(W / size))).astype(np.float32)
    flakes_HW = np.asarray(Image.fromarray(grains).resize((W, H), Image.Resampling.BILINEAR))
    flakes_HW = np.clip(np.where(flakes_HW < threshold, 0, flakes_HW), 0, 1)
    flakes_HW1 = _convolved(flakes_HW[..., None], _streak(radius * scale, sigma * scale, random.uniform(-135, -45)))
    grey_HW1 = image_HWC @ np.array([0.299, 0.587, 0.114], dtype=np.float32)[:, None]
    white_HWC = np.maximum(image_HWC, 1.5 * grey_HW1 + 0.5)
    return kept * image_HWC + (1 - kept) * white_HWC + flakes_HW1 + flakes_HW1[::-1, ::-1]


def frost(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Lay ice over the image, as on a cold window."""
    kept, added = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity]
    H, W = image_HWC.shape[:2]
    return kept * image_HWC + added * _ice(H, W, scale, random)


def fog(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Add clouds by the diamond-square algorithm, and keep the brightest value where it was."""
    strength, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity]
    top = float(image_HWC.max())
    H, W = image_HWC.shape[:2]
    clouds_HW1 = _plasma(H, W, decay**2, random)[..., None]
    return (image_HWC + strength * clouds_HW1) * top / (top + strength)


# ---- digital ----


def brightness(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Raise the value of each pixel, in the terms of hue, saturation and value."""
    added = (0.1, 0.2, 0.3, 0.4, 0.5)[severity]
    value_HW1 = image_HWC.max(2, keepdims=True)
    raised_HW1 = np.minimum(value_HW1 + added, 1)
    # hue and saturation stay where all bands grow by one factor; black has none, and becomes grey
    return np.where(value_HW1 > 0, image_HWC * raised_HW1 / np.maximum(value_HW1, 1e-6), raised_HW1)


def contrast(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Draw each band towards its mean."""
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity]
    mean_11C = image_HWC.mean((0, 1), keepdims=True)
    return mean_11C + kept * (image_HWC - mean_11C)


def elastic_transform(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Stretch and press small parts of the image, after a slight affine change."""
    alpha, sigma, shift = (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    )[severity]
    H, W = image_HWC.shape[:2]
    middle, arm = np.array([H / 2, W / 2]), min(H, W) / 3
    before = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + random.uniform(-shift * scale, shift * scale, (3, 2))
    # where each point of the new image comes from: [y, x, 1] @ map
    source = np.linalg.solve(np.c_[after, np.ones(3)], before)
    y, x = np.mgrid[:H, :W].astype(np.float64)
    moved_2HW = np.einsum("kHW,kd->dHW", np.stack([y, x, np.ones_like(y)]), source)
    # filtered noise is the weaker the wider the filter: by the square in all, for shifts in proportion to the side
    noise_2HW = random.uniform(-1, 1, (2, H, W))
    for one_HW in noise_2HW:
        one_HW[:] = gaussian_filter(one_HW, max(sigma * scale, 0.3), mode="reflect", truncate=3) * alpha * scale**2
    where_2HW = moved_2HW + noise_2HW
    bands = [map_coordinates(image_HWC[..., band], where_2HW, order=1, mode="reflect") for band in range(3)]
    return np.stack(bands, axis=2)


def pixelate(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Make the image smaller, and large again without smoothing."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity]
    picture = Image.fromarray((255 * image_HWC).round().astype(np.uint8))
    W, H = picture.size
    small = picture.resize((max(1, int(W * share)), max(1, int(H * share))), Image.Resampling.BOX)
    return np.asarray(small.resize((W, H), Image.Resampling.BOX), dtype=np.float32) / 255


def jpeg_compression(image_HWC: Array, severity: int, scale: float, random: Random) -> Array:
    """Compress as JPEG, with its artefacts."""
    quality = (25, 18, 15, 10, 7)[severity]
    stream = io.BytesIO()
    Image.fromarray((255 * image_HWC).round().astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"), dtype=np.float32) / 255


CORRUPTIONS: dict[str, Callable[[Array, int, float, Random], Array]] = {
    one.__name__: one
    for one in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog),
        *(brightness, contrast, elastic_transform, pixelate, jpeg_compression),
    )
}


# ---- what they are made of ----


def _convolved(image_HWC: Array, kernel: Array) -> Array:
    """Convolve each band with a kernel of odd sides, whose values are brought to the sum 1; edges are mirrored."""
    kernel = (kernel / kernel.sum()).astype(np.float32)
    y, x = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(image_HWC, ((y, y), (x, x), (0, 0)), mode="symmetric")
    return fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


def _streak(radius: float, sigma: float, degrees: float) -> Array:
    """Make the kernel of a motion: from the middle along a line, fading as the half of a bell curve."""
    reach = 2 * radius
    along = np.linspace(0, reach, max(2, 4 * math.ceil(reach) + 1))
    weight = np.exp(-(along**2) / (2 * max(sigma, 1e-3) ** 2))
    side = math.ceil(reach) + 1
    kernel = np.zeros((2 * side + 1, 2 * side + 1))
    y = side + along * math.sin(math.radians(degrees))
    x = side + along * math.cos(math.radians(degrees))
    for dy in (0, 1):  # a point between four pixels is shared out among them
        for dx in (0, 1):
            row, column = np.floor(y).astype(int) + dy, np.floor(x).astype(int) + dx
            share = np.clip(1 - np.abs(y - row), 0, 1) * np.clip(1 - np.abs(x - column), 0, 1)
            inside = (row <= 2 * side) & (column <= 2 * side)
            np.add.at(kernel, (row[inside], column[inside]), (weight * share)[inside])
    return kernel


def _plasma(H: int, W: int, decay: float, random: Random) -> Array:
    """Draw clouds (H, W) of 0 to 1 by the diamond-square algorithm on a grid whose edges meet.

    Args:
        decay: by how much the random part shrinks from one grid to the next, which is twice as fine.
    """
    size = 1 << max(1, math.ceil(math.log2(max(H, W))))
    grid = np.zeros((size, size))
    step, strength = size, 1.0
    while step >= 2:
        half = step // 2
        corners = grid[::step, ::step]
        right, down = np.roll(corners, -1, 1), np.roll(corners, -1, 0)
        shape = corners.shape

        def shaken(strength: float = strength, shape: tuple[int, ...] = shape) -> Array:
            return strength * random.uniform(-1, 1, shape)

        middle = (corners + right + down + np.roll(right, -1, 0)) / 4 + shaken()
        grid[half::step, half::step] = middle
        grid[half::step, ::step] = (corners + down + middle + np.roll(middle, 1, 1)) / 4 + shaken()
        grid[::step, half::step] = (corners + right + middle + np.roll(middle, 1, 0)) / 4 + shaken()
        step, strength = half, strength / decay
    grid -= grid.min()
    return (grid / (grid.max() or 1.0)).astype(np.float32)[:H, :W]


def _ice(H: int, W: int, scale: float, random: Random) -> Array:
    """Draw ice (H, W, 3): crystals that meet in bright rims, thicker in some places, needles across them, bluish.

    Random cells at two sizes give the rims (a point is near one if its two nearest seeds are equally far), clouds the
    thickness.
    """
    y, x = np.mgrid[:H, :W].astype(np.float32) / max(scale, 1e-3)  # in pixels of an image of 224
    bend = 14 * (_plasma(H, W, 2.2, random) - 0.5), 14 * (_plasma(H, W, 2.2, random) - 0.5)
    places = np.stack([y + bend[0], x + bend[1]], axis=-1).reshape(-1, 2)
    rims_HW = np.zeros((H, W), dtype=np.float32)
    for cell, width, weight in ((38, 5.0, 0.5), (13, 2.2, 0.35)):
        reach = np.array([y.max(), x.max()]) + 2 * cell
        count = max(4, int(np.prod(reach + 2 * cell) / cell**2))
        seeds = random.uniform(-2.0 * cell, reach, (count, 2))
        near, second = cKDTree(seeds).query(places, k=2)[0].T
        rims_HW += weight * np.exp(-(second - near) / width).reshape(H, W)
    angle = random.uniform(0, math.pi)
    needles_HW1 = _convolved(
        random.random((H, W, 1), dtype=np.float32), _streak(14 * scale, 9 * scale, math.degrees(angle))
    )
    needles_HW = needles_HW1[..., 0] - needles_HW1.min()
    thick_HW = _plasma(H, W, 1.9, random)
    ice_HW = (
        0.15 + 0.55 * thick_HW + rims_HW * (0.4 + thick_HW) + 0.35 * needles_HW / max(float(needles_HW.max()), 1e-6)
    )
    tint = np.array([0.9, 0.97, 1.05], dtype=np.float32)
    return np.clip(ice_HW * 0.75, 0, 1)[..., None] * tint
