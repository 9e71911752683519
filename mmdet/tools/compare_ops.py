#!/usr/bin/env python3
"""Compare the bridge's operators with those of a compiled mmcv: ``python tools/compare_ops.py [--device cuda]``.

``--list`` prints the table of README.md instead: which operators of mmcv are served, by what, and which are refused.
"""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from davit.openmmlab import bridge, ops, ops_status
from davit.parsing import Parser

BY = {  # what computes an operator that is served
    **dict.fromkeys(("nms", "roi_align", "roi_pool", "sigmoid_focal_loss", "deform_conv"), "torchvision"),
    **{"softnms": "PyTorch", "ms_deform_attn": "PyTorch's grid_sample", "modulated_deform_conv": "torchvision"},
}


def operators() -> list[str]:
    """Name the operators that mmcv's Python side asks its extension for, as its sources say."""
    found = find_spec("mmcv")
    names: set[str] = set()
    for file in Path(found.origin).parent.glob("ops/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_ext":
                names |= set(ast.literal_eval(node.args[1]))
    return sorted(names)


def table() -> str:
    """Write the operators that are served, and by what."""
    rows = []
    for stem, library in BY.items():
        names = ", ".join(f"`{name}`" for name in bridge.SERVED if name.startswith(stem))
        rows.append(f"| {names} | {library} |")
    return "\n".join(["| operator of mmcv | computed by |", "|---|---|", *rows])


def pooled(kind: str, functions: tuple, image: Tensor, rois: Tensor, words: dict) -> tuple[Tensor, Tensor]:
    """What RoIAlign gives, and the gradient of its image, by functions of either side."""
    forward, backward = functions
    output = image.new_zeros(len(rois), image.shape[1], words["aligned_height"], words["aligned_width"])
    argmax = [output.clone() if kind == "max" else image.new_zeros(0) for _ in range(2)]
    forward(image, rois, output, *argmax, **words)
    gradient = torch.zeros_like(image)
    backward(torch.ones_like(output), rois, *argmax, gradient, **words)
    return output, gradient


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=here, help="device to compare on: cpu, cuda, or cuda:N")
    parser.add_argument("--list", action="store_true", help="only print which operators the bridge has")
    args = parser.parse_args()
    if args.list:
        print(table())
        print(f"Refused by name: {', '.join(name for name in operators() if name not in bridge.SERVED)}.")
        return 0
    device = args.device
    if ops_status() != "compiled":
        print(f"mmcv's operators are {ops_status()} here: there is nothing to compare with.")
        return 2
    from mmcv import _ext

    torch.manual_seed(0)
    worst = 0.0
    corner = torch.rand(300, 2, device=device) * 200
    boxes = torch.cat([corner, corner + 1 + torch.rand(300, 2, device=device) * 80], 1)
    scores = torch.rand(300, device=device)
    for offset in (0, 1):
        same = torch.equal(
            _ext.nms(boxes, scores, iou_threshold=0.5, offset=offset), ops.nms(boxes, scores, 0.5, offset)
        )
        print(f"nms, offset {offset}: {'equal' if same else 'DIFFERENT'}")
        worst = max(worst, 0.0 if same else 1.0)
    image = torch.randn(2, 8, 40, 50, device=device)
    rois = torch.cat([torch.randint(2, (300, 1), device=device).float(), boxes], 1)
    for kind, code in (("max", ops.MAX_POOL), ("avg", ops.AVG_POOL)):
        for aligned in (False, True):
            for ratio in (0, 2):
                words = {"aligned_height": 7, "aligned_width": 5, "spatial_scale": 0.2, "sampling_ratio": ratio}
                words |= {"pool_mode": code, "aligned": aligned}
                theirs = pooled(kind, (_ext.roi_align_forward, _ext.roi_align_backward), image, rois, words)
                ours = pooled(kind, (ops.roi_align_forward, ops.roi_align_backward), image, rois, words)
                errors = [float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True)]
                print(f"RoIAlign, {kind}, aligned {aligned}, ratio {ratio}: {errors[0]:.1e}, gradient {errors[1]:.1e}")
                worst = max(worst, *errors)
    return 0 if worst < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
