"""Run detectors and segmentors of MMDetection's and MMSegmentation's own configs on DaViT, without compiled operators.

    python benchmarks/openmmlab_zoo.py [--only NAME ...] [--out benchmarks/results/openmmlab_zoo.md]

Each installed config gets DaViT_nano by `davit.openmmlab.swap.swap_backbone` and is run in a process of its own: the
loss and gradients of two images of 256 pixels with objects, and a prediction. The table says what ran, and the
reason for what did not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from davit.parsing import Parser

CONFIGS = [
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "mmdet::atss/atss_r50_fpn_1x_coco.py",
    "mmdet::gfl/gfl_r50_fpn_1x_coco.py",
    "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "mmdet::detr/detr_r50_8xb2-150e_coco.py",
    "mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
    "mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
    "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
    "mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
    "mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
    "mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py",
    "mmdet::solov2/solov2_r50_fpn_1x_coco.py",
    "mmdet::tood/tood_r50_fpn_1x_coco.py",  # deformable convolution
    "mmdet::vfnet/vfnet_r50_fpn_1x_coco.py",  # deformable convolution
    "mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py",  # modulated deformable convolution (DCNv2)
    "mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",
    "mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py",
    "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py",
    "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
    "mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py",
    "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py",
]
VARIANT, SIDE = "DaViT_nano", 256


def try_config(name: str) -> dict[str, Any]:
    """Take one training step and predict once; return what was found.

    Raises:
        Exception: whatever the config's parts raise.
    """
    import davit.openmmlab  # noqa: I001 (before anything of mmdet)

    import torch
    from mmengine.logging import MessageHub
    from mmengine.registry import MODELS, init_default_scope

    from davit.openmmlab.config import read_config
    from davit.openmmlab.swap import swap_backbone

    torch.manual_seed(0)
    cfg = read_config(name)
    swap_backbone(cfg, VARIANT)
    scope = cfg.get("default_scope", name.partition(":")[0])
    init_default_scope(scope)
    model = MODELS.build(_on_one_process(cfg.model))
    model.init_weights()
    data = _detections("'with_mask': True" in str(cfg.train_dataloader)) if scope == "mmdet" else _segments()
    model.train()
    MessageHub.get_instance("zoo").update_info("epoch", 0)  # which TOOD asks for
    prepared = model.data_preprocessor(data, True)
    parts = model(**prepared, mode="loss")
    loss, _ = model.parse_losses(parts)
    loss.backward()
    without = [n for n, p in model.backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    model.eval()
    with torch.no_grad():
        result = model.test_step(data)[0]
    found = len(result.pred_instances) if scope == "mmdet" else tuple(result.pred_sem_seg.data.shape[-2:])
    return {
        "loss": float(loss.detach()),
        "parameters": len(list(model.backbone.parameters())),
        "without_gradient": without,
        "predicted": found,
        "operators": davit.openmmlab.ops_status(),
    }


def _on_one_process(part: Any) -> Any:
    """Replace batch norm that is shared among processes, which trains on GPUs alone."""
    if isinstance(part, dict):
        return type(part)({n: "BN" if n == "type" and v == "SyncBN" else _on_one_process(v) for n, v in part.items()})
    return [_on_one_process(one) for one in part] if isinstance(part, list) else part


def _detections(with_masks: bool) -> dict[str, Any]:
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    images, samples = [], []
    for number in range(2):
        draw = torch.Generator().manual_seed(number)
        images.append(torch.randint(0, 255, (3, SIDE, SIDE), dtype=torch.uint8, generator=draw))
        corner = torch.randint(10, SIDE // 2, (3, 2), generator=draw)
        boxes = torch.cat([corner, corner + torch.randint(20, SIDE // 2 - 10, (3, 2), generator=draw)], 1)
        masks = np.zeros((3, SIDE, SIDE), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.tensor([1, 5, 7])
        sample = DetDataSample(
            metainfo={
                **{"img_shape": (SIDE, SIDE), "ori_shape": (SIDE, SIDE), "pad_shape": (SIDE, SIDE)},
                **{"batch_input_shape": (SIDE, SIDE), "scale_factor": (1.0, 1.0), "img_id": number},
            }
        )
        sample.gt_instances = InstanceData(bboxes=boxes.float(), labels=labels)
        if with_masks:
            sample.gt_instances.masks = BitmapMasks(masks, SIDE, SIDE)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}


def _segments() -> dict[str, Any]:
    import torch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    images, samples = [], []
    for number in range(2):
        draw = torch.Generator().manual_seed(number)
        images.append(torch.randint(0, 255, (3, SIDE, SIDE), dtype=torch.uint8, generator=draw))
        meta = {"img_shape": (SIDE, SIDE), "ori_shape": (SIDE, SIDE), "pad_shape": (SIDE, SIDE)}
        sample = SegDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0), "flip": False})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, SIDE, SIDE), generator=draw))
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=CONFIGS, metavar="NAME", help="full names of the configs to run (default: all)"
    )
    parser.add_argument("--out", type=Path, help="file to write the table into; it is printed too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(try_config(args.one)))
        return 0
    rows, failed = [], 0
    for name in args.only:
        start = time.perf_counter()
        command = [sys.executable, __file__, "--one", name]
        run = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        seconds = time.perf_counter() - start
        if run.returncode == 0:
            found = json.loads(run.stdout.splitlines()[-1])
            lacking = len(found["without_gradient"])
            good = lacking == 0 and found["loss"] == found["loss"] and abs(found["loss"]) != float("inf")
            gradient = f"all {found['parameters']}" if not lacking else f"lacking in {found['without_gradient'][:3]}"
            rows.append((name, "yes" if good else "NO", f"{found['loss']:.4g}", gradient, str(found["predicted"])))
        else:
            good = False
            reason = (run.stderr.strip().splitlines() or ["no output"])[-1][:300]
            rows.append((name, "NO", "", "", reason))
        failed += not good
        print(*rows[-1], f"{seconds:.0f} s", sep=" | ", flush=True)
    if args.out:
        args.out.write_text(_page(rows))
    return 1 if failed else 0


def _page(rows: list[tuple[str, ...]]) -> str:
    versions = ", ".join(
        f"{one} {metadata.version(one)}" for one in ("torch", "onedl-mmdetection", "onedl-mmsegmentation")
    )
    lines = [
        "# Detectors and segmentors of other people's configs on DaViT",
        "",
        f"`python benchmarks/openmmlab_zoo.py --out benchmarks/results/openmmlab_zoo.md`, {date.today()}, {versions},",
        f"mmcv without compiled operators. {VARIANT} in place of the backbone, one training step on two pictures of",
        f"{SIDE} px and one prediction. *Gradient* is of the backbone's parameters, *found* are objects or",
        "the size of the map of labels, of a model that was not trained.",
        "",
        "| config | runs | loss | gradient | found, or the reason |",
        "|---|---|---:|---|---|",
        *("| " + " | ".join((f"`{row[0]}`", *row[1:])) + " |" for row in rows),
        "",
        f"{sum(row[1] == 'yes' for row in rows)} of {len(rows)} run.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
