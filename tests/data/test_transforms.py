from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import AugMixDataset, create_transform
from torchvision.transforms import functional

from davit.data import eval_transform, train_transform
from davit.data.transforms import CROP_MODES, INTERPOLATIONS, posterize_or_black
from davit.seeding import seeded

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
PLAIN: dict[str, Any] = {
    "img_size": 32, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "color_jitter": None, "aa": None,
    "reprob": 0.0,
}  # fmt: skip
SIDES, SIZES = st.integers(1, 90), st.tuples(st.integers(8, 90), st.integers(8, 90))


def run(transform: Any, seed: int = 0, picture: Image.Image = PICTURE) -> torch.Tensor:
    with seeded(seed):
        return transform(picture)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(deadline=None, max_examples=12, derandomize=True)
@given(SIZES, SIDES, SIDES, st.sampled_from(["random", "bicubic", "bilinear", "nearest"]), st.integers(0, 99))
def test_training_is_timms_for_any_sizes(size, rows, columns, interpolation, seed):
    options = {"interpolation": interpolation, "re_prob": 0.25, "re_mode": "pixel"}
    timms = create_transform((rows, columns), is_training=True, auto_augment="rand-m9-mstd0.5-inc1", **options)
    picture = noise(*size)
    ours = run(train_transform(img_size=(3, rows, columns), train_interpolation=interpolation), seed, picture)
    assert (ours.dtype, ours.shape) == (torch.float32, (3, rows, columns))
    assert torch.equal(ours, run(timms, seed, picture))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    *(SIZES, SIDES, st.sampled_from([None, 0.5, 0.95])),
    *(st.sampled_from([None, *CROP_MODES]), st.sampled_from(INTERPOLATIONS)),
)
def test_evaluation_is_timms_for_any_sizes(size, side, crop_pct, crop_mode, interpolation):
    options = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    timms, picture = create_transform((3, side, side), **options), noise(*size)
    assert torch.equal(eval_transform(img_size=(3, side, side), **options)(picture), timms(picture))


@pytest.mark.parametrize(
    "change",
    [
        *({"img_size": (32, 40)}, {"scale": (0.1, 0.2)}, {"ratio": (2.0, 2.0)}, {"hflip": 1.0}, {"vflip": 1.0}),
        *({"color_jitter": 0.4}, {"color_jitter": (0.1, 0.1, 0.1, 0.4)}, {"train_interpolation": "nearest"}),
        *({"aa": aa} for aa in ("rand-m9-n3", "original", "augmix-m5-w4-d2", "3a")),
        *({"mean": (0.1, 0.2, 0.3)}, {"std": (0.1, 0.2, 0.3)}, {"no_aug": True}, {"aug_splits": 3}, {"reprob": 1.0}),
        *({"reprob": 1.0, **more} for more in ({"remode": "const"}, {"remode": "rand"}, {"recount": 4})),
    ],
    ids=str,
)
def test_every_word_has_an_effect(change: dict[str, Any]):
    base = {**PLAIN, "reprob": 1.0} if len(change) == 2 else PLAIN
    changed, plain = train_transform(**(base | change)), train_transform(**base)
    pairs = [(run(changed, seed), run(plain, seed)) for seed in range(10)]
    assert any(ours.shape != theirs.shape or not torch.equal(ours, theirs) for ours, theirs in pairs)


def test_no_augmentation_is_the_same_every_time():
    transform = train_transform(img_size=32, no_aug=True)
    assert torch.equal(run(transform, 0), run(transform, 1))
    none, empty = (train_transform(**{**PLAIN, "aa": aa}) for aa in ("none", ""))
    assert torch.equal(run(none), run(empty))


class One(torch.utils.data.Dataset):
    transform: Any = None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(PICTURE), 0


@pytest.mark.parametrize("splits", [2, 3])
def test_augmentation_splits_equal_timms_augmix_data_set(splits: int):
    one = One()
    options: dict[str, Any] = {"auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic"}
    one.transform = create_transform(32, is_training=True, **options, separate=True)
    timms = AugMixDataset(one, splits)
    ours = train_transform(img_size=32, reprob=0.0, aug_splits=splits)
    for seed in range(5):
        with seeded(seed):
            expected = torch.stack(timms[0][0])
        assert torch.equal(run(ours, seed), expected)


