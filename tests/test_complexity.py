"""Check counts against published figures and formulas; the model stays as it was."""

import copy
import json
import logging
import re
import subprocess
import sys
from contextlib import nullcontext

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn
from torch import nn

from davit import VARIANTS, DaViT, DaViTPyramid, create_model
from davit.complexity import CONVENTION, complexity, main

SMALL = {"embed_dims": (16, 32), "depths": (1, 2), "num_heads": (2, 4), "window_size": 4}
NANO_SIZE = VARIANTS["DaViT_nano"].image_size


def assert_parts_make_the_whole(result):
    for field in ("parameters", "flops", "activations"):
        assert sum(getattr(part, field) for part in result.parts) == getattr(result, field)
    assert sum(result.operators.values()) == result.flops


@pytest.mark.parametrize(
    ("name", "size", "flops"),
    [
        ("DaViT_tiny", 224, 4_540_244_736),
        pytest.param("DaViT_small", 224, 8_800_488_192, marks=pytest.mark.long),
        pytest.param("DaViT_base", 224, 15_510_430_720, marks=pytest.mark.long),
        pytest.param("DaViT_large_window12_384", 384, 102_966_676_992, marks=pytest.mark.long),
    ],
)
def test_flops_are_exactly_the_published_ones(name, size, flops):
    with torch.device("meta"):
        model = create_model(name)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.zeros_(parameter)  # faster than drawing them, and no count depends on them
    result = complexity(model, (3, size, size))
    assert result.flops == flops
    assert_parts_make_the_whole(result)


def test_every_part_by_formula():
    """A map of 16 x 24, then 8 x 12; 5 an element for norms, two products for each attention (Introduction.md)."""
    result = complexity(DaViT(**SMALL, num_classes=10), (3, 64, 96))
    costs = {(part.stage, part.name): (part.parameters, part.flops, part.activations) for part in result.parts}
    expected = {
        ("stage 0", "patch embedding"): (16 * (3 * 49 + 1) + 32, 384 * 16 * (147 + 5), 384 * 16),
        ("stage 1", "patch embedding"): (32 * (16 * 4 + 1) + 32, 96 * 32 * 64 + 384 * 16 * 5, 96 * 32),
        ("", "head"): (2 * 32 + 33 * 10, 5 * 32 + 320, 10),
    }
    for stage, (c, heads, n, pairs) in enumerate([(16, 2, 384, 1), (32, 4, 96, 2)]):
        d = c // heads
        norm, attention = 2 * c, 4 * c * c + 4 * c
        linear = 4 * n * c * c + 5 * n * c
        expected |= {
            (f"stage {stage}", part): tuple(pairs * count for count in counts)
            for part, counts in {
                "position encoding": (40 * c, 36 * n * c, 4 * n * c),
                "window attention": (norm + attention, linear + 2 * n * 16 * c, 4 * n * c + n * 16 * heads + n * c),
                "channel attention": (norm + attention, linear + 2 * n * d * c, 4 * n * c + d * c + n * c),
                "MLP": (2 * (norm + 8 * c * c + 5 * c), 2 * (8 * n * c * c + 5 * n * c), 2 * 5 * n * c),
            }.items()
        }
    assert costs == expected
    last = complexity(DaViTPyramid(**SMALL, out_indices=(1,)), (3, 64, 96)).parts[-1]  # which has no head
    assert (last.name, last.parameters, last.flops) == ("output norms", 64, 5 * 96 * 32)


@pytest.mark.parametrize(
    "model",
    [
        DaViT(**SMALL, ffn=False, attention_types=("channel",)),
        DaViTPyramid(**SMALL, out_indices=(0, 1), grad_checkpointing=True),
        timm.create_model("DaViT_nano", features_only=True, out_indices=(0, 2)),
        timm.create_model("resnet10t"),
        timm.create_model("vit_tiny_patch16_224", img_size=72, features_only=True, out_indices=(3,)),
        nn.Conv2d(3, 4, 3),
    ],
    ids=lambda model: type(model).__name__,
)
def test_any_model_in_parts_that_make_the_whole(model):
    result = complexity(model, (3, 72, 72))
    assert result.parameters == sum(p.numel() for p in model.parameters())
    assert result.flops > 0
    assert_parts_make_the_whole(result)


class Computing(nn.Module):
    """A layer, and a function of its output."""

    def __init__(self, features, function):
        super().__init__()
        self.layer = nn.Linear(features, features)
        self.scale = nn.Parameter(torch.ones(3))
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


