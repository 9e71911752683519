"""An export is measured from float64, beside PyTorch's own rounding in float32, and is refused beyond it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from davit.export import DifferentError, ExportOptions, write_program
from davit.export.check import ROUNDING, Distance, Reference
from davit.export.classifiers import classifier_program
from davit.export.program import Program
from davit.runtimes import open_exported


class Rounding(nn.Module):
    """Loses digits of float32: by float64 it is what it wraps."""

    def __init__(self, module: nn.Module, offset: float) -> None:
        super().__init__()
        self.module, self.offset = module, offset

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        (logits,) = self.module(images)
        return ((logits + self.offset) - self.offset,)


class Scaled(Rounding):
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.module(images)[0] * self.offset,)


class Narrow(Rounding):
    """Has a part that is written for float32 alone."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.module(images.float())[0],)


@pytest.fixture
def program(small: Path) -> Program:
    return classifier_program(small, ExportOptions())


def test_what_is_allowed() -> None:
    assert Distance(0.0, 1e-7).allowed(1e-5) == 1e-5
    assert Distance(0.0, 3e-5).allowed(1e-5) == pytest.approx(ROUNDING * 3e-5)
    assert Distance(0.0, float("inf")).allowed(1e-5) == 1e-5
    assert Distance(0.0, float("nan")).allowed(1e-5) == 1e-5
    assert Distance(0.0, None).allowed(1e-5) == 1e-5


def test_both_distances_are_from_float64(program: Program) -> None:
    images = torch.randn(2, 3, 40, 33)
    reference = Reference(Rounding(program.module, 1e4))
    with torch.inference_mode():
        exact = tuple(one.float() for one in program.module(images))
        rounded = Rounding(program.module, 1e4)(images)
    found = reference.distance(exact, images)
    assert found.runtime < 1e-6 and found.pytorch is not None and found.pytorch > 1e-5
    assert reference.distance(rounded, images).runtime == found.pytorch
    assert reference.distance((2 * exact[0],), images).runtime == pytest.approx(1, abs=1e-3)
    assert reference.distance((exact[0] * torch.nan,), images).runtime == float("inf")


def test_a_model_that_amplifies_rounding_is_exported_as_it_is(program: Program, tmp_path: Path) -> None:
    large = replace(program, module=Rounding(program.module, 1e4).eval())
    done = write_program(large, tmp_path / "a.onnx", ExportOptions())
    said = open_exported(done.path).metadata
    assert max(one["difference"] for one in said.differences) > (said.tolerance or 0)
    for one in said.differences:
        assert one["difference"] <= max(1e-5, ROUNDING * one["pytorch"]) * 1.01
    with pytest.raises(DifferentError):  # who asks for a tolerance gets it
        write_program(large, tmp_path / "b.onnx", ExportOptions(tolerance=1e-5))
    assert [one.name for one in tmp_path.iterdir()] == ["a.onnx"]


def test_what_is_wrong_by_more_than_rounding_is_refused(program: Program, tmp_path: Path) -> None:
    large = Rounding(program.module, 1e4).eval()
    wrong = replace(program, module=Scaled(large, 1.02).eval(), reference=large)
    with pytest.raises(DifferentError):
        write_program(wrong, tmp_path / "a.onnx", ExportOptions())
    assert not list(tmp_path.iterdir())


def test_a_model_of_float32_alone_is_compared_in_float32(
    program: Program, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = write_program(
        replace(program, module=Narrow(program.module, 0).eval()), tmp_path / "a.onnx", ExportOptions()
    )
    assert all(one["pytorch"] is None and one["difference"] <= 1e-5 for one in done.metadata.differences)
    assert sum("float64" in record.message for record in caplog.records if record.levelname == "WARNING") == 1


def test_bytes_are_normalised_in_float64_too(small: Path, tmp_path: Path) -> None:
    from davit.export import export

    done = export(small, tmp_path / "a.onnx", ExportOptions(preprocess="uint8", layout="NHWC"))
    assert all(0 < one["pytorch"] < 1e-5 for one in done.metadata.differences)