def test_resplit_keeps_erasing_off_the_clean_split_or_half_of_the_samples():
    clean, options = run(train_transform(**PLAIN)), {**PLAIN, "reprob": 1.0}
    both = run(train_transform(**options, aug_splits=3))
    kept = run(train_transform(**options, aug_splits=3, resplit=True))
    assert not torch.equal(both[0], clean)
    assert [torch.equal(split, clean) for split in kept] == [True, False, False]
    single = train_transform(**options, resplit=True)
    assert 0.35 < sum(torch.equal(run(single, seed), clean) for seed in range(200)) / 200 < 0.65


@pytest.mark.parametrize(
    "options",
    [
        *({"aa": aa} for aa in ("rand-m10-n15-inc1", "rand-m30-n15-inc1-mmax30", "original", "v0", "augmix-m10")),
        *({"aa": "rand-m9-n15", "train_interpolation": name} for name in INTERPOLATIONS),
    ],
    ids=str,
)
def test_the_strongest_augmentations_and_every_interpolation_run(options: dict[str, Any]):
    """Pillow 13 refuses to posterize to 0 bits, and rotates by some interpolations only; timm hands it all."""
    transform = train_transform(img_size=32, **options)
    assert all(torch.isfinite(run(transform, seed)).all() for seed in range(10))


def test_posterize_to_no_bits_is_black():
    assert np.asarray(posterize_or_black(PICTURE, 0)).max() == 0
    assert np.array_equal(np.asarray(posterize_or_black(PICTURE, 3)), np.asarray(PICTURE) & 0b11100000)


@pytest.mark.parametrize(
    ("wrong", "choice"),
    [
        *(({"train_interpolation": "cubic"}, "bicubic"), ({"interpolation": ""}, "bicubic")),
        *(({"remode": "n"}, "pixel"), ({"crop_mode": "middle"}, "squash"), ({"crop_pct": 0.0}, "0.9")),
        *(({"reprob": 1.5}, "1"), ({"hflip": -0.1}, "0"), ({"scale": [0.5]}, "two"), ({"ratio": [2.0, 1.0]}, "two")),
        *(({"aug_splits": 1}, "2"), ({"aug_splits": 2, "no_aug": True}, "no_aug=True"), ({"recount": 0}, "1")),
        *(({"img_size": 0}, "1"), ({"mean": [0.5]}, "3 numbers"), ({"std": [0.5, 0.5, 0.0]}, "3 numbers")),
        *(({"aa": "rnad-m9"}, "rand-m9"), ({"aa": "rand-x9"}, "rand-m9")),
    ],
    ids=str,
)
def test_wrong_values_are_errors_with_their_names_and_choices(wrong: dict[str, Any], choice: str):
    name, value = next(iter(wrong.items()))
    build = eval_transform if name in ("crop_mode", "crop_pct", "interpolation") else train_transform
    with pytest.raises(ValueError) as caught:
        build(**wrong)
    _, named, after = str(caught.value).partition(f"`{name}={value!r}`")
    assert named and choice in after


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_become_torchvisions_tensors(mode: str):
    """Every level, to the last bit; a grey image has three equal bands before their means are taken away."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([levels, levels.T, levels[::-1]], axis=-1)).convert(mode)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = eval_transform(img_size=16, crop_pct=1.0, mean=mean, std=std)(picture)
    expected = functional.normalize(functional.to_tensor(picture.convert("RGB")), mean, std)
    assert ours.is_contiguous() and ours.dtype == torch.float32
    assert torch.equal(ours, expected)


def test_seeding_is_by_key_and_leaves_no_trace():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draw() for _ in range(2)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    seen, drawn = [draw()], []
    for key in [(42, 0, 7), (42, 0, 8), (42, 1, 7), (43, 0, 7), (420, 7), (-1, 0, 7), (2**70, 0, 7), (42, 0, 7)]:
        with pytest.raises(KeyError), seeded(*key):
            drawn.append(draw())
            raise KeyError
    assert [*seen, draw()] == expected
    assert drawn[0] == drawn[-1] and len(set(drawn)) == 7
    assert len(set(drawn[0])) == 3
