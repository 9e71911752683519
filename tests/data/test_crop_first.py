"""Large JPEGs decoded at a fraction: where nothing changes, by how much it does elsewhere, and repeatably."""

import functools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from davit.data.crop_first import MARGINS, CropFirst, PendingCrop
from davit.data.dataset import PictureDataset, SeededDataset
from davit.data.decode import load_rgb
from davit.data.folder import FolderSource
from davit.data.transforms import train_transform

PLAIN = {"aa": None, "color_jitter": None, "reprob": 0.0, "hflip": 0.0, "mean": (0, 0, 0), "std": (1, 1, 1)}
SIDES = st.integers(8, 3000)


@functools.cache
def landscape(width, height):
    """Structure at all scales, as photographs have it: noise of many resolutions, each fainter the finer it is."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3))
    for octave in range(1, 9):
        small = Image.fromarray(rng.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8))
        total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float) / octave
    low, high = total.min(), total.max()
    return Image.fromarray(((total - low) / (high - low) * 255).astype(np.uint8))


@pytest.fixture
def saved(tmp_path):
    def save(image, suffix=".jpg", **options):
        file = tmp_path / "train" / "a" / f"picture{suffix}"
        file.parent.mkdir(parents=True)
        image.save(file, **({"quality": 90} if suffix == ".jpg" else {}), **options)
        return PictureDataset(FolderSource(file.parents[1]))

    return save


def sample(dataset, seed, **options):
    dataset.transform = train_transform(**{**PLAIN, "img_size": 112, **options})
    random.seed(seed)
    return dataset[0][0]


def near_and_exact(dataset, seed, **options):
    """A sample decoded at a fraction, the same of the whole picture, and how they differ in levels of 255."""
    near, exact = sample(dataset, seed, **options), sample(dataset, seed, scaled_decoding=False, **options)
    return near, exact, 255 * (near - exact).abs()


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
@pytest.mark.parametrize("size", [(300, 260), (90, 400)])
def test_a_small_picture_is_what_timm_makes_of_it(saved, size, interpolation):
    """With all augmentation, to the last bit."""
    dataset = saved(landscape(*size))
    options = {"color_jitter": 0.4, "hflip": 0.5, "interpolation": interpolation, "re_prob": 0.25, "re_mode": "pixel"}
    theirs = create_transform(224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", **options)
    picture = load_rgb(dataset.source.path(0))
    dataset.transform = train_transform(train_interpolation=interpolation)
    for seed in range(4):
        results = []
        for make in (lambda: dataset[0][0], lambda: theirs(picture), lambda: dataset.transform(picture)):
            random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
            results.append(make())
        assert torch.equal(results[0], results[1]) and torch.equal(results[2], results[1])


@settings(deadline=None, max_examples=50, derandomize=True)
@given(SIDES, SIDES, st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_picture_is_decoded_at_the_largest_fraction_that_leaves_the_margin(width, height, high, wide, seed):
    transform = train_transform(**{**PLAIN, "img_size": (high, wide)})
    random.seed(seed)
    crop = PendingCrop(transform)
    factor = crop.reduction(width, height, scalable=True)
    top, left, rows, columns = crop.box
    assert 0 <= top < top + rows <= height and 0 <= left < left + columns <= width
    room = min(rows / high, columns / wide)
    assert factor == max([1, *(f for f, margin in MARGINS.items() if f * margin <= room)])
    random.seed(seed)
    assert PendingCrop(transform).reduction(width, height, scalable=False) == 1


def test_pixels_differ_by_about_one_level(saved):
    """Of 255: below 1.5 in the mean of every sample, and 99 of 100 below 8."""
    dataset, reduced = saved(landscape(900, 600)), 0
    for seed in range(12):
        _, _, difference = near_and_exact(dataset, seed)
        if difference.any():
            reduced += 1
            assert difference.mean() < 1.5
            assert difference.quantile(0.99) < 8
    assert reduced >= 6


def test_random_numbers_are_drawn_as_with_the_whole_picture(saved):
    """So what follows the crop is the same: here a flip, in one direction or the other."""
    dataset = saved(landscape(900, 600))
    for seed in range(8):
        states = []
        for scaled in (True, False):
            sample(dataset, seed, hflip=0.5, train_interpolation="random", scaled_decoding=scaled)
            states.append(random.getstate())
        assert states[0] == states[1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_with_an_orientation_are_cropped_where_they_would_be(saved, orientation):
    """The sides of the upright picture count, which are swapped for orientations 5 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    dataset = saved(landscape(800, 400), exif=exif)
    for seed in range(3):
        assert near_and_exact(dataset, seed)[2].mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_of_jpeg(saved, mode):
    dataset = saved(landscape(800, 800).convert(mode))
    assert 0 < near_and_exact(dataset, 1, scale=(0.8, 1.0))[2].mean() < 1.5


def test_other_formats_are_decoded_whole(saved):
    near, exact, _ = near_and_exact(saved(landscape(300, 200), ".png"), 0, img_size=32)
    assert torch.equal(near, exact)


def test_samples_by_key_are_repeatable_and_independent_of_order(saved):
    dataset = saved(landscape(900, 600))
    dataset.transform = train_transform(img_size=112)
    keys = [(0, 0, 0), (1, 0, 0), (0, 0, 1)]
    forth = [SeededDataset(dataset, 3)[key].image for key in keys]
    back = [SeededDataset(dataset, 3)[key].image for key in reversed(keys)]
    assert all(torch.equal(one, other) for one, other in zip(forth, reversed(back), strict=True))
    assert not torch.equal(forth[0], forth[1])


def test_where_there_is_no_random_crop_or_it_is_not_wanted():
    assert isinstance(train_transform(), CropFirst)
    assert not isinstance(train_transform(scaled_decoding=False), CropFirst)
    assert not isinstance(train_transform(no_aug=True), CropFirst)
    assert not isinstance(train_transform(aa="augmix-m5-w4", aug_splits=3), CropFirst)
