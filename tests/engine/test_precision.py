"""--amp on processors with and without instructions for bfloat16: what runs, what is said, what is recorded."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml

import davit
from davit.engine import precision
from davit.engine.distributed import World
from davit.engine.precision import Precision, bfloat16_cost, has_bfloat16, precision_from
from davit.engine.run_folder import read_state
from tests.engine.runs import SHORT, SMALL, Train, small_model, summary

CPU = torch.device("cpu")
Pretend = Callable[[bool], None]


def asked(**flags: Any) -> Namespace:
    return Namespace(**{"amp": False, "native_amp": False, "apex_amp": False, "amp_dtype": None, **flags})


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Has the processor be one with such instructions, or without."""

    def pretend(has: bool) -> None:
        monkeypatch.setattr(precision, "has_bfloat16", lambda: has)
        monkeypatch.setattr(precision, "bfloat16_cost", lambda: 0.5 if has else 29.0)

    return pretend


def remarks(text: str) -> list[str]:
    """Lines that tell of the cost, or of two dtypes."""
    names = ("bfloat16", "float32")
    return [line for line in text.splitlines() if "29 times" in line or all(name in line for name in names)]


@pytest.mark.parametrize("has", [True, False])
def test_without_the_instructions_it_is_float32_unless_named(processor: Pretend, has: bool) -> None:
    processor(has)
    for flag in ("amp", "native_amp", "apex_amp"):
        found = precision_from(asked(**{flag: True}), CPU)
        assert (found.dtype, found.name) == ((torch.bfloat16, "bfloat16") if has else (None, "float32"))
        assert bool(found.remark) != has
        for name in ("bf16", "bfloat16"):
            found = precision_from(asked(**{flag: True}, amp_dtype=name), CPU)
            assert found.dtype == torch.bfloat16 and bool(found.remark) != has
    # where the processor has no part in it
    assert precision_from(asked(), CPU) == Precision("cpu")
    assert precision_from(asked(amp_dtype="fp16"), CPU) == Precision("cpu", torch.float16)
    cuda = torch.device("cuda")
    assert precision_from(asked(amp=True), cuda) == Precision("cuda", torch.float16)
    assert precision_from(asked(amp_dtype="bf16"), cuda) == Precision("cuda", torch.bfloat16)
    with pytest.raises(ValueError, match="fp8"):
        precision_from(asked(amp_dtype="fp8"), CPU)
    for dtype in (None, torch.bfloat16, torch.float16):  # the record of a run gives its precision on any machine
        assert precision_from(Namespace(**Precision("cpu", dtype).flags), CPU).dtype == dtype


def test_processes_agree(processor: Pretend) -> None:
    """On several machines: one without the instructions is enough."""
    processor(True)
    found = precision_from(asked(amp=True), CPU, agree=lambda _: False)
    assert found.dtype is None and found.remark
    world = World(0, 0, 1, CPU)
    assert world.everywhere(True) and not world.everywhere(False)


def test_this_processor_is_told_right() -> None:
    """By the time of a product, on any processor: halved with instructions, else tripled or worse."""
    assert has_bfloat16() == (bfloat16_cost() < 1.5)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_a_torch_that_does_not_tell_is_timed(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", Mock(side_effect=AttributeError))
    for cost in (0.5, 20.0):
        monkeypatch.setattr(precision, "bfloat16_cost", lambda cost=cost: cost)
        assert has_bfloat16.__wrapped__() == (cost < 1)


@pytest.mark.parametrize(
    ("onednn", "bf16", "amx", "limit", "expected"),
    [
        (True, False, False, "", False),  # AVX-512 without it: oneDNN converts
        (True, True, False, "", True),
        (True, False, True, "", True),
        (True, True, True, "avx512_core_vnni", False),
        (True, True, True, "AVX512_CORE_BF16", True),
        (False, True, True, "AVX2", False),
    ],
)
def test_x86_needs_the_instructions_and_the_leave_to_use_them(
    monkeypatch: pytest.MonkeyPatch, onednn: bool, bf16: bool, amx: bool, limit: str, expected: bool
) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert has_bfloat16.__wrapped__() == expected


@pytest.mark.parametrize(("flag", "units"), [("--dry-run", [" MB ", " epochs"]), ("--throughput", ["images/s"])])
def test_trials_say_it_once_and_write_nothing(
    train: Train, tmp_path: Path, processor: Pretend, flag: str, units: list[str]
) -> None:
    processor(False)
    result = train(*SHORT, "--amp", flag)
    assert len(remarks(result.stderr)) == 1, result.stderr
    assert all(unit in result.stderr for unit in units)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_goes_on_in_another_precision_says_so_in_one_line(
    train: Train, tmp_path: Path, processor: Pretend
) -> None:
    """And nothing where the same one has another name; states and args.yaml tell what was used."""
    lives = [
        (True, "--amp", "bfloat16", 0),
        (True, "--native-amp --amp-dtype bf16", "bfloat16", 0),
        (False, "--apex-amp", "float32", 1),
        (False, "--amp-dtype bfloat16", "bfloat16", 1),  # its cost, and the change of precision
        (False, "--amp --amp-dtype fp16", "float16", 0),
    ]
    for epochs, (has, flags, name, lines) in enumerate(lives, start=1):
        processor(has)
        result = train(*SHORT, *flags.split(), "--epochs", str(epochs), "--auto-resume")
        assert len(remarks(result.stderr)) == lines
        state = read_state(tmp_path / "runs/a/last.pth.tar")
        assert state["precision"] == name
        for args in (state["args"], yaml.safe_load((tmp_path / "runs/a/args.yaml").read_text())):
            assert (args["amp"], args["amp_dtype"]) == ((False, None) if name == "float32" else (True, name))
            assert not args["native_amp"] and not args["apex_amp"]
        assert "amp was" not in result.stderr
    assert [row["epoch"] for row in summary(tmp_path / "runs/a")] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(("has", "flag"), [(True, "native_amp"), (False, "amp")])
def test_prediction(
    processor: Pretend, tmp_path: Path, caplog: pytest.LogCaptureFixture, has: bool, flag: str
) -> None:
    processor(has)
    args = {"model": "DaViT_nano", "model_kwargs": SMALL, "img_size": 32}
    torch.save({"state_dict": small_model().state_dict(), "args": args}, tmp_path / "weights.pth")
    predictor = davit.load(tmp_path / "weights.pth", device="cpu", **{flag: True})
    assert len(remarks(caplog.text)) == (not has)
    outputs = []
    predictor.model.head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.dtype))
    predictor.predict(torch.zeros(32, 32, 3, dtype=torch.uint8).numpy())
    assert outputs == [torch.bfloat16 if has else torch.float32]
