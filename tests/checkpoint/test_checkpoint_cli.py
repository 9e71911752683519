"""The command line, run as a user runs it."""

import argparse
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from davit.checkpoint import load_checkpoint, read_checkpoint
from davit.checkpoint.__main__ import main


def test_the_module_is_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "davit.checkpoint", "inspect", str(tmp_path / "missing.pth")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "missing.pth" in done.stderr


def test_inspect_tells_what_is_in_the_file(build, saved, capsys):
    weights = build("timm").state_dict()
    contents = {
        "state_dict": weights,
        "state_dict_ema": {f"module.{name}": tensor for name, tensor in weights.items()},
        "epoch": 42,
        "args": argparse.Namespace(lr=0.001, model="DaViT_tiny"),
        "optimizer": {"state": {0: torch.ones(3)}},
    }
    assert main(["inspect", str(saved(contents))]) == 0
    out = capsys.readouterr().out
    params = sum(tensor.numel() for tensor in weights.values())
    for fact in (
        "state_dict_ema (the EMA weights)",
        "timm, under 'module.'",
        "embed_dims (16, 32, 48, 64), depths (1, 1, 2, 1), 3 input channels, 7 classes",
        f"{params:,} in {len(weights)} tensors of float32",
        "epoch: 42",
        "lr=0.001",
        "optimizer: (not shown)",
        "davit's channel attention",
    ):
        assert fact in out, out
    rows = [line.split() for line in out.splitlines() if line.startswith(("stage ", "norms, head"))]
    assert [row[2] for row in rows[:4]] == ["16", "32", "48", "64"] and [row[3] for row in rows[:4]] == list("1121")
    assert sum(int(row[-1].replace(",", "")) for row in rows) == params
    assert sum(int(row[-2]) for row in rows) == len(weights)


def test_inspect_names_a_released_variant_and_nan(saved, capsys):
    from davit import create_model

    state_dict = create_model("DaViT_nano", num_classes=10).half().state_dict()
    state_dict["norms.bias"][0] = float("nan")
    assert main(["inspect", str(saved(state_dict))]) == 0
    out = capsys.readouterr().out
    assert "DaViT_nano" in out and "float16" in out and "NaN" in out and "norms.bias" in out


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pth.tar"])
@pytest.mark.parametrize("to, kind", [("davit", "davit"), ("timm", "timm"), ("pyramid", "pyramid")])
def test_converted_files_load_without_us(build, saved, tmp_path, capsys, suffix, to, kind):
    destination = tmp_path / f"converted{suffix}"
    source = "timm" if to == "davit" else "davit"
    assert main(["convert", str(saved(build(source).state_dict())), str(destination), "--to", to]) == 0
    if suffix == ".safetensors":
        state_dict = safetensors.torch.load_file(destination)
    else:
        state_dict = torch.load(destination, weights_only=True)
    missing, unexpected = build(kind, seed=9).load_state_dict(state_dict, strict=False)
    assert not unexpected and all(name.startswith("norm") for name in missing) and bool(missing) == (to == "pyramid")
    assert f"{source} -> {to}" in capsys.readouterr().out


def test_there_and_back_is_bit_identical(build, saved, tmp_path, same):
    path = saved(build().state_dict(), "original.pth")
    current = path
    for step, to in enumerate(["timm", "florence2", "davit"]):
        current, previous = tmp_path / f"{step}.safetensors", current
        assert main(["convert", str(previous), str(current), "--to", to]) == 0
    assert main(["convert", str(current), str(tmp_path / "back.pth"), "--to", "davit"]) == 0
    assert same(read_checkpoint(tmp_path / "back.pth").state_dict, build().state_dict())


def test_the_ema_option_chooses_the_weights(build, saved, tmp_path, same):
    trained, averaged = build(seed=1).state_dict(), build(seed=2).state_dict()
    path = saved({"model": trained, "model_ema": averaged})
    for ema, expected in (("auto", averaged), ("always", averaged), ("never", trained)):
        destination = tmp_path / f"{ema}.pt"
        assert main(["convert", str(path), str(destination), "--to", "davit", "--ema", ema]) == 0
        assert same(torch.load(destination, weights_only=True), expected)


def test_nothing_is_overwritten_without_force(build, saved, tmp_path, capsys):
    source = saved(build().state_dict())
    destination = tmp_path / "there.pth"
    destination.write_bytes(b"precious")
    command = ["convert", str(source), str(destination), "--to", "timm"]
    assert main(command) == 2
    assert destination.read_bytes() == b"precious" and "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert list(read_checkpoint(destination).state_dict) == list(build("timm").state_dict())


def test_a_file_can_be_converted_in_place(build, saved):
    path = saved(build().state_dict())
    assert main(["convert", str(path), str(path), "--to", "timm", "--force"]) == 0
    assert list(read_checkpoint(path).state_dict) == list(build("timm").state_dict())


def test_florence2_stays_recognisable_under_any_name(build, saved, tmp_path):
    """Renaming must not launder another function into a DaViT."""
    source = saved(build("florence2").state_dict())
    for name in ("laundered.pth", "laundered.safetensors"):
        assert main(["convert", str(source), str(tmp_path / name), "--to", "davit"]) == 0
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.function == "florence2" and "main_blocks.0.0.0.attn.qkv.weight" in checkpoint.state_dict
        with pytest.raises(ValueError, match="Florence-2"):
            load_checkpoint(build(), tmp_path / name)
        assert main(["convert", str(tmp_path / name), str(tmp_path / f"again_{name}"), "--to", "timm"]) == 0
        with pytest.raises(ValueError, match="Florence-2"):
            load_checkpoint(build(), tmp_path / f"again_{name}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "{bad}", "{new}.pth", "--to", "timm"],
        ["convert", "{good}", "{new}.onnx", "--to", "timm"],
        ["convert", "{good}", "{new}/x.pth", "--to", "timm"],
        ["convert", "{good}", "{new}.pth", "--to", "timm", "--ema", "always"],
        ["inspect", "{other}"],
        ["inspect", "{bad}"],
    ],
)
def test_mistakes_end_with_status_2_and_a_paragraph(build, saved, tmp_path, capsys, arguments):
    import timm

    names = {
        "bad": tmp_path / "bad.pth",
        "good": saved(build().state_dict(), "good.pth"),
        "other": saved(timm.create_model("resnet18").state_dict(), "other.pth"),
        "new": tmp_path / "new",
    }
    names["bad"].write_text("nothing to see")
    before = sorted(tmp_path.iterdir())
    assert main([argument.format(**names) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_tensor_larger_than_memory_is_a_paragraph(build, saved, tmp_path, capsys):
    weights = {**build().state_dict(), "head.weight": torch.zeros(1).expand(10**15)}
    file = saved(weights)
    assert file.stat().st_size < 10_000_000
    for command in (["inspect", str(file)], ["convert", str(file), str(tmp_path / "out.pth"), "--to", "timm"]):
        assert main(command) == 2
        assert str(file) in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
