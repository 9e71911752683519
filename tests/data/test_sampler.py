from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from davit.data import DataError, EpochSampler

any_case = settings(deadline=None, max_examples=40, derandomize=True)
PICTURES = st.integers(1, 700)
SIZES = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 9), "grad_accum_steps": st.integers(1, 3), "seed": st.integers(0, 2**40)}
)
PASSES = st.fixed_dictionaries(
    {"epoch_repeats": st.sampled_from([0, 0.5, 1, 2.5]), "repeated_aug": st.booleans(), "drop_last": st.booleans()}
)


def epoch_length(n: int, options: dict[str, Any]) -> int:
    """The samples of an epoch, before its last step is dropped or filled up."""
    rounded = n // 256 * 256 or n
    return int((rounded if options.get("repeated_aug") else n) * (options.get("epoch_repeats") or 1))


def samplers(n: int, world_size: int, options: dict[str, Any]) -> list[EpochSampler]:
    """One for each rank; those that have no whole step are refused."""
    try:
        return [EpochSampler(n, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    except DataError:
        assert epoch_length(n, options) < options["batch_size"] * options["grad_accum_steps"] * world_size
        return []


def steps(ranks: list[EpochSampler], epoch: int, start_step: int = 0) -> list[list[tuple[int, ...]]]:
    """The keys of each optimizer step over all ranks, in the order of rows."""
    batches = [list(sampler.micro_batches(epoch, start_step)) for sampler in ranks]
    micro = [[key for keys in row for key in keys] for row in zip(*batches, strict=True)]
    accum = ranks[0].global_batch // (ranks[0].batch_size * len(ranks))
    return [[key for keys in micro[s : s + accum] for key in keys] for s in range(0, len(micro), accum)]


@any_case
@given(PICTURES, st.integers(1, 5), SIZES, PASSES, st.integers(0, 9))
def test_all_ranks_together_show_the_order_of_the_epoch_and_nothing_twice(n, world_size, sizes, passes, epoch):
    ranks = samplers(n, world_size, sizes | passes)
    if not ranks:
        return
    keys = [key for step in steps(ranks, epoch) for key in step]
    indices, repeats = (part.tolist() for part in ranks[0].order(epoch))
    assert len(keys) == len(set(keys)) == ranks[0].steps_per_epoch * ranks[0].global_batch
    order = list(zip([epoch] * len(keys), indices, repeats, strict=True))
    assert keys == order if not passes["repeated_aug"] else sorted(keys) == sorted(order)
    length = epoch_length(n, passes)
    over = length % ranks[0].global_batch
    assert len(keys) == length - over + (ranks[0].global_batch if over and not passes["drop_last"] else 0)
    if not passes["repeated_aug"]:
        for begin in range(0, min(length, len(indices)) - n + 1, n):
            assert sorted(indices[begin : begin + n]) == list(range(n))
    assert indices == (indices[:length] * (len(indices) // length + 1))[: len(indices)]  # filled up from the start


@any_case
@given(PICTURES, st.integers(1, 5), SIZES, PASSES, st.integers(0, 9), st.data())
def test_resuming_at_a_step_gives_the_rest(n, world_size, sizes, passes, epoch, data):
    for sampler in samplers(n, world_size, sizes | passes):
        step = data.draw(st.integers(0, sampler.steps_per_epoch))
        whole = list(sampler.micro_batches(epoch))
        assert list(sampler.micro_batches(epoch, step)) == whole[step * sizes["grad_accum_steps"] :]


@any_case
@given(st.integers(24, 700), st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from([1, 2]), PASSES)
def test_other_process_counts_with_the_same_global_batch_keep_the_steps(n, world_size, accum, passes):
    """Their samples, and but for repeated augmentation their order."""
    options = {"batch_size": 24 // world_size // accum, "grad_accum_steps": accum, "seed": 5, **passes}
    alone = samplers(n, 1, {"batch_size": 24, "seed": 5, "grad_accum_steps": 1, **passes})
    ranks = samplers(n, world_size, options)
    assert bool(alone) == bool(ranks)
    if ranks:
        ours, theirs = steps(ranks, 3), steps(alone, 3)
        if passes["repeated_aug"]:
            ours, theirs = ([sorted(step) for step in found] for found in (ours, theirs))
        assert ours == theirs


def test_orders_differ_by_epoch_pass_and_seed_alone():
    sampler = EpochSampler(60, batch_size=20, seed=1, epoch_repeats=2)
    orders = [sampler.order(epoch)[0].tolist() for epoch in range(5)]
    passes = {tuple(order[begin : begin + 60]) for order in orders for begin in (0, 60)}
    assert len(passes) == 10
    assert tuple(EpochSampler(60, batch_size=20, seed=2).order(0)[0].tolist()) not in passes
    other = EpochSampler(60, batch_size=3, rank=1, world_size=4, seed=1, epoch_repeats=2)
    assert other.order(0)[0].tolist() == orders[0]


def test_repeated_augmentation_shows_three_versions_on_three_ranks():
    ranks = samplers(1000, 4, {"batch_size": 32, "grad_accum_steps": 1, "repeated_aug": True})
    indices, copies = ranks[0].order(0)
    assert len(indices) == 768 and len(set(indices.tolist())) == 256
    assert indices.tolist() == indices[::3].repeat_interleave(3).tolist()
    assert copies.tolist() == [0, 1, 2] * 256
    rank_of: dict[int, set[int]] = {}
    for rank, sampler in enumerate(ranks):
        for keys in sampler.micro_batches(0):
            for _, index, _ in keys:
                rank_of.setdefault(index, set()).add(rank)
    assert all(len(ranks) == 3 for ranks in rank_of.values())


def test_too_few_pictures_for_a_step():
    sizes: dict[str, Any] = {"batch_size": 16, "world_size": 4, "grad_accum_steps": 2}
    with pytest.raises(DataError, match=r"100 .*128.*batch_size=16.*4 .*grad_accum_steps=2.*epoch_repeats"):
        EpochSampler(100, **sizes)
    assert EpochSampler(128, **sizes).steps_per_epoch == 1
    assert EpochSampler(100, **sizes, epoch_repeats=2).steps_per_epoch == 1


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}, {"grad_accum_steps": 0}, {"epoch_repeats": -1}],
)
def test_impossible_numbers(wrong: dict[str, int]):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        EpochSampler(100, **{"batch_size": 4, **wrong})


@pytest.mark.parametrize("step", [-1, 6, 1000])
def test_a_step_outside_the_epoch_is_an_error_at_once(step: int):
    with pytest.raises(ValueError, match=f"{step} .* 5"):
        EpochSampler(20, batch_size=4).micro_batches(0, step)
