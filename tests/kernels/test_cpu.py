"""The fused path on the CPU against float64 and against the plain modules: values, gradients, memory."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from timm.layers import DropPath

from davit import DaViT, accelerate, plain
from davit.kernels import training
from davit.kernels.cpu import native, onednn
from davit.model import DualAttentionBlock
from tests.kernels.conftest import relative

pytestmark = pytest.mark.skipif(not onednn.AVAILABLE, reason="no oneDNN for this processor")

OPTIONS = [
    {},
    {"cpe_act": True, "overlapped_patch": True},
    {"ffn": False, "qkv_bias": False},
    {"attention_types": ("channel", "channel", "spatial"), "window_size": 7},
    {"num_heads": (1, 2, 3, 4), "window_size": 5},  # all that native.cpp has
]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.05}


def first(output):
    return output if isinstance(output, torch.Tensor) else output[-1]


@pytest.fixture(
    params=[(None, 0, False), (1 << 12, native.MIN_ROWS, False), (1 << 12, 1 << 40, True)],
    ids=["whole, products of native.cpp", "parts, of both", "parts, of oneDNN, Gram matrix"],
)
def part_bytes(request, monkeypatch):
    """Parts as they are, or so small that every map is cut and every image taken by itself; whose products; Gram."""
    size, least_rows, gram = request.param
    monkeypatch.setattr(native, "MIN_ROWS", least_rows)
    if least_rows == 1 << 40:
        monkeypatch.setattr(native, "FEW_POSITIONS", 0)
    monkeypatch.setattr(training, "gram_is_faster", lambda _: gram)
    if size:
        monkeypatch.setattr(onednn, "PART_BYTES", size)
        monkeypatch.setattr(training, "PART_BYTES", size)


# --- values ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(deadline=None, max_examples=3, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.tuples(st.integers(1, 100), st.integers(1, 100)))
@example(size=(1, 1))
@example(size=(33, 47))
def test_inference_equals_float64(small, picture, part_bytes, fused_calls, size, options, dtype):
    if dtype == torch.bfloat16 and not native.has_products(torch.bfloat16):
        pytest.skip("no bfloat16 for this processor")
    exact = small(accelerated=False, **options).double()
    model, image = small(**options).to(dtype), picture(3, 3, *size)
    with torch.inference_mode(), fused_calls() as calls:
        output = model(image.to(dtype))
        assert {*calls} == {module for module in model.modules() if isinstance(module, DualAttentionBlock)}
        assert output.dtype == dtype
        expected = exact(image.double())
        plain_error = relative(plain(model)(image.to(dtype)), expected)
    error = relative(output, expected)
    assert error < max(TOLERANCE[dtype], 1.3 * plain_error), (error, plain_error)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded", "flipped"])
def test_inputs_in_any_memory_layout(either, small, picture, layout):
    """Of the image, and of the map that a block is given."""
    image = {
        "channels_last": lambda: picture(2, 3, 32, 40).to(memory_format=torch.channels_last),
        "sliced": lambda: picture(4, 3, 64, 80)[::2, :, ::2, ::2],
        "expanded": lambda: picture(1, 3, 32, 40).expand(2, 3, 32, 40),
        "flipped": lambda: picture(2, 3, 40, 32).transpose(2, 3),
    }[layout]()
    model = small(either)
    block = model.main_blocks[1][0][0]
    x = torch.randn(2, 32, 5, 9, generator=torch.Generator().manual_seed(0)).permute(0, 2, 3, 1)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            output, y = first(model(image)), block(x)
            plain(model)
            torch.testing.assert_close(output, first(model(image.contiguous())), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(y, block(x.contiguous()), rtol=1e-4, atol=1e-5)
            accelerate(model)


# --- gradients ---


def gradients(model, image):
    model.zero_grad()
    torch.manual_seed(0)
    image = image.clone().requires_grad_()
    output = model(image)
    loss = sum(level.square().mean() for level in ([output] if isinstance(output, torch.Tensor) else output))
    loss.backward()
    return loss.detach(), {"image": image.grad, **{n: p.grad for n, p in model.named_parameters()}}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(deadline=None, max_examples=2, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
@example(size=(1, 1))
def test_gradients_equal_float64(small, picture, part_bytes, fused_calls, size, options):
    image = picture(3, 3, *size)
    with fused_calls() as calls:
        loss, grads = gradients(small(drop_path_rate=0.0, **options).train(), image)
        assert calls
    exact, expected = gradients(small(drop_path_rate=0.0, **options).double().train(), image.double())
    assert relative(loss, exact) < 1e-5
    largest = max(grad.norm() for grad in expected.values())
    for name, grad in grads.items():
        assert (grad - expected[name]).norm() < 1e-4 * expected[name].norm() + 1e-6 * largest, name


@pytest.mark.skipif(not native.has_products(torch.bfloat16), reason="no bfloat16 for this processor")
@pytest.mark.parametrize("mixed", [True, False], ids=["autocast", "bfloat16"])
def test_gradients_in_bfloat16(small, picture, part_bytes, fused_calls, mixed):
    """As near to float64 as the plain modules are, and in the dtype of the parameters."""
    image = picture(2, 3, 33, 47)
    _, expected = gradients(small(drop_path_rate=0.0).double().train(), image.double())
    errors = {}
    for accelerated in (False, True):
        model = small(drop_path_rate=0.0, accelerated=accelerated).train()
        model.to(torch.float32 if mixed else torch.bfloat16)
        with fused_calls() as calls, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            _, grads = gradients(model, image.to(model.head.weight.dtype))
        assert bool(calls) == (accelerated)
        assert all(p.grad.dtype == p.dtype for p in model.parameters())
        errors[accelerated] = {name: relative(grad, expected[name]) for name, grad in grads.items()}
    mean = {key: sum(values.values()) / len(values) for key, values in errors.items()}
    assert mean[True] < 1.6 * mean[False]  # rounding that goes another way by chance


def test_paths_are_dropped_without_gradients_too(small, picture, part_bytes, fused_calls):
    """In training mode under no_grad, as the teacher of a self-supervised model may be."""
    outputs = []
    for accelerated in (False, True):
        model = small(drop_path_rate=0.8, accelerated=accelerated).train()
        torch.manual_seed(3)
        with torch.no_grad(), fused_calls() as calls:
            outputs.append(model(picture(6)))
        assert bool(calls) == (accelerated)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(model.eval()(picture(6)), outputs[1], rtol=1e-2)


@pytest.mark.parametrize(
    "options", [{"drop_prob": 0.6}, {"drop_prob": 1.0}, {"drop_prob": 0.4, "scale_by_keep": False}], ids=str
)
def test_drop_path_draws_the_same_numbers(small, picture, options):
    results = []
    for accelerated in (False, True):
        model = small(accelerated=accelerated).train()
        for pair in model.main_blocks[2]:
            pair[1].drop_path = DropPath(**options)
        results.append(gradients(model, picture(8)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kept", ["bias", "weight", "norm", "main_blocks.2.0.0.mlp.fc1", "qkv", "fc2.bias"])
def test_frozen_parameters_get_no_gradient(small, picture, part_bytes, kept):
    results = []
    for accelerated in (False, True):
        model = small(accelerated=accelerated, drop_path_rate=0.0).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(kept in name)
        model(picture()).square().mean().backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in results[0].items():
        assert (grad is None) == (results[1][name] is None) == (kept not in name), name
        if grad is not None:
            torch.testing.assert_close(results[1][name], grad, rtol=1e-3, atol=1e-6, msg=name)


def test_gradients_of_gradients(small, picture, part_bytes):
    """A gradient penalty: the norm of the loss's gradient by the image is itself differentiated."""
    results = []
    for accelerated in (False, True):
        model = small(accelerated=accelerated, drop_path_rate=0.0).train()
        image = picture().requires_grad_()
        (grad,) = torch.autograd.grad(model(image).square().sum(), image, create_graph=True)
        grad.square().sum().backward()
        results.append({"image": image.grad, **{n: p.grad for n, p in model.named_parameters()}})
    for name, grad in results[0].items():
        if grad is None:  # a bias behind which all is linear
            assert results[1][name] is None or not results[1][name].any(), name
        else:
            assert relative(results[1][name], grad) < 1e-3 or (results[1][name] - grad).norm() < 1e-3, name


def test_checkpointed_blocks_have_the_same_gradients(either, small, picture, fused_calls):
    results = []
    for checkpointing in (False, True):
        model = small(either, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(checkpointing)
        with fused_calls() as calls:
            results.append(gradients(model, picture(4)))
        assert calls
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, msg=name)


def test_less_is_saved_for_the_backward_pass(saved_bytes):
    """At most 70 % of the bytes, counted by storage."""

    def saved(accelerated):
        model = DaViT(num_classes=5, embed_dims=(32, 64, 96, 128), num_heads=(1, 2, 3, 4)).train()
        return saved_bytes(accelerate(model) if accelerated else model, torch.randn(2, 3, 112, 112))

    assert saved(True) < 0.7 * saved(False)
