"""Patch embeddings by native.cpp: against float64, in every layout, and where they must not run."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from davit import accelerate, plain
from davit.kernels import conditions, ops
from davit.kernels.cpu import native
from davit.model import PatchEmbed

pytestmark = pytest.mark.skipif(
    native.LIBRARY is None or torch.cuda.is_available(), reason="no compiled functions for this processor"
)

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.006}
STEMS = {  # batch, channels, height, width; channels written, stride
    "as released": (2, 3, 64, 96, 96, 4),
    "no multiple of the stride": (3, 3, 61, 35, 64, 4),
    "one channel": (2, 1, 33, 40, 32, 4),
    "seven channels": (1, 7, 50, 31, 160, 4),
    "smaller than a patch": (70, 3, 3, 5, 32, 4),
    "one pixel": (80, 3, 1, 1, 32, 4),
    "every pixel": (1, 3, 17, 9, 32, 1),
    "wider than a patch": (6, 3, 120, 88, 32, 16),
}
MAPS = {  # batch, height, width, channels; channels written
    "as released": (2, 14, 28, 96, 192),
    "odd": (3, 13, 9, 64, 32),
    "one row": (9, 1, 19, 32, 96),
    "one column": (9, 19, 1, 32, 96),
    "one position": (70, 1, 1, 64, 32),
    "wide": (2, 8, 16, 768, 32),
    "fewer columns than a panel": (4, 10, 10, 32, 32),
}


def noise(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def embedding(stem, C, N, stride=2, norm_layer=nn.LayerNorm, overlapped=False):
    """With a norm whose vectors are far from 1 and 0, which padding must not meet."""
    torch.manual_seed(1)
    embed = PatchEmbed(C, N, stride, stem, overlapped, norm_layer)
    for parameter in embed.norm.parameters():
        nn.init.normal_(parameter, 0.5)
    return accelerate(embed).eval()


def case_of(name):
    if name in STEMS_BY_ID:
        B, C, H, W, N, stride = STEMS_BY_ID[name]
        return embedding(True, C, N, stride), noise((B, C, H, W))
    B, H, W, C, N = MAPS_BY_ID[name]
    return embedding(False, C, N), noise((B, H, W, C)) + 0.3


STEMS_BY_ID = {f"stem, {name}": case for name, case in STEMS.items()}
MAPS_BY_ID = {f"map, {name}": case for name, case in MAPS.items()}


@pytest.fixture
def calls(monkeypatch):
    """One entry for each embedding that native.cpp computed."""
    made, run = [], native.patch_embed
    monkeypatch.setattr(native, "patch_embed", lambda x, *rest: made.append(x.shape) or run(x, *rest))
    return made


def compute(embed, x):
    with torch.no_grad():
        return embed(x)


def assert_right(actual, embed, x):
    """Against the plain modules in float64."""
    exact = deepcopy(embed).double()
    expected = compute(exact, x.double())
    assert actual.shape == expected.shape and actual.dtype == x.dtype
    assert ((actual.double() - expected).norm() / expected.norm()).item() < TOLERANCE[x.dtype]


# --- values ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*STEMS_BY_ID, *MAPS_BY_ID])
def test_they_equal_float64(case, dtype, calls):
    embed, x = case_of(case)
    embed, x = embed.to(dtype), x.to(dtype)
    out = compute(embed, x)
    assert len(calls) == native.multiplies(dtype) and out.is_contiguous()
    assert_right(out, embed, x)


@pytest.mark.parametrize("stem", [True, False], ids=["stem", "map"])
@pytest.mark.parametrize(
    "norm_layer",
    [
        partial(nn.LayerNorm, eps=0.5),
        partial(nn.LayerNorm, bias=False),
        partial(nn.LayerNorm, elementwise_affine=False),
    ],
    ids=["eps", "no bias", "no vectors"],
)
def test_norms_of_any_kind(stem, norm_layer, calls):
    embed = embedding(stem, 3 if stem else 32, 64, 4 if stem else 2, norm_layer)
    embed.proj.bias = None
    x = noise((2, 3, 60, 50) if stem else (2, 20, 21, 32))
    out = compute(embed, x)
    assert len(calls) == 1
    assert_right(out, embed, x)


@pytest.mark.parametrize("layout", ["channels last", "sliced", "expanded"])
def test_any_layout_of_memory(layout, calls):
    for embed, x in (case_of("stem, as released"), case_of("map, as released")):
        if layout == "channels last":
            embed.to(memory_format=torch.channels_last)
            x = x.to(memory_format=torch.channels_last)
        elif layout == "sliced":
            x = x[:, :, ::2] if embed.stem else x[:, ::2]
        else:
            x = x[:1].expand(x.shape)
        assert torch.equal(compute(embed, x), compute(deepcopy(embed), x.contiguous()))
        assert_right(compute(embed, x), embed, x)
    assert len(calls) == 6


def test_results_do_not_depend_on_the_number_of_threads(calls):
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            embeds = (case_of("stem, no multiple of the stride"), case_of("map, odd"))
            results.append([compute(embed, x) for embed, x in (*embeds, case_of("map, as released"))])
    finally:
        torch.set_num_threads(before)
    assert len(calls) >= 7  # with five threads the small map has too few rows
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][2], other[2])


def test_nan_stays_in_its_reach():
    embed, x = case_of("stem, as released")
    x[1, 2, 30, 41] = float("nan")
    reached = compute(embed, x).isnan()
    rows, columns = [7, 8], [10, 11]  # centres 4 i that are 3 pixels away at most
    expected = torch.zeros_like(reached)
    for row in rows:
        expected[1, row, columns] = True
    assert torch.equal(reached, expected)
    embed, x = case_of("map, odd")
    x[2, 12, 8, 5] = float("nan")
    reached = compute(embed, x).isnan()
    assert reached[2, 6, 4].all() and reached.sum() == reached.shape[3]


# --- where they run ---


def circular(embed):
    embed.proj.padding_mode = "circular"


def other_size(embed):
    embed.proj = nn.Conv2d(3, 64, 5, stride=4, padding=3)


def uneven(embed):
    embed.proj = nn.Conv2d(3, 64, 7, stride=(4, 2), padding=3)


def norm_of_rows(embed):
    embed.norm = nn.LayerNorm((10, 64))


@pytest.mark.parametrize(
    "change",
    [
        lambda embed: embed.proj.register_forward_hook(lambda *_: None),
        lambda embed: embed.norm.register_forward_pre_hook(lambda *_: None),
        lambda embed: setattr(embed.norm, "forward", lambda x: 2 * x),
        plain,
        circular,
        other_size,
        uneven,
        lambda embed: setattr(embed, "norm", nn.Identity()),
        lambda embed: setattr(embed, "proj", nn.Sequential(embed.proj)),
        lambda embed: setattr(embed, "norm", nn.RMSNorm(64)),
        norm_of_rows,
    ],
    ids=range(11),
)
def test_what_was_changed_keeps_to_its_modules(change, calls):
    embed, x = embedding(True, 3, 64, 4), noise((2, 3, 60, 40))
    change(embed)
    out = compute(embed, x)
    assert calls == []
    if isinstance(embed.proj, nn.Conv2d):
        assert torch.equal(out, embed.norm(embed.proj(x).permute(0, 2, 3, 1)))


def test_overlapping_patches_of_a_map_keep_to_their_modules(calls):
    compute(embedding(False, 32, 64, overlapped=True), noise((2, 20, 20, 32)))
    assert calls == []


def test_sizes_that_are_not_compiled_keep_to_their_modules(calls):
    for embed, x in (
        (embedding(True, 3, 40, 4), noise((2, 3, 60, 40))),  # 40 channels written
        (embedding(False, 24, 32), noise((2, 20, 20, 24))),  # 24 read
        (embedding(False, 48, 32).bfloat16(), noise((2, 20, 20, 48), torch.bfloat16)),  # 48, as words of two
        (embedding(True, 3, 64, 4), noise((1, 3, 8, 8))),  # rows for every thread
        (embedding(True, 3, 64, 4).double(), noise((2, 3, 60, 40)).double()),
    ):
        compute(embed, x)
        assert calls == []


def test_gradients_go_through_the_modules(calls):
    embed, x = embedding(True, 3, 64, 4), noise((2, 3, 60, 40))
    embed(x).sum().backward()
    assert calls == [] and embed.proj.weight.grad.any()
    embed.requires_grad_(False)
    embed(x.requires_grad_()).sum().backward()
    assert calls == [] and x.grad.any()
    assert not embed(x.detach()).requires_grad and len(calls) == 1


def test_autocast_takes_the_modules(calls):
    with torch.autocast("cpu", torch.bfloat16):
        compute(embedding(True, 3, 64, 4), noise((2, 3, 60, 40)))
    assert calls == []


def test_wrong_channels_are_reported_by_the_modules(calls):
    with pytest.raises(RuntimeError, match="channels"):
        compute(embedding(True, 3, 64, 4), noise((2, 4, 60, 40)))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        compute(embedding(False, 32, 64), noise((2, 20, 20, 64)))
    with pytest.raises(RuntimeError, match="permute"):
        compute(embedding(True, 3, 64, 4), noise((3, 60, 40)))
    assert calls == []


# --- in a compiler ---


def test_the_operator_is_well_formed():
    for embed, x in (case_of("stem, no multiple of the stride"), case_of("map, odd")):
        given = [p.detach() for p in (embed.proj.weight, embed.proj.bias, embed.norm.weight, embed.norm.bias)]
        torch.library.opcheck(ops.patch_embed, (x, *given, 1e-5, embed.proj.stride[0], embed.stem))


@pytest.mark.parametrize("case", ["stem, as released", "map, odd"])
def test_a_compiler_sees_one_operator(case):
    torch._dynamo.reset()
    names = []

    def keep(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    embed, x = case_of(case)
    out = compute(torch.compile(embed, backend=keep, fullgraph=True), x)
    assert [name for name in names if "davit" in name] == ["davit.patch_embed.default"]
    assert not any("conv" in name for name in names)
    assert torch.equal(out, compute(embed, x))
    torch._dynamo.reset()


def test_an_export_has_the_modules(calls):
    embed, x = case_of("map, odd")
    with torch.no_grad():
        program = torch.export.export(embed, (x,))
    assert calls == [] and not any("davit" in str(node.target) for node in program.graph.nodes)


def test_it_is_one_of_the_kernels(calls, monkeypatch):
    monkeypatch.setattr(conditions, "KERNELS", conditions.KERNELS - {"patches"})
    embed, x = case_of("map, odd")
    assert_right(compute(embed, x), embed, x)
    assert calls == []