@pytest.mark.parametrize(
    ("function", "shape", "flops", "activations"),
    [
        (lambda x: x @ x.transpose(-2, -1), (1, 4, 5), 4 * 5 * 4, 4 * 4),
        (lambda x: torch.baddbmm(x.new_zeros(3, 4, 6), x[0], x.new_zeros(3, 5, 6)), (3, 4, 5), 12 * 5 * 6, 12 * 6),
        (
            lambda q: F.scaled_dot_product_attention(q, q.new_zeros(1, 6, 11, 8), q.new_zeros(1, 6, 11, 9)),
            (6, 5, 8),
            6 * (5 * 11 * 8 + 5 * 11 * 9),
            6 * (5 * 11 + 5 * 9),
        ),
    ],
    ids=["matmul", "baddbmm", "fused attention"],
)
def test_operations_outside_of_any_part_are_a_row(function, shape, flops, activations):
    result = complexity(Computing(shape[-1], function), shape)
    layer, outside = result.parts
    assert layer.parameters == shape[-1] * (shape[-1] + 1)
    assert (outside.name, outside.parameters, outside.flops) == ("outside of these", 3, flops)
    assert outside.activations == activations and result.skipped == {}


def test_fused_attention_costs_what_its_two_products_do():
    def cost(is_fused):
        set_fused_attn(is_fused)
        model = timm.create_model("davit_tiny", embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2))
        return complexity(model, (3, 64, 64))

    plain, fused = cost(False), cost(True)  # PyTorch's own choice is the last
    assert fused.operators["scaled_dot_product_attention"] > 0
    assert "scaled_dot_product_attention" not in plain.operators
    assert (fused.flops, fused.activations) == (plain.flops, plain.activations)


# --- what the result says ---


def test_skipped_operations_are_listed_not_logged(caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        result = complexity(DaViT(**SMALL), (3, 64, 64))
    assert result.skipped["aten::gelu"] == result.skipped["aten::softmax"] == 6
    assert not {"aten::matmul", "aten::linear", "aten::layer_norm"} & result.skipped.keys()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_the_table_and_the_json_hold_every_value():
    result = complexity(DaViT(**SMALL), (3, 64, 64), name="a model")
    flat = " ".join(result.to_table().split())
    for part in (result, *result.parts):
        assert all(f"{count:,}" in flat for count in (part.parameters, part.flops, part.activations))
    assert "a model" in flat and "3 x 64 x 64" in flat and CONVENTION in flat
    assert all(name in flat for name in result.skipped)
    loaded = json.loads(result.to_json())
    assert loaded == {**vars(result), "input_shape": [3, 64, 64], "parts": [vars(part) for part in result.parts]}


# --- the model is left alone ---


@pytest.mark.parametrize("channels", [3, 4])
def test_the_model_is_left_as_it_was(channels):
    """Also where it cannot read the image."""
    model = DaViTPyramid(**SMALL, out_indices=(0, 1), frozen_stages=1).train()
    model.main_blocks[1].eval()
    model.set_grad_checkpointing(True)
    seen = []
    model.patch_embeds[0].register_forward_hook(lambda *_: seen.append(1))

    def picture_of(model):
        return [
            (name, module.training, {key: len(value) for key, value in vars(module).items() if "hooks" in key})
            for name, module in model.named_modules()
        ]

    before, state = picture_of(model), copy.deepcopy(model.state_dict())
    requires_grad = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    with nullcontext() if channels == 3 else pytest.raises(ValueError, match=r"\(4, 64, 64\)"):
        complexity(model, (channels, 64, 64))
    assert picture_of(model) == before
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert model.grad_checkpointing
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("prepare", [nn.Module.bfloat16, torch.compile])
def test_dtypes_and_wrappers_cost_the_same(prepare):
    expected = complexity(DaViT(**SMALL), (3, 64, 64))
    assert complexity(prepare(DaViT(**SMALL)), (3, 64, 64)) == expected


# --- mistakes and the command ---


@pytest.mark.parametrize("shape", [(3, 64), (1, 3, 64, 64), (3, -1, 64), (3, 64.0, 64)], ids=str)
def test_shapes_that_are_none(shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        complexity(DaViT(**SMALL), shape)


def test_command(capsys):
    words = ["--model", "DaViT_nano", "--input", "1", "40", "48", "--num-classes", "10"]
    assert main(words) == 0
    expected = complexity(create_model("DaViT_nano", in_chans=1, num_classes=10), (1, 40, 48), "DaViT_nano")
    assert capsys.readouterr() == (expected.to_table() + "\n", "")
    assert main([*words, "--format", "json"]) == 0
    assert capsys.readouterr() == (expected.to_json() + "\n", "")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("DaViT_tniy", "DaViT_tniy"),
        ("vit_tiny_patch16_224 --input 3 17 17", "(3, 17, 17)"),
    ],
)  # fmt: skip
def test_command_with_mistakes(capsys, words, value):
    assert main(["--model", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and value in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words", ["--input 3 0 5", "--input 3 8192 8193", "--input 3 1000000 1000000", "--num-classes -4"]
)
def test_numbers_that_make_no_sense(capsys, words):
    with pytest.raises(SystemExit) as leave:
        main(words.split())
    assert leave.value.code == 2 and words.split()[0] in capsys.readouterr().err


def test_command_as_a_user_runs_it(repository):
    """Takes the model's own input size; no warning of fvcore's reaches the terminal."""
    command = [sys.executable, "-W", "default", "-m", "davit.complexity", "--model", "DaViT_nano", "--format", "json"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["input_shape"] == [3, NANO_SIZE, NANO_SIZE]
    assert "fvcore" not in done.stderr
