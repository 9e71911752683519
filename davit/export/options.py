"""Say how a model is exported; without PyTorch, so that help and mistakes are answered at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Format:
    """Describe one format of exported models.

    Attributes:
        suffix: of its files; that of OUT chooses the format.
        module: below `davit.export`, with `build(program, options) -> Save`.
        extra: of the package, which brings what writes and runs it; "" for PyTorch's own.
        is_dynamic: whether a program takes images of any size and number; else it is for one.
        halves_itself: whether what writes it makes float16 of float32, rather than being given float16.
        runs_here: whether `davit.runtimes` runs it, so that an export is compared with PyTorch.
        tolerance: the least that its runtime needs, whose rounding is coarser than that of others.
    """

    suffix: str
    module: str
    extra: str
    is_dynamic: bool
    runs_here: bool
    halves_itself: bool = False
    tolerance: float = 0.0


FORMATS = {
    "onnx": Format(".onnx", "onnx", "export", True, True),
    "pt2": Format(".pt2", "pt2", "", True, True),
    "openvino": Format(".xml", "openvino", "openvino", True, True, halves_itself=True),
    "executorch": Format(".pte", "executorch", "executorch", False, True, tolerance=1e-4),  # XNNPACK: 2.5e-5 measured
    "coreml": Format(".mlpackage", "coreml", "coreml", False, False, halves_itself=True),
    "tensorrt": Format(".engine", "tensorrt", "export", True, False),
}
PREPROCESS = ("none", "uint8")
LAYOUTS = ("NCHW", "NHWC")
OPSETS = (20, 21, 22, 23)  # of ONNX; 20 is the first with an exact GELU
MOST_SIDE = 16384  # pixels that an export of free sizes states


@dataclass(frozen=True)
class Int8Options:
    """Say how an export is quantized.

    Attributes:
        data: a data set as train.py takes it: its training images calibrate, its validation images decide.
        max_drop: the largest loss in percentage points: of top-1 accuracy; of a detector of AP50, of boxes and masks.
        calibration: how many training images the ranges of activations are measured on.
        seed: which ones.
    """

    data: str
    max_drop: float = 1.0
    calibration: int = 128
    seed: int = 42


@dataclass(frozen=True)
class ExportOptions:
    """Say how a model is exported.

    Attributes:
        to: one of `FORMATS`; None takes that of the file's suffix.
        task: "classification", "features" or "pyramid" of a classifier's checkpoint.
        model: the architecture; None leaves it to the checkpoint.
        model_options: how it is built and how images are prepared: the arguments of
            `davit.engine.load_model.ModelOptions`.
        config: of a detector's or segmentor's checkpoint (MMDetection, MMSegmentation); a work folder has its own.
        raw: of a detector, boxes and scores before suppression; of a segmentor, logits in place of labels.
        preprocess: "uint8" puts the normalisation into the program, which then takes bytes.
        layout: of the program's input, NCHW or NHWC.
        fp16: weights and computation in float16; inputs and outputs stay float32.
        fixed: make the program for one size and batch; some formats do so in any case.
        batch: of such a program.
        opset: of ONNX's operators.
        check: compare with PyTorch in the target's runtime; without it the file says that it was not checked.
        tolerance: largest difference from PyTorch in float64, relative to the largest value of an output; None for
            that of the precision, or twice PyTorch's own float32 difference where that is more.
        class_map: a file or data folder with the class names, in place of the checkpoint's.
        licence: of the weights, in place of the model's.
        int8: quantize the classifier or detector after it was checked; None leaves it in float.
        overwrite: replace a file that is there.
    """

    to: str | None = None
    task: str = "classification"
    model: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None
    raw: bool = False
    preprocess: str = "none"
    layout: str = "NCHW"
    fp16: bool = False
    fixed: bool = False
    batch: int = 1
    opset: int = 20
    check: bool = True
    tolerance: float | None = None
    class_map: str | None = None
    licence: str = ""
    int8: Int8Options | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.int8 is not None and (self.fp16 or self.task != "classification"):
            what = "`fp16=True`" if self.fp16 else f"{self.task}: its cost is measured in accuracy"
            raise ValueError(f"int8 is for float32 classifiers and detectors, not for {what}.")

    def format_for(self, out: Path) -> str:
        """Choose the format by `to` and the file's suffix.

        Raises:
            ValueError: they contradict each other, or neither says it.
        """
        by_suffix = {one.suffix: name for name, one in FORMATS.items()}
        listed = ", ".join(f"{suffix} ({name})" for suffix, name in by_suffix.items())
        if self.to is None:
            if out.suffix not in by_suffix:
                raise ValueError(f"{out} has none of the suffixes that say the format: {listed}; or give `to=FORMAT`.")
            return by_suffix[out.suffix]
        if self.to not in FORMATS:
            raise ValueError(f"`to={self.to}` is unknown; choose from {', '.join(FORMATS)}.")
        if out.suffix != FORMATS[self.to].suffix:
            raise ValueError(
                f"{out} must end in {FORMATS[self.to].suffix} for `to={self.to}`; the suffixes are {listed}."
            )
        return self.to
