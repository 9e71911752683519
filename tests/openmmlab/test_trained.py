"""Detectors and segmentors trained from nothing on two CPU cores: the scenes of the demos, CamVid, eight of COCO."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from davit.data import write_scenes
from davit.openmmlab.cli import train_main
from tests.openmmlab.conftest import DET, DET_TOOLS, SEG, SEG_TOOLS, Go

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

RETINANET = """
_base_ = {base!r}
load = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(384, 256), keep_ratio=True)]
boxes = dict(type="LoadAnnotations", with_bbox=True)
pack = dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))
model = dict(
    backbone=dict(embed_dims=(32, 64, 128, 160), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 5), drop_path_rate=0.0),
    neck=dict(in_channels=[64, 128, 160], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2),
)
few = dict(data_root={root!r}, ann_file={file!r}, data_prefix=dict(img="train2017/"))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader, dataset=dict(**few, pipeline=[load[0], boxes, load[1], dict(type="PackDetInputs")]))
val_dataloader = dict(**loader, dataset=dict(**few, pipeline=[*load, boxes, pack]))
val_evaluator = dict(ann_file={file!r}, metric="bbox")
train_cfg = dict(max_epochs=75, val_interval=75)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=75, eta_min=1e-5),
]
"""


def train(tools: Path, config: Path, data: Path, folder: Path, metric: str) -> float:
    """The last value of a metric that a run of train.py wrote."""
    words = [tools / "train.py", config, "--data-root", data, "--work-dir", folder, "--seed", "0"]
    subprocess.run([sys.executable, *map(str, words)], check=True)
    return last(folder, metric)


def last(folder: Path, metric: str) -> float:
    (file,) = folder.glob("*/vis_data/scalars.json")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [line[metric] for line in found if metric in line][-1]


def test_camvid_from_scratch(shared: Path, tmp_path: Path) -> None:
    """0.30 on the 26 validation images; an image of nothing but road would give 0.03."""
    data = shared / "data" / "camvid" / "CamVid"
    assert train(SEG_TOOLS, SEG / "upernet_davit_nano_camvid.py", data, tmp_path, "mIoU") >= 30


def test_digit_scenes_from_scratch(tmp_path: Path) -> None:
    """The detector of `make demo-det` (masks 0.480 when measured) and the segmentor of `make demo-seg`."""
    data = write_scenes(tmp_path / "scenes")
    detector, segmentor = DET / "davit_nano_maskrcnn_digits.py", SEG / "upernet_davit_nano_digits.py"
    assert train(SEG_TOOLS, segmentor, data, tmp_path / "segmentor", "mIoU") >= 55
    assert train(DET_TOOLS, detector, data, tmp_path / "detector", "coco/segm_mAP") >= 0.4


def test_a_retinanet_learns_eight_pictures_by_heart(go: Go, shared: Path, tmp_path: Path) -> None:
    """Those with the fewest objects of at least two, crowds left out."""
    root, file = shared / "data/coco-tiny", tmp_path / "eight.json"
    contents = json.loads((root / "annotations/instances_train2017.json").read_text())
    objects: dict[int, list[dict]] = {image["id"]: [] for image in contents["images"]}
    for annotation in contents["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    fit = [one for one in objects if len(objects[one]) >= 2 and not any(a["iscrowd"] for a in objects[one])]
    chosen = sorted(fit, key=lambda one: (len(objects[one]), one))[:8]
    contents["images"] = [image for image in contents["images"] if image["id"] in chosen]
    contents["annotations"] = [annotation for one in chosen for annotation in objects[one]]
    file.write_text(json.dumps(contents))
    words = {"base": str(DET / "davit_retinanet_1x_coco.py"), "root": f"{root}/", "file": str(file)}
    (tmp_path / "narrow.py").write_text(RETINANET.format(**words))
    go(train_main, tmp_path / "narrow.py", "--work-dir", tmp_path / "out", "--seed", "0")
    assert last(tmp_path / "out", "coco/bbox_mAP_50") >= 0.5
