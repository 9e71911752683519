from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import AugMixDataset, create_transform
from timm.data.auto_augment import NAME_TO_OP, AugmentOp
from torchvision.transforms import functional

from davit.data import eval_transform, train_transform
from davit.seeding import seeded
from davit.data.transforms import _posterize

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
PLAIN: dict[str, Any] = {
    "img_size": 32, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "color_jitter": None, "aa": None,
    "reprob": 0.0,
}  # fmt: skip


def run(transform: Any, seed: int = 0) -> torch.Tensor:
    with seeded(seed):
        return transform(PICTURE)


def test_the_defaults_are_timms_training_transform():
    timms = create_transform(
        224,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        use_prefetcher=False,
    )
    for seed in range(10):
        ours = run(train_transform(), seed)
        assert ours.dtype == torch.float32
        assert ours.shape == (3, 224, 224)
        assert torch.equal(ours, run(timms, seed))


@pytest.mark.parametrize(
    "change",
    [
        {"img_size": (32, 40)},
        {"scale": (0.1, 0.2)},
        {"ratio": (2.0, 2.0)},
        {"hflip": 1.0},
        {"vflip": 1.0},
        {"color_jitter": 0.4},
        {"color_jitter": (0.1, 0.1, 0.1, 0.4)},
        {"aa": "rand-m9-n3"},
        {"aa": "original"},
        {"aa": "augmix-m5-w4-d2"},
        {"aa": "3a"},
        {"train_interpolation": "nearest"},
        {"mean": (0.1, 0.2, 0.3)},
        {"std": (0.1, 0.2, 0.3)},
        {"reprob": 1.0},
        {"reprob": 1.0, "remode": "const"},
        {"reprob": 1.0, "remode": "rand"},
        {"reprob": 1.0, "recount": 4},
        {"no_aug": True},
        {"aug_splits": 3},
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


def test_resplit_erases_every_other_sample_on_average():
    def share_erased(**options: Any) -> float:
        transform = train_transform(**{**PLAIN, "reprob": 1.0, **options})
        clean = run(train_transform(**PLAIN))
        return sum(not torch.equal(run(transform, seed), clean) for seed in range(200)) / 200

    assert share_erased() == 1.0
    assert 0.35 < share_erased(resplit=True) < 0.65


class _One(torch.utils.data.Dataset):
    transform = None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(PICTURE), 0  # type: ignore[misc]


@pytest.mark.parametrize("splits", [2, 3])
def test_augmentation_splits_equal_timms_augmix_data_set(splits: int):
    one = _One()
    options: dict[str, Any] = {
        "is_training": True,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "interpolation": "bicubic",
    }
    one.transform = create_transform(32, **options, separate=True)
    timms = AugMixDataset(one, splits)
    ours = train_transform(img_size=32, reprob=0.0, aug_splits=splits)
    for seed in range(5):
        with seeded(seed):
            expected = torch.stack(timms[0][0])
        assert torch.equal(run(ours, seed), expected)


def test_resplit_keeps_erasing_off_the_clean_split():
    clean = run(train_transform(**PLAIN))
    both = run(train_transform(**{**PLAIN, "reprob": 1.0}, aug_splits=3))
    kept = run(train_transform(**{**PLAIN, "reprob": 1.0}, aug_splits=3, resplit=True))
    assert not torch.equal(both[0], clean)
    assert torch.equal(kept[0], clean)
    assert not any(torch.equal(split, clean) for split in kept[1:])


@pytest.mark.parametrize(
    "aa",
    [
        "rand-m10-n15",
        "rand-m10-n15-inc1",
        "rand-m30-n15-inc1-mmax30",
        "rand-m0-n15",
        "original",
        "v0",
        "augmix-m10",
    ],
)
def test_the_strongest_augmentations_run(aa: str):
    # Pillow 13 refuses to posterize to 0 bits, which timm's highest magnitudes ask for.
    transform = train_transform(img_size=32, aa=aa)
    for seed in range(40):
        assert torch.isfinite(run(transform, seed)).all()


@pytest.mark.parametrize("name", sorted(NAME_TO_OP))
def test_every_operation_runs_with_the_installed_pillow(name: str):
    for magnitude in (0, 3, 10, 30):
        operation = AugmentOp(
            name,
            prob=1.0,
            magnitude=magnitude,
            hparams={"translate_const": 10, "translate_pct": 0.3, "magnitude_max": max(magnitude, 10)},
        )
        if name.startswith("Posterize"):
            operation.aug_fn = _posterize
        with seeded(magnitude):
            assert operation(PICTURE).size == PICTURE.size


def test_posterize_to_no_bits_is_black():
    assert np.asarray(_posterize(PICTURE, 0)).max() == 0
    assert np.array_equal(np.asarray(_posterize(PICTURE, 3)), np.asarray(PICTURE) & 0b11100000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_interpolation": "cubic"}, "'cubic' is unknown; choose from random, bicubic"),
        ({"remode": "noise"}, "'noise' is unknown; choose from const, rand, pixel"),
        ({"reprob": 1.5}, "--reprob 1.5 is not a probability"),
        ({"hflip": -0.1}, "--hflip -0.1"),
        ({"scale": (0.5,)}, r"--scale \[0.5\] is not a range"),
        ({"ratio": (2.0, 1.0)}, r"--ratio \[2.0, 1.0\]"),
        ({"aug_splits": 1}, "--aug-splits 1"),
        ({"aug_splits": 2, "no_aug": True}, "only 0 with --no-aug"),
        ({"recount": 0}, "--recount 0"),
        ({"img_size": 0}, "--img-size 0"),
        ({"mean": (0.5,)}, r"--mean \[0.5\]"),
        ({"std": (0.5, 0.5, 0.0)}, "std above 0"),
        ({"aa": "rnad-m9"}, "--aa 'rnad-m9'"),
        ({"aa": "rand-x9"}, "--aa 'rand-x9'"),
    ],
    ids=str,
)
def test_wrong_words_are_errors(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train_transform(**wrong)


def test_evaluation_is_timms():
    for options in (
        {},
        {"crop_pct": 0.95},
        {"crop_pct": 0.9, "crop_mode": "squash"},
        {"interpolation": "bilinear"},
    ):
        timms = create_transform((3, 48, 48), **{"interpolation": "bicubic", **options})
        assert torch.equal(eval_transform(img_size=(3, 48, 48), **options)(PICTURE), timms(PICTURE))
    with pytest.raises(ValueError, match="'middle' is unknown; choose from center, squash, border"):
        eval_transform(crop_mode="middle")
    with pytest.raises(ValueError, match="--crop-pct"):
        eval_transform(crop_pct=0.0)
    with pytest.raises(ValueError, match="--interpolation"):
        eval_transform(interpolation="")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_become_torchvisions_tensors(mode: str):
    """Every level, to the last bit; a grey picture has three equal bands before their means are taken away."""
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
    expected = [draw() for _ in range(3)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    seen = [draw()]
    with seeded(42, 0, 7):
        first = draw()
    seen.append(draw())
    with pytest.raises(KeyError), seeded(42, 0, 7):
        again = draw()
        raise KeyError
    seen.append(draw())
    assert seen == expected
    assert first == again
    others = set()
    for key in [(42, 0, 8), (42, 1, 7), (43, 0, 7), (420, 7), (-1, 0, 7), (2**70, 0, 7)]:
        with seeded(*key):
            others.add(draw())
    assert len(others | {first}) == 7
    assert len(set(first)) == 3
