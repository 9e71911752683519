"""The backbone: its levels, the norms and stages that exist for them, and what is frozen."""

import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from davit import DaViTPyramid

LEVELS = [(0, 1, 2, 3), (-3, -1), (0, 2), (0,)]


def norms_of(model):
    return sorted(name for name, _ in model.named_children() if name.startswith("norm"))


def total(levels):
    return sum(level.square().mean() for level in levels)


@pytest.mark.parametrize("options", [{}, {"cpe_act": True}, {"overlapped_patch": True, "patch_size": 2}], ids=str)
def test_levels_equal_the_reference(small, picture, options):
    model, image = small(DaViTPyramid, **options).double(), picture(1, 3, 33, 47).double()
    state = model.state_dict()
    maps = reference.stage_maps(state, image, num_heads=(2, 2, 4, 4), window=4, **options)
    levels = model(image)
    assert isinstance(levels, tuple)
    for i, (level, stage_map) in enumerate(zip(levels, maps, strict=True)):
        torch.testing.assert_close(level, reference.norm(state, f"norm{i}", stage_map), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("out_indices", LEVELS)
def test_argument_out_indices(small, picture, out_indices):
    """A norm and a stage only for what is read; the values are those of the whole pyramid."""
    model, whole = small(DaViTPyramid, out_indices=out_indices, drop_path_rate=0.0), small(DaViTPyramid)
    out_indices = model.out_indices
    assert norms_of(model) == [f"norm{i}" for i in out_indices]
    assert len(model.main_blocks) == len(model.patch_embeds) == out_indices[-1] + 1
    assert model.num_features == [(16, 32, 48, 64)[i] for i in out_indices]
    assert set(model.state_dict()) <= set(whole.state_dict())
    model.load_state_dict({key: whole.state_dict()[key] for key in model.state_dict()})
    expected = [whole(picture())[i] for i in out_indices]
    levels = model(picture())
    assert len(levels) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(levels, expected, strict=True))
    total(model.train()(picture())).backward()  # DistributedDataParallel stops at a parameter without a gradient
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@settings(deadline=None, max_examples=5, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_level_shapes_and_memory(small, picture, size):
    height, width = (-(-length // 4) for length in size)
    for channels, level in zip((16, 32, 48, 64), small(DaViTPyramid)(picture(2, 3, *size)), strict=True):
        assert level.shape == (2, channels, height, width)
        assert level.is_contiguous(memory_format=torch.channels_last)
        height, width = -(-height // 2), -(-width // 2)


@pytest.mark.parametrize("frozen", [-1, 0, 1, 2, 4])
def test_argument_frozen_stages(small, picture, frozen):
    """No gradient, no drop path; kept through train() and eval(); what is not frozen learns."""
    model = small(DaViTPyramid, frozen_stages=frozen, drop_path_rate=0.5)
    prefixes = tuple(
        f"{part}{stage}." for stage in range(frozen) for part in ("patch_embeds.", "main_blocks.", "norm")
    )
    prefixes = ("patch_embeds.0.",) if frozen == 0 else prefixes
    for mode in (True, False, True):
        assert model.train(mode) is model
    if frozen < 4:
        total(model(picture())).backward()
    for name, parameter in model.named_parameters():
        is_frozen = name.startswith(prefixes)
        assert parameter.requires_grad is not is_frozen, name
        assert (parameter.grad is None) is is_frozen, name
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.training is not f"{name}.".startswith(prefixes), name
    if frozen == 4:
        one, other = model(picture()), model(picture())
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
