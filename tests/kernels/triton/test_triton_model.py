"""Whole models through the Triton kernels against their plain modules; compilers; where kernels must not run."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from davit import accelerate, plain
from davit.kernels import conditions
from tests.kernels.conftest import DEVICE

EVERY = {"window", "channel", "encoding", "gelu"}
OF_FORWARD = {"_forward_kernel", "_product_kernel", "_softmax_kernel", "_apply_kernel", "_encode_kernel"}
OF_BACKWARD = {
    "_backward_kernel", "_softmax_backward_kernel", "_apply_backward_kernel", "_norm_backward_kernel",
    "_weight_gradient_kernel", "_kernel",
}  # fmt: skip


@pytest.fixture
def tiny(small):
    """A model of two stages, each with one block of either kind."""

    shape = {"embed_dims": (8, 12), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratio": 2.0}
    return lambda **options: small(**{**shape, **options}).to(DEVICE)


@pytest.fixture
def image(picture):
    """Small, since the interpreter is slow: 3 x 6 and 2 x 3 positions in the two stages, windows of 4."""
    return lambda *shape: picture(*(shape or (1, 3, 9, 21))).to(DEVICE)


def aslist(output):
    return [output] if isinstance(output, torch.Tensor) else list(output)


def step(model, pixels, function=None):
    """Outputs and all gradients."""
    model.zero_grad()
    pixels = pixels.clone().requires_grad_()
    outputs = aslist(model(pixels) if function is None else function(pixels))
    sum(level.float().square().mean() for level in outputs).backward()
    return [*(o.detach() for o in outputs), pixels.grad, *(p.grad for p in model.parameters())]


def assert_close(results, expected, tolerance=2e-5):
    scale = max(t.norm() for t in expected)
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one.double() - other.double()).norm() < tolerance * (other.double().norm() + 1e-2 * scale)


# --- values ---


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_types": ("spatial", "channel_qk")}, {"qkv_bias": False, "ffn": False}, {"cpe_act": True}],
    ids=["stock", "stock of Florence-2", "without parts", "GELU"],
)
def test_models_through_kernels(tiny, image, launches, options):
    model = tiny(drop_path_rate=0.0, **options).train()
    with launches() as names:
        results = step(model, image())
    expected = OF_FORWARD | OF_BACKWARD
    if "ffn" in options:
        expected = expected - {"_kernel"}
    if "cpe_act" in options:
        expected = expected - {"_encode_kernel", "_norm_backward_kernel", "_weight_gradient_kernel"}
    assert set(names) == expected
    with launches() as names:
        assert_close(results, step(plain(model), image()))
    assert names == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize("mixed", [True, False], ids=["autocast", "whole"])
def test_two_byte_dtypes(tiny, image, launches, dtype, mixed):
    """As near to float64 as the plain modules are, in the dtypes that these give."""
    model = tiny(drop_path_rate=0.0).train()
    exact = step(copy.deepcopy(model).double(), image().double())
    model = model if mixed else model.to(dtype)
    errors, dtypes = {}, {}
    for accelerated in (True, False):
        (accelerate if accelerated else plain)(model)
        with torch.autocast(DEVICE, dtype, enabled=mixed), launches() as names:
            results = step(model, image().to(torch.float32 if mixed else dtype))
        assert set(names) == (OF_FORWARD | OF_BACKWARD if accelerated else set())
        errors[accelerated] = sum(
            ((r.double() - e).norm() / e.norm()).item() for r, e in zip(results, exact, strict=True)
        )
        dtypes[accelerated] = [r.dtype for r in results]
    assert errors[True] < 2 * errors[False]  # of so small a map, rounding goes either way by chance
    assert dtypes[True] == dtypes[False]


def test_frozen_parameters(tiny, image):
    for kept in ("norm", "fc2.bias", "cpe"):
        model = tiny(drop_path_rate=0.0).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(kept in name)
        grads = []
        for accelerated in (True, False):
            (accelerate if accelerated else plain)(model)
            model.zero_grad()
            model(image()).square().mean().backward()
            assert all((p.grad is not None) == (kept in name) for name, p in model.named_parameters())
            grads.append([p.grad for p in model.parameters() if p.grad is not None])
        assert_close(*grads)


@pytest.mark.parametrize("norm_layer", [partial(nn.LayerNorm, eps=0.5, bias=False), nn.RMSNorm])
def test_norms_of_any_kind(tiny, image, launches, norm_layer):
    model = tiny(norm_layer=norm_layer, drop_path_rate=0.0).train()
    with launches() as names:
        results = step(model, image())
    assert ("_encode_kernel" in names) == (norm_layer is not nn.RMSNorm)
    assert_close(results, step(plain(model), image()))


def test_less_is_saved_for_the_backward_pass(tiny, image, saved_bytes):
    """At most 0.75 of the bytes of the plain modules, counted by storage."""

    def saved(accelerated):
        return saved_bytes(tiny(accelerated=accelerated, mlp_ratio=4.0).train(), image())

    assert saved(True) < 0.75 * saved(False)


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["window", "channel", "encoding", "every"])
def test_reference_vectors(monkeypatch, only, kernel):
    """The original's logits, through each kernel alone and all together."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "parity"))
    from test_original import empty_model, fill, outputs, picture

    only(*(EVERY if kernel == "every" else {kernel}))
    with torch.inference_mode():
        logits = fill(empty_model("tiny_225x257")).to(DEVICE)(picture("tiny_225x257").to(DEVICE))
    torch.testing.assert_close(logits.cpu(), outputs("tiny_225x257")["logits"], rtol=0, atol=2e-5)


