from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from davit.data import DataError, EpochSampler


def union(
    n: int, epoch: int, world_size: int, start_step: int = 0, **options: Any
) -> list[list[tuple[int, ...]]]:
    """The keys of each optimizer step over all ranks, in the order of rows."""
    accum = options.get("accum_steps", 1)
    ranks = [
        list(EpochSampler(n, rank=rank, world_size=world_size, **options).micro_batches(epoch, start_step))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    micro = [[key for rank in ranks for key in rank[m]] for m in range(len(ranks[0]))]
    return [[key for keys in micro[s : s + accum] for key in keys] for s in range(0, len(micro), accum)]


@pytest.mark.parametrize("n", [24, 100, 101])
@pytest.mark.parametrize("accum", [1, 2, 3])
def test_other_process_counts_with_the_same_global_batch_keep_sets_and_order(n: int, accum: int):
    reference = union(n, 3, 1, batch_size=24, seed=5)
    assert len(reference) == n // 24
    for world_size in (1, 2, 4):
        batch = 24 // world_size // accum
        assert union(n, 3, world_size, batch_size=batch, accum_steps=accum, seed=5) == reference


def test_a_micro_batch_of_a_rank_is_its_rows_of_the_step():
    sampler = EpochSampler(100, batch_size=2, rank=1, world_size=3, accum_steps=2, seed=0)
    order = sampler.order(0)[0].tolist()
    batches = [[index for _, index, _ in keys] for keys in sampler.micro_batches(0)]
    assert sampler.global_batch == 12
    assert batches == [order[b : b + 2] for b in range(2, 96, 6)]


def test_each_epoch_shows_each_picture_once_in_an_order_of_its_own():
    sampler = EpochSampler(60, batch_size=20, seed=1)
    orders = [sampler.order(epoch)[0].tolist() for epoch in range(5)]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert orders[0] != EpochSampler(60, batch_size=20, seed=2).order(0)[0].tolist()
    assert orders[0] == EpochSampler(60, batch_size=3, rank=1, world_size=4, seed=1).order(0)[0].tolist()


def test_resuming_at_a_step_gives_the_rest():
    for options in ({}, {"accum_steps": 3}, {"repeated_aug": True}, {"repeats": 2.5}, {"drop_last": False}):
        sampler = EpochSampler(50, batch_size=4, rank=1, world_size=2, **options)
        whole = list(sampler.micro_batches(2))
        accum = options.get("accum_steps", 1)
        assert len(whole) == sampler.steps_per_epoch * accum
        for step in range(sampler.steps_per_epoch + 1):
            assert list(sampler.micro_batches(2, step)) == whole[step * accum :]


@pytest.mark.parametrize("step", [-1, 6, 1000])
def test_a_step_outside_the_epoch_is_an_error_at_once(step: int):
    with pytest.raises(ValueError, match=rf"step {step} is not in an epoch of 5 steps"):
        EpochSampler(20, batch_size=4).micro_batches(0, step)


def test_the_last_step_is_dropped_or_filled_up():
    assert EpochSampler(50, batch_size=8).steps_per_epoch == 6
    sampler = EpochSampler(50, batch_size=8, drop_last=False)
    indices, repeats = sampler.order(0)
    assert sampler.steps_per_epoch == 7
    assert set(indices[:50].tolist()) == set(range(50))
    assert indices[50:].tolist() == indices[:6].tolist()
    assert len(set(zip(indices.tolist(), repeats.tolist(), strict=True))) == 56  # augmented differently
    tiny = EpochSampler(3, batch_size=8, drop_last=False)
    assert Counter(tiny.order(0)[0].tolist()) == Counter(range(3)) + Counter(range(3)) + Counter(
        tiny.order(0)[0][:2].tolist()
    )


@pytest.mark.parametrize(("repeats", "length"), [(0, 40), (1, 40), (2, 80), (2.5, 100), (0.5, 20)])
def test_epoch_repeats(repeats: float, length: int):
    indices, copies = EpochSampler(40, batch_size=4, repeats=repeats).order(0)
    assert len(indices) == length
    assert len(set(zip(indices.tolist(), copies.tolist(), strict=True))) == length
    for begin in range(0, length - 39, 40):
        assert sorted(indices[begin : begin + 40].tolist()) == list(range(40))
    if length > 40:
        assert indices[:20].tolist() != indices[40:60].tolist()


def test_repeated_augmentation_shows_three_versions_on_three_ranks():
    samplers = [EpochSampler(1000, batch_size=32, rank=r, world_size=4, repeated_aug=True) for r in range(4)]
    assert samplers[0].steps_per_epoch == 768 // 128
    indices, copies = samplers[0].order(0)
    assert indices[:9].tolist() == indices[:9:3].repeat_interleave(3).tolist()
    assert copies[:9].tolist() == [0, 1, 2] * 3
    assert len(set(indices[:768].tolist())) == 256
    rank_of: dict[int, set[int]] = {}
    for rank, sampler in enumerate(samplers):
        for keys in sampler.micro_batches(0):
            assert len(keys) == 32
            for _, index, _ in keys:
                rank_of.setdefault(index, set()).add(rank)
    assert all(len(ranks) == 3 for ranks in rank_of.values())


def test_repeated_augmentation_keeps_the_steps_of_other_process_counts():
    reference = union(600, 0, 1, batch_size=32, repeated_aug=True)
    for world_size in (2, 4):
        steps = union(600, 0, world_size, batch_size=32 // world_size, repeated_aug=True)
        assert [sorted(step) for step in steps] == [sorted(step) for step in reference]


def test_too_few_pictures_for_a_step():
    with pytest.raises(
        DataError, match=r"100 training samples.*128 \(batch size 16 x 4 processes x 2 acc.*--batch-size"
    ):
        EpochSampler(100, batch_size=16, world_size=4, accum_steps=2)
    assert EpochSampler(128, batch_size=16, world_size=4, accum_steps=2).steps_per_epoch == 1
    assert EpochSampler(100, batch_size=16, world_size=4, accum_steps=2, repeats=2).steps_per_epoch == 1


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}, {"accum_steps": 0}, {"repeats": -1}],
)
def test_impossible_numbers(wrong: dict[str, int]):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        EpochSampler(100, **{"batch_size": 4, **wrong})


def test_the_training_generator_is_not_used():
    before = torch.get_rng_state()
    list(EpochSampler(100, batch_size=4).micro_batches(0))
    assert torch.equal(torch.get_rng_state(), before)
