"""--amp on processors with and without instructions for bfloat16: what runs, what is said, what is recorded."""

import logging
import os
import platform
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import davit
from davit.engine import precision
from davit.engine.distributed import World
from davit.engine.precision import Precision, bfloat16_cost, has_bfloat16, precision_from
from davit.engine.run_folder import read_state
from davit.engine.steps import Stepper
from tests.engine.runs import summary

CPU = torch.device("cpu")
SHORT = [
    *("--epochs", "1", "--warmup-epochs", "0", "--cooldown-epochs", "0", "--batch-size", "8", "--workers", "0"),
    *("--output", "runs", "--experiment", "a"),
]
Train = Callable[..., subprocess.CompletedProcess[str]]


def asked(**flags: Any) -> Namespace:
    return Namespace(**{"amp": False, "native_amp": False, "apex_amp": False, "amp_dtype": None, **flags})


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Has the processor be one with such instructions, or without."""

    def pretend(has: bool) -> None:
        monkeypatch.setattr(precision, "has_bfloat16", lambda: has)
        monkeypatch.setattr(precision, "bfloat16_cost", lambda: 0.5 if has else 29.0)

    return pretend


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype | None]:
    """The formats that steps of training ran in."""
    seen: set[torch.dtype | None] = set()
    step = Stepper.step

    def watched(self: Stepper, *words: Any) -> Any:
        seen.add(self.precision.dtype)
        return step(self, *words)

    monkeypatch.setattr(Stepper, "step", watched)
    return seen


def remarks(text: str) -> list[str]:
    """Lines that tell of the cost, or of two formats."""
    names = ("bfloat16", "float32")
    return [line for line in text.splitlines() if "29 times" in line or all(name in line for name in names)]


# -- what the flags come to


@pytest.mark.parametrize("flag", ["amp", "native_amp", "apex_amp"])
@pytest.mark.parametrize("has", [True, False])
def test_without_the_instructions_it_is_float32_unless_named(
    processor: Callable[[bool], None], flag: str, has: bool
) -> None:
    processor(has)
    found = precision_from(asked(**{flag: True}), CPU)
    assert (found.dtype, found.name) == ((torch.bfloat16, "bfloat16") if has else (None, "float32"))
    assert bool(found.remark) != has
    for name in ("bf16", "bfloat16"):
        found = precision_from(asked(**{flag: True}, amp_dtype=name), CPU)
        assert found.dtype == torch.bfloat16 and bool(found.remark) != has


@pytest.mark.parametrize("has", [True, False])
def test_what_the_processor_has_no_part_in(processor: Callable[[bool], None], has: bool) -> None:
    processor(has)
    assert precision_from(asked(), CPU) == Precision("cpu")
    assert precision_from(asked(amp_dtype="fp16"), CPU) == Precision("cpu", torch.float16)
    cuda = torch.device("cuda")
    assert precision_from(asked(amp=True), cuda) == Precision("cuda", torch.float16)
    assert precision_from(asked(amp_dtype="bf16"), cuda) == Precision("cuda", torch.bfloat16)
    with pytest.raises(ValueError, match="fp8"):
        precision_from(asked(amp_dtype="fp8"), CPU)


def test_processes_agree(processor: Callable[[bool], None]) -> None:
    """On several machines: one without the instructions is enough."""
    processor(True)
    found = precision_from(asked(amp=True), CPU, agree=lambda _: False)
    assert found.dtype is None and found.remark
    world = World(0, 0, 1, CPU)
    assert world.everywhere(True) and not world.everywhere(False)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_flags_of_a_precision_give_it_again_anywhere(
    processor: Callable[[bool], None], dtype: torch.dtype | None
) -> None:
    processor(False)
    again = precision_from(Namespace(**Precision("cpu", dtype).flags), CPU)
    assert again.dtype == dtype


def test_what_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def said(found: Precision, before: str | None = None) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found.say(before)
        return caplog.messages

    assert said(Precision("cpu")) == said(Precision("cpu", torch.bfloat16), "bfloat16") == []
    assert said(Precision("cpu", None, "why")) == said(Precision("cpu", None, "why"), "float32") == ["why"]
    for found, before in ((Precision("cpu", None, "why"), "bfloat16"), (Precision("cpu", torch.bfloat16), "float32")):
        (line,) = said(found, before)
        assert found.name in line and before in line and found.remark in line


# -- this processor


def test_this_processor_is_told_right() -> None:
    """By the time of a product, on any processor: halved with instructions, else tripled or worse."""
    assert has_bfloat16() == (bfloat16_cost() < 1.5)


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no instructions for bfloat16")
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="names of x86 processors")
def test_a_limit_of_onednn_counts() -> None:
    """One under which oneDNN still calls bfloat16 supported, and converts it."""
    program = "from davit.engine.precision import *; print(has_bfloat16(), bfloat16_cost() < 1.5)"
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
@pytest.mark.parametrize("cost", [0.5, 20.0])
def test_a_torch_that_does_not_tell_is_timed(monkeypatch: pytest.MonkeyPatch, machine: str, cost: float) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: cost)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: (_ for _ in ()).throw(AttributeError()))
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


# -- train.py


@pytest.mark.parametrize(
    ("has", "flags", "expected", "lines"),
    [
        (True, ["--amp"], torch.bfloat16, 0),
        (False, ["--amp"], None, 1),
        (False, ["--apex-amp"], None, 1),
        (False, ["--amp-dtype", "bfloat16"], torch.bfloat16, 1),
        (False, [], None, 0),
    ],
)
def test_training(
    train: Train,
    tmp_path: Path,
    processor: Callable[[bool], None],
    formats: set[torch.dtype | None],
    has: bool,
    flags: list[str],
    expected: torch.dtype | None,
    lines: int,
) -> None:
    processor(has)
    result = train(*SHORT, *flags)
    assert result.returncode == 0, result.stderr
    assert formats == {expected} and len(remarks(result.stderr)) == lines
    name = str(expected or torch.float32).removeprefix("torch.")
    state = read_state(tmp_path / "runs/a/last.pth.tar")
    recorded = yaml.safe_load((tmp_path / "runs/a/args.yaml").read_text())
    assert state["precision"] == name
    for args in (state["args"], recorded):
        assert (args["amp"], args["amp_dtype"]) == ((True, name) if expected else (False, None))
        assert not args["native_amp"] and not args["apex_amp"]


@pytest.mark.parametrize("flag", ["--dry-run", "--throughput"])
def test_trials_say_it_once(train: Train, processor: Callable[[bool], None], flag: str) -> None:
    processor(False)
    result = train(*SHORT, "--amp", flag)
    assert result.returncode == 0 and len(remarks(result.stderr)) == 1, result.stderr


@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_goes_on_in_another_precision_says_so_in_one_line(
    train: Train, tmp_path: Path, processor: Callable[[bool], None], formats: set[torch.dtype | None], first: bool
) -> None:
    processor(first)
    assert train(*SHORT, "--amp").returncode == 0
    processor(not first)
    formats.clear()
    result = train(*SHORT, "--amp", "--epochs", "2", "--auto-resume")
    assert result.returncode == 0, result.stderr
    assert formats == {None if first else torch.bfloat16}
    (line,) = remarks(result.stderr)
    assert "bfloat16" in line and "float32" in line
    assert "--amp was" not in result.stderr
    rows = summary(tmp_path / "runs/a")
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_a_run_that_keeps_its_precision_says_nothing_of_it(train: Train, processor: Callable[[bool], None]) -> None:
    """Also where the flag has another name."""
    processor(True)
    assert train(*SHORT, "--amp").returncode == 0
    result = train(*SHORT, "--native-amp", "--amp-dtype", "bf16", "--epochs", "2", "--auto-resume")
    assert result.returncode == 0 and remarks(result.stderr) == [], result.stderr
    assert "amp was" not in result.stderr


def test_half_precision_trains_on_the_cpu(train: Train, formats: set[torch.dtype | None]) -> None:
    result = train(*SHORT, "--amp", "--amp-dtype", "fp16")
    assert result.returncode == 0, result.stderr
    assert formats == {torch.float16}


# -- predict.py


@pytest.mark.parametrize(("has", "flag"), [(True, "native_amp"), (False, "amp")])
def test_prediction(
    processor: Callable[[bool], None], tmp_path: Path, caplog: pytest.LogCaptureFixture, has: bool, flag: str
) -> None:
    processor(has)
    small = {"embed_dims": (8, 16), "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    model = davit.create_model("DaViT_nano", num_classes=3, **small)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING):
        options: dict[str, Any] = {flag: True, "model_kwargs": small, "img_size": 32}
        predictor = davit.load(tmp_path / "weights.pth", "DaViT_nano", device="cpu", **options)
    assert len(remarks(caplog.text)) == (not has)
    formats = []
    predictor.model.head.register_forward_hook(lambda _module, _inputs, output: formats.append(output.dtype))
    predictor.predict(torch.zeros(32, 32, 3, dtype=torch.uint8).numpy())
    assert formats == [torch.bfloat16 if has else torch.float32]
