"""Training images that grow: the size of a step is a function of (epoch, step), and belongs to the sample."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from davit.data import EpochSampler, PictureDataset, SizeSchedule, TrainLoader, open_dataset, round_to, train_transform

MakeFolder = Callable[..., Path]


def sizes(schedule: SizeSchedule, epochs: int) -> list[list[int]]:
    return [[schedule.at(epoch, step) for step in range(schedule.steps_per_epoch)] for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("given", "kind", "multiple", "epochs", "steps", "expected"),
    [
        # in two halves, the boundary within an epoch
        ((128, 224), "steps", 32, 3, 3, [[128, 128, 128], [128, 128, 224], [224, 224, 224]]),
        ((128, 160, 224), "steps", 32, 3, 2, [[128, 128], [160, 160], [224, 224]]),
        # 128 + 96 t / 6, to multiples of 32: 128 144 160 176 192 208 224; the middle goes up
        ((128, 224), "linear", 32, 7, 1, [[128], [160], [160], [192], [192], [224], [224]]),
        ((128, 224), "linear", 8, 7, 1, [[128], [144], [160], [176], [192], [208], [224]]),
        # 32 to 64 in half the way, then to 128
        ((32, 64, 128), "linear", 16, 1, 5, [[32, 48, 64, 96, 128]]),
        ((16, 32), "linear", 16, 1, 1, [[16]]),
        ((16, 32), "steps", 16, 1, 1, [[16]]),
    ],
)
def test_sizes_by_hand(
    given: tuple[int, ...], kind: str, multiple: int, epochs: int, steps: int, expected: list[list[int]]
) -> None:
    schedule = SizeSchedule(given, kind, multiple, epochs, steps)
    assert sizes(schedule, epochs) == expected
    assert schedule.at(epochs, 0) == schedule.at(epochs + 7, 3) == given[-1]  # a cool-down
    used = {size for row in expected for size in row}
    assert used <= set(schedule.all_sizes)
    assert schedule.all_sizes == sorted(schedule.all_sizes)


def test_sizes_never_shrink_and_end_at_the_last() -> None:
    schedule = SizeSchedule((96, 224, 288), "linear", 32, 300, 1251)
    every = [schedule.at(epoch, step) for epoch in range(300) for step in (0, 1, 600, 1250)]
    assert every == sorted(every)
    assert (every[0], every[-1]) == (96, 288)
    assert set(every) == {96, 128, 160, 192, 224, 256, 288}


@pytest.mark.parametrize(
    ("multiple", "given", "expected"),
    [(32, (100, 224), (96, 224)), (32, (112, 200), (128, 192)), (32, (3, 20), (32,)), (16, (24, 40), (32, 48))],
)
def test_rounding(multiple: int, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert round_to(multiple, given) == expected


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        SizeSchedule((1, 2), "cosine", 1, 1, 1)
    with pytest.raises(ValueError, match="size_multiple"):
        SizeSchedule((1, 2), "steps", 0, 1, 1)


@pytest.fixture
def dataset(make_folder: MakeFolder) -> PictureDataset:
    found = open_dataset(make_folder(), "train")
    found.transform = train_transform(img_size=24)
    found.transforms = {size: train_transform(img_size=size) for size in (8, 16, 24)}
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_get_the_size_of_the_step_that_a_sample_is_for(dataset: PictureDataset, workers: int) -> None:
    """Though they read ahead, and whatever step an epoch is entered at."""

    def loader() -> TrainLoader:
        sampler = EpochSampler(len(dataset), batch_size=1, grad_accum_steps=2, seed=3)
        sampler.size_of = SizeSchedule((8, 24), "linear", 8, 1, sampler.steps_per_epoch).at
        return TrainLoader(dataset, sampler, workers=workers)

    whole = loader()
    steps = whole.steps_per_epoch
    assert steps >= 3
    batches = list(whole.batches(0))
    expected = [whole.sampler.size_of(0, step) for step in range(steps) for _ in range(2)]  # type: ignore[misc]
    assert [batch.images.shape[-1] for batch in batches] == expected
    assert len(set(expected)) == 3
    entered = loader()
    rest = list(entered.batches(0, steps - 2))
    for one, other in zip(rest, batches[-4:], strict=True):
        assert torch.equal(one.images, other.images)
    whole.close()
    entered.close()
