"""Position encoding with residual and norm by Triton, and GELU's backward pass, against float64 and PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from davit.kernels import ops
from davit.kernels.training import GeluLinear
from davit.kernels.triton import encoding as triton_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {  # batch, height, width, channels
    "several strips": (1, 9, 17, 70),
    "a wide map": (1, 2, 5, 160),
    "one position": (1, 1, 1, 24),
    "one column": (2, 5, 1, 12),
    "three channels": (1, 3, 4, 3),
    "empty batch": (0, 5, 5, 16),
}


def parameters(noise, C, dtype, kind="all"):
    weight, bias, scale, shift = (noise(s, dtype, i + 5) for i, s in enumerate([(C, 1, 3, 3), (C,), (C,), (C,)]))
    return {"all": [weight, bias, scale, shift], "no bias": [weight, None, scale, None]}.get(
        kind, [weight] + [None] * 3
    )


def given(*tensors):
    return [t for t in tensors if t is not None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_encoding_kernel_equals_float64(noise, close, double, case, dtype):
    shape = CASES[case]
    x, vectors = noise(shape, dtype), parameters(noise, shape[3], dtype)
    y, normed, mean, rstd = ops.encode_and_norm(x, *vectors, 1e-3, dtype)
    assert (y.dtype, normed.dtype, mean.requires_grad, rstd.requires_grad) == (dtype, dtype, False, False)
    grads = [noise(shape, dtype, i).detach() for i in (2, 3)]
    found = torch.autograd.grad([y, normed], [x, *vectors], grads)
    exact_x, exact_vectors = double(x), [double(p) for p in vectors]
    exact = ops.encode_and_norm_formula(exact_x, *exact_vectors, 1e-3, torch.float64)[:2]
    close(y, exact[0], dtype)
    close(normed, exact[1], dtype)
    expected = torch.autograd.grad(exact, [exact_x, *exact_vectors], [g.double() for g in grads])
    for actual, right in zip(found, expected, strict=True):
        close(actual, right, dtype)


@pytest.mark.parametrize("kind", ["no bias", "weight alone"])
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)], ids=["y", "normed", "both"])
def test_encoding_with_parts_left_out(noise, close, double, kind, outputs):
    x, vectors = noise((1, 3, 5, 20)), parameters(noise, 20, torch.float32, kind)
    results = []
    for function, inputs in (
        (ops.encode_and_norm, [x, *vectors]),
        (ops.encode_and_norm_formula, [double(t) for t in (x, *vectors)]),
    ):
        maps = function(*inputs, 1e-5, inputs[0].dtype)
        loss = sum(maps[i].sin().sum() for i in outputs)
        results.append([*maps[:2], *torch.autograd.grad(loss, given(*inputs), allow_unused=True)])
    for one, other in zip(*results, strict=True):
        close(one, other, torch.float32)


@pytest.mark.parametrize("many", [1, 100000], ids=["few programs", "many programs"])
def test_sums_over_the_map_may_be_cut_anywhere(noise, close, double, monkeypatch, many):
    monkeypatch.setattr(triton_kernels, "MANY_PROGRAMS", many)
    x, vectors = noise((2, 19, 3, 12)), parameters(noise, 12, torch.float32)
    results = []
    for function, inputs in (
        (ops.encode_and_norm, [x, *vectors]),
        (ops.encode_and_norm_formula, [double(t) for t in (x, *vectors)]),
    ):
        maps = function(*inputs, 1e-5, inputs[0].dtype)[:2]
        results.append(torch.autograd.grad(sum(m.sin().sum() for m in maps), inputs))
    for one, other in zip(*results, strict=True):
        close(one, other, torch.float32)


def test_encoding_kernel_reads_any_layout(noise, close, double, laid_out):
    x = laid_out(20)
    vectors, exact = parameters(noise, 20, torch.float32), double(x)
    maps = ops.encode_and_norm(x, *vectors, 1e-5, torch.float32)[:2]
    expected = ops.encode_and_norm_formula(exact, *(p.double() for p in vectors), 1e-5, torch.float64)[:2]
    grads = [torch.ones_like(x[..., :1]).expand_as(x), noise((2, 7, 5, 20)).transpose(1, 2).detach()]
    found = [*maps, *torch.autograd.grad(maps, x, grads)]
    right = [*expected, *torch.autograd.grad(expected, exact, [g.double() for g in grads])]
    for one, other in zip(found, right, strict=True):
        close(one, other, torch.float32)


def test_the_norm_may_be_in_the_format_of_autocast(noise, close):
    """A residual stream in float32, its norm for a linear layer in bfloat16."""
    x, vectors = noise((1, 3, 4, 24)), parameters(noise, 24, torch.float32)
    y, normed, *_ = ops.encode_and_norm(x, *vectors, 1e-5, torch.bfloat16)
    expected = ops.encode_and_norm_formula(*(t.double() for t in (x, *vectors)), 1e-5, torch.float64)[:2]
    close(y, expected[0], torch.float32)
    close(normed, expected[1], torch.bfloat16)
    (y.sum() + normed.float().sin().sum()).backward()
    assert [t.grad.dtype for t in (x, *vectors)] == 5 * [torch.float32]


def test_results_of_the_encoding_kernel_are_repeatable(noise):
    x, vectors = noise((2, 9, 5, 20)), parameters(noise, 20, torch.float32)
    grads = []
    for _ in range(2):
        y, normed, *_ = ops.encode_and_norm(x, *vectors, 1e-5, torch.float32)
        grads.append(torch.autograd.grad(y.sum() + normed.sin().sum(), (x, *vectors)))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("kind", ["all", "weight alone"])
def test_encoding_operator_is_well_formed(noise, kind):
    x, vectors = noise((2, 3, 5, 12)), parameters(noise, 12, torch.float32, kind)
    torch.library.opcheck(ops.encode_and_norm, (x, *vectors, 1e-5, torch.float32))
    with torch.no_grad():
        y, normed, mean, rstd = ops.encode_and_norm(x, *vectors, 1e-5, torch.float32)
    for of_y, of_normed in ((y, normed), (None, normed)) if kind == "all" else ((y, None),):
        arguments = (of_y, of_normed, x.detach(), vectors[0].detach(), vectors[2], y, mean, rstd)
        torch.library.opcheck(ops.encode_and_norm_backward, [t if t is None else t.detach() for t in arguments])


def test_gradients_of_gradients_of_encodings(noise, close, double):
    x, vectors = noise((1, 3, 5, 12)), parameters(noise, 12, torch.float32)
    results = []
    for function, inputs in (
        (ops.encode_and_norm, [x, *vectors]),
        (ops.encode_and_norm_formula, [double(t) for t in (x, *vectors)]),
    ):
        y, normed = function(*inputs, 1e-5, inputs[0].dtype)[:2]
        first = torch.autograd.grad((y.square() + normed.sin()).sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True))
    for one, other in zip(*results, strict=True):
        close(one, other, torch.float32)


def test_encoding_without_triton_computes_the_same(noise, close, double, without_kernels):
    x, vectors = noise((1, 3, 5, 12)), parameters(noise, 12, torch.float32)
    with_triton = ops.encode_and_norm(x, *vectors, 1e-5, torch.float32)
    without_kernels()
    without = ops.encode_and_norm(x, *vectors, 1e-5, torch.float32)
    for one, other in zip(with_triton, without, strict=True):
        close(one, other.double(), torch.float32)
    losses = [sum(m.sin().sum() for m in maps[:2]) for maps in (with_triton, without)]
    for one, other in zip(*(torch.autograd.grad(loss, (x, *vectors)) for loss in losses), strict=True):
        close(one, other.double(), torch.float32)


# --- GELU ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_backward_equals_float64(noise, close, dtype):
    x, grad = noise((3, 5, 400), dtype).detach() * 3, noise((3, 5, 400), dtype, 1).detach()
    grad_x, again = ops.gelu_backward(grad, x)
    close(again, F.gelu(x.double()), dtype)
    close(grad_x, torch.ops.aten.gelu_backward(grad.double(), x.double()), dtype)
    assert ops.gelu_backward(grad[:0], x[:0])[0].shape == (0, 5, 400)


def test_gelu_backward_reads_any_layout(noise, close):
    x, grad = noise((5, 3, 8)).detach().transpose(0, 1), noise((3, 5, 1), seed=1).detach().expand(3, 5, 8)
    close(ops.gelu_backward(grad, x)[0], torch.ops.aten.gelu_backward(grad.double(), x.double()), torch.float32)


def test_gelu_operator_is_well_formed(noise):
    torch.library.opcheck(ops.gelu_backward, (noise((3, 8)).detach(), noise((3, 8), seed=1).detach()))


@pytest.mark.parametrize("bias", [True, False])
def test_gelu_linear_has_the_gradients_of_its_formula(noise, close, double, bias):
    inputs = [noise((2, 3, 20)), noise((8, 20), seed=1), noise((8,), seed=2) if bias else None]
    results = []
    for function, given_inputs in (
        (GeluLinear.apply, inputs),
        (GeluLinear.formula, [double(t) for t in inputs]),
    ):
        out, leaves = function(*given_inputs), given(*given_inputs)
        first = torch.autograd.grad(out.sin().sum(), leaves, retain_graph=True)
        again = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in again), leaves)
        results.append([out, *first, *second])
    for one, other in zip(*results, strict=True):
        close(one, other, torch.float32)
