"""Define the flags of `python -m davit.export`, without PyTorch."""

from __future__ import annotations

import argparse

from ..commands import command_name
from ..engine.flags import CHECKPOINT, add_class_map, export_flags
from ..limits import number
from ..parsing import Parser
from ..parsing.openmmlab import add_detector_config
from ..parsing.results import add_json
from .options import FORMATS, LAYOUTS, OPSETS


def export_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    suffixes = ", ".join(f"{form.suffix} ({name})" for name, form in FORMATS.items())
    parser = Parser(
        prog=command_name("python -m davit.export"),
        description="Export a model for another runtime. The export is compared with PyTorch first; if they differ, "
        "no file is written.",
        parents=[export_flags()],
        epilog="Exit status: 0 done, 2 a mistake in the flags or the checkpoint, 3 the export computes something else "
        "than the model, or int8 costs too much accuracy, and nothing was written.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", nargs="?", help=f"{CHECKPOINT} (or --model NAME --pretrained)")
    add("out", metavar="OUT", help=f"file to write; its suffix chooses the format: {suffixes}")
    add = parser.add_argument_group("export").add_argument
    add("--to", choices=list(FORMATS), help="format of the file (default: by OUT's suffix)")
    add("--pretrained", action="store_true", help="use the published weights of --model, without a CHECKPOINT")
    what = parser.add_argument_group("export").add_mutually_exclusive_group()
    what.add_argument(
        "--features", action="store_true", help="the output is the features before the last layer, not the logits"
    )
    what.add_argument(
        "--pyramid", action="store_true", help="the output is the maps of the four stages, c2 to c5, not the logits"
    )
    add_detector_config(add)
    add(
        "--raw",
        action="store_true",
        help="the output of a detector is boxes and scores before NMS, that of a segmentor logits instead of labels",
    )
    add(
        "--preprocess",
        action="store_true",
        help="include the normalisation: the input is uint8 from 0 to 255, RGB if there are three bands",
    )
    add("--layout", choices=LAYOUTS, default="NCHW", help="order of the input's axes")
    add("--fp16", action="store_true", help="compute in float16; inputs and outputs stay float32")
    add(
        "--fixed",
        action="store_true",
        help="export for one image size (--img-size) and one batch size; .pte and .mlpackage always do",
    )
    add(
        "--batch-size",
        **number("batch_size"),
        default=1,
        help="images in a batch of such an export",
    )
    add("--opset", choices=[str(one) for one in OPSETS], default=str(OPSETS[0]), help="version of ONNX's operators")
    add(
        "--tolerance",
        **number("tolerance"),
        help="largest allowed difference from PyTorch in float64, as a share of an output's largest value (default: "
        "1e-5; .pte 1e-4, detectors and segmentors 1e-3, --fp16 1e-2; or twice PyTorch's error in float32, if more)",
    )
    add("--no-check", action="store_true", help="do not compare with PyTorch; the file then notes that")
    add_class_map(add)
    add(
        "--license",
        default="",
        metavar="ID",
        help="licence of the weights: mit, apache-2.0, cc-by-4.0 ... (default: the model's)",
    )
    add(
        "--int8",
        metavar="DATA",
        help="quantize to 8 bits; DATA is a data set as for train.py: its training images calibrate, its validation "
        "images measure the cost",
    )
    add(
        "--max-drop",
        **number("max_drop"),
        default=1.0,
        help="percentage points of top-1 (detectors: AP50) that int8 may cost; if it costs more, nothing is written",
    )
    add("--calibration", **number("calibration"), default=128, help="training images to calibrate with")
    add("--seed", **number("seed"), default=42, help="seed of the choice of these images")
    add("--overwrite", action="store_true", help="replace an existing file")
    add_json(add)
    return parser
