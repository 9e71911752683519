"""Measure images per second and peak memory of detectors and segmentors that differ in the backbone alone.

    python benchmarks/openmmlab_throughput.py                                    # Mask R-CNN, RetinaNet, UPerNet
    python benchmarks/openmmlab_throughput.py --device cuda --dtype amp --batch 8
    python benchmarks/openmmlab_throughput.py --methods upernet --mode training --size 512
    python benchmarks/openmmlab_throughput.py --methods davit_dino_1x_coco davit_base_dino_1x_coco --backbones own \
        --mode training --device cuda --dtype amp    # memory of each size of a detector

Heads, losses and post-processing are those of mmdet/configs and mmseg/configs; the backbone is ours, ours by its plain
modules, or timm's of the same widths; "own" is the config's, of any size. Every case runs in a process of its own, two
steps a turn, the second timed, as in throughput.py; weights and images are random, with eight objects in each.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Case, as_data, compare, comparison_table, size_argument, step_of, takes_bfloat16, write_report
from torch import Tensor, nn

from davit.parsing import Parser, RawHelp

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "maskrcnn": ROOT / "mmdet" / "configs" / "davit_maskrcnn_1x_coco.py",
    "retinanet": ROOT / "mmdet" / "configs" / "davit_retinanet_1x_coco.py",
    "upernet": ROOT / "mmseg" / "configs" / "upernet_davit_512x512_160k_ade20k.py",
}
BACKBONES = ("davit_tiny", "DaViT_tiny", "DaViT_tiny:plain", "swin_tiny_patch4_window7_224", "convnext_tiny")
OWN = "own"
OBJECTS = 8


class TimmLevels(nn.Module):
    """The four maps of one of timm's backbones, as NCHW."""

    def __init__(self, name: str, size: tuple[int, int]):
        super().__init__()
        import timm

        sized = {"img_size": size} if name.startswith("swin") else {}
        self.levels = timm.create_model(name, features_only=True, **sized)
        self.channels = self.levels.feature_info.channels()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = zip(self.levels(image), self.channels, strict=True)
        return tuple(m if m.shape[1] == channels else m.permute(0, 3, 1, 2) for m, channels in maps)


def config_of(method: str) -> Any:
    """Read the config that a method names.

    Raises:
        ValueError: there is none of this name.
    """
    import davit.openmmlab  # noqa: F401  before mmdet and mmseg
    from davit.openmmlab.config import read_config

    return read_config(CONFIGS.get(method, method))


def is_detector(method: str) -> bool:
    """Tell a detector from a segmentor, whose data are others."""
    found: bool = config_of(method).default_scope == "mmdet"
    return found


def build(case: Case) -> Any:
    """Build the detector or segmentor of a case, whose task names its config."""
    from mmengine.registry import MODELS, init_default_scope

    cfg = config_of(case.task)
    init_default_scope(cfg.default_scope)
    name, _, variant = case.model.partition(":")
    if name == "DaViT_tiny" and variant == "plain":
        cfg.model.backbone.accelerate = False
    cfg.model.data_preprocessor = None
    model = MODELS.build(cfg.model)
    if name not in ("DaViT_tiny", OWN):
        model.backbone = TimmLevels(name, case.size)
    return model.train(case.mode == "training").to(case.device)


def samples(case: Case, detection: bool) -> list[Any]:
    """Make labels as a data set does: for each picture its size, and objects of all sizes or a mask of 150 classes."""
    height, width = case.size
    draw = torch.Generator().manual_seed(0)
    about = {
        "img_shape": case.size, "ori_shape": case.size, "pad_shape": case.size, "batch_input_shape": case.size,
        "scale_factor": (1.0, 1.0), "img_id": 0, "padding_size": [0, 0, 0, 0],
    }  # fmt: skip
    if not detection:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        labels = torch.randint(0, 150, (1, height, width), generator=draw)
        labelled = [SegDataSample(metainfo=about, gt_sem_seg=PixelData(data=labels)) for _ in range(case.batch)]
        return [sample.to(case.device) for sample in labelled]
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    corners = torch.rand(OBJECTS, 4, generator=draw).view(OBJECTS, 2, 2).sort(1).values
    boxes = (corners * torch.tensor([width, height])).view(OBJECTS, 4) + torch.tensor([0.0, 0.0, 8.0, 8.0])
    masks = np.zeros((OBJECTS, height, width), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    found = InstanceData(bboxes=boxes, labels=torch.arange(OBJECTS), masks=BitmapMasks(masks, height, width))
    return [DetDataSample(metainfo=about, gt_instances=found.clone()).to(case.device) for _ in range(case.batch)]


def prepared(case: Case) -> Callable[[], None]:
    """Build the model of a case; return a function that runs one step and waits for its end."""
    torch.manual_seed(0)
    model = build(case)
    image = torch.randn(case.batch, 3, *case.size, device=case.device)
    data = samples(case, detection=is_detector(case.task))
    return step_of(
        case,
        model,
        infer=lambda: model(image, data, mode="predict"),
        loss=lambda: model.parse_losses(model(image, data, mode="loss"))[0],
    )


def log(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    methods = f"{', '.join(CONFIGS)}, or configs: names of ours, mmdet::NAME, files"
    parser.add_argument("--methods", nargs="+", default=list(CONFIGS), help=methods)
    parser.add_argument(
        "--backbones", nargs="+", default=list(BACKBONES), help="backbones to measure; the first is the reference"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on")
    parser.add_argument("--mode", choices=("inference", "training"), default="inference", help="what to measure")
    parser.add_argument(
        "--dtype", choices=("float32", "amp"), default="float32", help="dtype; amp is autocast to bfloat16"
    )
    parser.add_argument(
        "--batch", type=int, help="images in a batch (default: 1; in training 2, since UPerNet's batch norm needs two)"
    )
    parser.add_argument(
        "--size",
        type=size_argument,
        metavar="PIXELS",
        help="height and width of the images (default: 800x1344; segmentors 512x512)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case, taken in turns")
    parser.add_argument(
        "--name", default="openmmlab_throughput", help="the results are written into NAME.json and NAME.md"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "benchmarks" / "results", help="folder to write the results into"
    )
    options = parser.parse_args(arguments)
    batch = options.batch if options.batch is not None else 2 if options.mode == "training" else 1
    if batch < 1 or options.rounds < 1:
        parser.error("--batch and --rounds must be 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has none that PyTorch can use")
    if options.dtype == "amp":
        takes_bfloat16(options.device, True, "--dtype amp")
    try:
        sizes = {method: (800, 1344) if is_detector(method) else (512, 512) for method in options.methods}
    except ValueError as error:
        parser.error(f"--methods: {error}")
    sections, data = [], []
    for method in options.methods:
        size = options.size or sizes[method]
        cases = [
            Case(name, options.dtype, "eager", options.mode, method, options.device, batch, size)
            for name in options.backbones
        ]
        results = compare(cases, cases[0], options.rounds, log, prepared)
        about = f"batch {batch}, {size[0]} x {size[1]}, {options.rounds} rounds"
        sections.append((f"{method}, {options.mode} ({about})", comparison_table(results)))
        data += as_data(results)
    title = "Detectors and segmentors, backbone against backbone"
    sys.stdout.write(write_report(options.name, title, sections, data, options.folder).read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
