"""The command line, as a user runs it."""

import argparse
import runpy
import sys

import pytest
import safetensors.torch
import timm
import torch

from davit import create_model
from davit.checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from davit.checkpoint.__main__ import main
from tests.checkpoint.conftest import built, same, under, weights_of


def test_the_module_is_a_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["davit.checkpoint", "inspect", str(tmp_path / "missing.pth")])
    monkeypatch.delitem(sys.modules, "davit.checkpoint.__main__")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("davit.checkpoint", run_name="__main__")
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and "missing.pth" in err


def test_inspect_tells_what_is_in_the_file(saved, capsys):
    weights = weights_of("timm")
    contents = {
        "state_dict": weights,
        "state_dict_ema": under("module.", weights),
        "epoch": 42,
        "args": argparse.Namespace(lr=0.001, model="DaViT_tiny"),
        "optimizer": {"state": {0: torch.ones(3)}},
    }
    assert main(["inspect", str(saved(contents))]) == 0
    out = capsys.readouterr().out
    params = sum(tensor.numel() for tensor in weights.values())
    for fact in (
        *("state_dict_ema", "timm", "'module.'", "(16, 32, 48, 64)", "(1, 1, 2, 1)", "7 classes", "float32"),
        *(f"{params:,}", str(len(weights)), "epoch: 42", "lr=0.001", "optimizer", "davit's"),
    ):
        assert fact in out, fact
    rows = [line.split() for line in out.splitlines() if line.startswith(("stage ", "norms, head"))]
    assert [row[2] for row in rows[:4]] == ["16", "32", "48", "64"] and [row[3] for row in rows[:4]] == list("1121")
    assert sum(int(row[-1].replace(",", "")) for row in rows) == params
    assert sum(int(row[-2]) for row in rows) == len(weights)


def test_inspect_names_a_released_variant_nan_and_what_is_no_davits(saved, capsys):
    weights = create_model("DaViT_nano", num_classes=10).half().state_dict()
    weights["norms.bias"][0] = float("nan")
    weights = {**under("net.", weights), "net.main_blocks.0.0.0.gamma": torch.ones(1), "neck.bias": torch.ones(1)}
    assert main(["inspect", str(saved(weights))]) == 0
    out = capsys.readouterr().out
    for fact in ("DaViT_nano", "float16", "NaN", "net.norms.bias", "net.main_blocks.0.0.0.gamma", "neck.bias"):
        assert fact in out, fact


def test_there_and_back_is_bit_identical_and_readable_without_us(saved, tmp_path, capsys):
    current, source = saved(weights_of(), "original.pth"), "davit"
    for step, name in enumerate(
        ["timm.safetensors", "florence2.pt", "davit.safetensors", "timm.bin", "davit.pth.tar"]
    ):
        current, previous, to = tmp_path / f"{step}.{name}", current, name.split(".")[0]
        assert main(["convert", str(previous), str(current), "--to", to]) == 0
        assert f"{source} -> {to}" in capsys.readouterr().out
        read = safetensors.torch.load_file if name.endswith("safetensors") else torch.load
        assert read(current).keys() == weights_of(to).keys() or to == "florence2"
        source = to
    assert same(read_checkpoint(current).state_dict, weights_of())


def test_the_ema_option_chooses_the_weights(saved, tmp_path):
    trained, averaged = weights_of(seed=1), weights_of(seed=2)
    path = saved({"model": trained, "model_ema": averaged})
    for ema, expected in (("auto", averaged), ("always", averaged), ("never", trained)):
        destination = tmp_path / f"{ema}.pt"
        assert main(["convert", str(path), str(destination), "--to", "davit", "--ema", ema]) == 0
        assert same(torch.load(destination, weights_only=True), expected)


def test_nothing_is_overwritten_without_force(saved, tmp_path, capsys):
    path = saved(weights_of())
    before = path.read_bytes()
    command = ["convert", str(path), str(path), "--to", "timm"]
    assert main(command) == 2
    assert path.read_bytes() == before and "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert list(read_checkpoint(path).state_dict) == list(weights_of("timm"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_florence2_stays_recognisable_under_any_name(saved, tmp_path, suffix):
    """Renaming must not make another function pass for a DaViT's."""
    current = saved(weights_of("florence2"))
    for to, like in (("davit", "davit"), ("timm", "florence2")):
        current, previous = tmp_path / f"{to}{suffix}", current
        assert main(["convert", str(previous), str(current), "--to", to]) == 0
        checkpoint = read_checkpoint(current)
        assert checkpoint.function == "florence2" and checkpoint.state_dict.keys() == weights_of(like).keys()
        with pytest.raises(CheckpointError, match="allow_different_function"):
            load_checkpoint(built(), current)


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "{bad}", "{new}.pth", "--to", "timm"],
        ["convert", "{good}", "{new}.onnx", "--to", "timm"],
        ["convert", "{good}", "{new}/x.pth", "--to", "timm"],
        ["convert", "{good}", "{new}.pth", "--to", "timm", "--ema", "always"],
        ["inspect", "{other}"],
        ["inspect", "{bad}"],
        ["convert", "9" * 400, "{new}.pth", "--to", "timm"],  # longer than a name may be
        ["inspect", "9" * 400],
    ],
)
def test_mistakes_end_with_status_2_and_a_paragraph(saved, tmp_path, capsys, arguments):
    names = {
        "bad": tmp_path / "bad.pth",
        "good": saved(weights_of(), "good.pth"),
        "other": saved(timm.create_model("resnet10t").state_dict(), "other.pth"),
        "new": tmp_path / "new",
    }
    names["bad"].write_text("nothing to see")
    before = sorted(tmp_path.iterdir())
    assert main([argument.format(**names) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_tensor_larger_than_memory_is_a_paragraph(saved, tmp_path, capsys, suffix):
    file = saved({**weights_of(), "head.weight": torch.zeros(1).expand(10**15)})
    assert file.stat().st_size < 10_000_000
    out = tmp_path / f"out{suffix}"
    for command in (["inspect", str(file)], ["convert", str(file), str(out), "--to", "timm"]):
        assert main(command) == 2
        assert str(file) in capsys.readouterr().err
    assert not out.exists()
