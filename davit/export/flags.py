"""Define the flags of `python -m davit.export`, without PyTorch."""

from __future__ import annotations

import argparse

from ..commands import command_name
from ..engine.flags import add_class_map, export_flags
from ..limits import number
from ..parsing import Parser
from ..parsing.results import add_json
from .options import FORMATS, LAYOUTS, OPSETS


def export_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    suffixes = ", ".join(f"{form.suffix} ({name})" for name, form in FORMATS.items())
    parser = Parser(
        prog=command_name("python -m davit.export"),
        description="Export a model to another runtime; the export is compared with PyTorch before it gets its name.",
        parents=[export_flags()],
        epilog="Exit status: 0 done, 2 a mistake in the flags or the checkpoint, 3 the export computes something else "
        "than the model, or int8 costs too much accuracy, and nothing was written.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", nargs="?", help="a file, a run's folder, hf-hub:... or local-dir:...")
    add("out", metavar="OUT", help=f"the file to write; its suffix says the format: {suffixes}")
    add = parser.add_argument_group("export").add_argument
    add("--to", choices=list(FORMATS), help="the format (default: by OUT's suffix)")
    add("--pretrained", action="store_true", help="the published weights of --model, in place of a CHECKPOINT")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--features", action="store_true", help="what the model hands to its last layer, in place of logits"
    )
    what.add_argument(
        "--pyramid", action="store_true", help="the four maps of a backbone, c2 to c5, in place of logits"
    )
    add("--config", metavar="FILE", help="of a detector or segmentor (MMDetection, MMSegmentation): its config")
    add("--raw", action="store_true", help="boxes and scores before suppression; of a segmentor logits, not labels")
    add("--preprocess", action="store_true", help="normalise in the program: it takes uint8, RGB for three bands")
    add("--layout", choices=LAYOUTS, default="NCHW", help="of the program's input (default %(default)s)")
    add("--fp16", action="store_true", help="weights and computation in float16; inputs and outputs stay float32")
    add("--fixed", action="store_true", help="for one size (--img-size) and batch; .pte and .mlpackage always are")
    add(
        "--batch-size",
        **number("batch_size"),
        default=1,
        help="images of a program for one size (default %(default)s)",
    )
    add("--opset", choices=[str(one) for one in OPSETS], default=str(OPSETS[0]), help="of ONNX (default %(default)s)")
    add(
        "--tolerance", **number("tolerance"), help="largest difference from PyTorch, of the largest value of an output"
    )
    add("--no-check", action="store_true", help="do not compare with PyTorch; the file says that it was not checked")
    add_class_map(add)
    add("--license", default="", metavar="ID", help="of the weights, such as mit; default: the model's")
    add("--int8", metavar="DATA", help="quantize to 8 bits; DATA, as train.py takes it, calibrates and decides")
    add(
        "--max-drop",
        **number("max_drop"),
        default=1.0,
        metavar="POINTS",
        help="of top-1 on its validation images that int8 may cost; more: nothing is written (default %(default)g)",
    )
    add("--calibration", **number("calibration"), default=128, metavar="N", help="training images (default 128)")
    add("--seed", **number("seed"), default=42, help="which of them (default %(default)s)")
    add("--overwrite", action="store_true", help="replace a file that is there")
    add_json(add)
    return parser