# --- compilers ---


def assert_operators(names):
    assert {name for name in names if "davit" in name} == {
        f"davit.{name}.default" for name in ("window_attention", "channel_attention", "encode_and_norm")
    }


@pytest.mark.long  # tests/kernels/test_native.py compiles a step with the same operators
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training_step_has_the_operators(tiny, image, recorded, checkpointing):
    model = tiny(drop_path_rate=0.0).train()
    expected = step(model, image())
    model.set_grad_checkpointing(checkpointing)
    compiled, names = recorded(model, "aot_eager")
    assert_close(step(model, image(), compiled), expected)
    if not checkpointing:  # else they are in graphs of their own
        assert_operators(names)


@pytest.mark.long
def test_compiled_with_autocast(tiny, image, recorded):
    model = tiny(drop_path_rate=0.0).train()
    compiled, names = recorded(model, "aot_eager")
    with torch.autocast(DEVICE, torch.bfloat16):
        expected = step(model, image())
        assert_close(step(model, image(), compiled), expected, tolerance=0.06)
    assert_operators(names)


def test_a_compiler_sees_no_operator_when_off_or_transformed(tiny, image, recorded):
    model = tiny(accelerated=False)
    compiled, names = recorded(model)
    with torch.no_grad():
        compiled(image())
        assert not any("davit" in name for name in names)
        accelerate(model)
        torch._dynamo.reset()
        compiled, names = recorded(lambda x: torch.func.vmap(lambda pixels: model(pixels[None])[0])(x))
        torch.testing.assert_close(compiled(image()), model(image()), rtol=1e-4, atol=1e-5)
    assert not any("davit" in name for name in names)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.long)])
def test_export_keeps_the_operators(tiny, image, tmp_path, strict):
    model = tiny()
    dynamic = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(model, (image(2, 3, 17, 30),), dynamic_shapes=dynamic, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    assert_operators([str(node.target) for node in program.graph.nodes if "davit" in str(node.target)])
    with torch.no_grad():
        for shape in ((2, 3, 9, 21), (1, 3, 40, 33)):
            torch.testing.assert_close(program.module()(image(*shape)), model(image(*shape)), rtol=1e-4, atol=1e-5)


# --- where kernels must not run ---


def test_onnx_export_sees_plain_modules(tiny, image, launches, monkeypatch):
    """An exporter for ONNX says so; the graph that it asks torch.export for has no operator of ours."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(tiny(), (image(),))
    assert not any("davit" in str(node.target) for node in program.graph.nodes)


def test_sizes_that_fit_no_program(tiny, image, launches):
    """A window of 12 positions a side; a group of 128 channels."""
    for options, absent in (
        ({"window_size": 12}, "_forward_kernel"),
        ({"embed_dims": (128, 128), "num_heads": (1, 1)}, "_product_kernel"),
    ):
        model = tiny(**options)
        with launches() as names, torch.no_grad():
            results = aslist(model(image()))
            assert_close(results, aslist(plain(model)(image())))
        assert absent not in names and names


def test_the_threshold_of_the_encoding_is_for_eager_mode_on_a_gpu(monkeypatch, launches, tiny, image):
    monkeypatch.setattr(conditions, "MIN_ELEMENTS", 1 << 40)
    with launches() as names, torch.no_grad():
        tiny()(image())
    assert ("_encode_kernel" in names) == (DEVICE == "cpu")
