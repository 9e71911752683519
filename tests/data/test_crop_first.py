"""Large JPEGs decoded at a fraction: where nothing changes, by how much it does elsewhere, and repeatably."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from davit.data.dataset import PictureDataset, SeededDataset
from davit.data.decode import load_rgb
from davit.data.folder import FolderSource
from davit.data.crop_first import MARGINS, CropFirst
from davit.data.transforms import train_transform

PLAIN = {"aa": None, "color_jitter": None, "reprob": 0.0, "hflip": 0.0, "mean": (0, 0, 0), "std": (1, 1, 1)}


def landscape(width, height, seed=0):
    """Structure at all scales, as photographs have it: noise of many resolutions, each fainter the finer it is."""
    rng = np.random.default_rng(seed)
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
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, **({"quality": 90} if suffix == ".jpg" else {}), **options)
        return PictureDataset(FolderSource(file.parents[1]))

    return save


def drawn(dataset, seed, **options):
    """The sample of a seed, with the fraction that its picture was decoded at."""
    dataset.transform = train_transform(**{**PLAIN, **options})
    random.seed(seed)
    return dataset[0][0]


def fraction(dataset, seed, **options):
    transform = train_transform(**{**PLAIN, **options})
    random.seed(seed)
    sample = transform.sample()
    chosen = []
    load_rgb(dataset.source.path(0), reduction=lambda *size: chosen.append(sample.reduction(*size)) or chosen[0])
    return chosen[0], sample


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
@pytest.mark.parametrize("size", [(300, 260), (224, 224), (90, 400)])
def test_a_small_picture_is_what_timm_makes_of_it(saved, size, interpolation):
    """With all augmentation, to the last bit."""
    dataset = saved(landscape(*size))
    options = {"color_jitter": 0.4, "hflip": 0.5, "interpolation": interpolation, "re_prob": 0.25, "re_mode": "pixel"}
    theirs = create_transform(224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", **options)
    picture = load_rgb(dataset.source.path(0))
    dataset.transform = train_transform(train_interpolation=interpolation)
    for seed in range(6):
        results = []
        for make in (lambda: dataset[0][0], lambda: theirs(picture), lambda: dataset.transform(picture)):
            random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
            results.append(make())
        assert torch.equal(results[0], results[1]) and torch.equal(results[2], results[1])


def test_a_large_picture_is_decoded_at_the_largest_fraction_that_leaves_the_margin(saved):
    dataset, seen = saved(landscape(1500, 1000)), set()
    for seed in range(60):
        factor, sample = fraction(dataset, seed)
        room = min(sample._box[2:]) / 224
        assert factor == 1 or factor * MARGINS[factor] <= room
        assert factor == 8 or room < 2 * factor * MARGINS[2 * factor]
        seen.add(factor)
    assert {1, 2} <= seen
    assert fraction(dataset, 0, img_size=32, scale=(0.9, 1.0))[0] == 8
    assert fraction(dataset, 0, img_size=(32, 900), scale=(0.9, 1.0))[0] == 1


def test_pixels_differ_by_about_one_level(saved):
    """Of 255: below 1.5 in the mean of every sample, and 99 of 100 below 8."""
    dataset, reduced = saved(landscape(1500, 1000)), 0
    for seed in range(12):
        near = drawn(dataset, seed)
        exact = drawn(dataset, seed, scaled_decoding=False)
        difference = 255 * (near - exact).abs()
        if fraction(dataset, seed)[0] == 1:
            assert not difference.any()
        else:
            reduced += 1
            assert 0 < difference.mean() < 1.5
            assert difference.quantile(0.99) < 8
    assert reduced >= 6


def test_random_numbers_are_drawn_as_with_the_whole_picture(saved):
    """So what follows the crop is the same: here a flip, in one direction or the other."""
    dataset = saved(landscape(1500, 1000))
    for seed in range(8):
        states = []
        for scaled in (True, False):
            drawn(dataset, seed, hflip=0.5, train_interpolation="random", scaled_decoding=scaled)
            states.append(random.getstate())
        assert states[0] == states[1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_cropped_where_they_would_be(saved, orientation):
    """The sides of the upright picture count, which are swapped for orientations 5 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    dataset = saved(landscape(1400, 700), exif=exif)
    for seed in range(3):
        near, exact = drawn(dataset, seed), drawn(dataset, seed, scaled_decoding=False)
        assert (255 * (near - exact).abs()).mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_of_jpeg(saved, mode):
    dataset = saved(landscape(1400, 1400).convert(mode))
    near, exact = drawn(dataset, 1, scale=(0.8, 1.0)), drawn(dataset, 1, scale=(0.8, 1.0), scaled_decoding=False)
    assert fraction(dataset, 1, scale=(0.8, 1.0))[0] >= 2
    assert 0 < (255 * (near - exact).abs()).mean() < 1.5


def test_other_formats_are_decoded_whole(saved):
    dataset = saved(landscape(1500, 1000), ".png")
    assert fraction(dataset, 0)[0] == 1
    assert torch.equal(drawn(dataset, 0), drawn(dataset, 0, scaled_decoding=False))


def test_samples_by_key_are_repeatable_and_independent_of_order(saved):
    dataset = saved(landscape(1500, 1000))
    dataset.transform = train_transform()
    keys = [(0, 0, 0), (1, 0, 0), (0, 0, 1)]
    there = [SeededDataset(dataset, 3)[key].image for key in keys]
    back = [SeededDataset(dataset, 3)[key].image for key in reversed(keys)]
    assert all(torch.equal(one, other) for one, other in zip(there, reversed(back), strict=True))
    assert not torch.equal(there[0], there[1])


def test_where_there_is_no_random_crop_or_it_is_not_wanted():
    assert isinstance(train_transform(), CropFirst)
    assert not isinstance(train_transform(scaled_decoding=False), CropFirst)
    assert not isinstance(train_transform(no_aug=True), CropFirst)
    assert not isinstance(train_transform(aa="augmix-m5-w4", aug_splits=3), CropFirst)
