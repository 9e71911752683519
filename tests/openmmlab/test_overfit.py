"""A detector that cannot learn eight pictures by heart cannot learn: from scratch, on the CPU."""

import json
from pathlib import Path

import pytest

from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from tests.openmmlab.conftest import DET, Go, scores_of

NARROW = """
_base_ = {base!r}
size = (384, 256)
load = dict(type="LoadImageFromFile")
resize = dict(type="Resize", scale=size, keep_ratio=True)
annotations = dict(type="LoadAnnotations", with_bbox=True, with_mask={masks})
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
model = dict(
    backbone=dict(embed_dims=(32, 64, 128, 160), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 5), drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 128, 160][{first}:], out_channels=64),
    **{heads!r},
)
few = dict(data_root={root!r}, ann_file={annotations!r}, data_prefix=dict(img="train2017/"))
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(**few, pipeline=[load, annotations, resize, dict(type="PackDetInputs")]),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(**few, pipeline=[load, resize, annotations, dict(type="PackDetInputs", meta_keys=keys)]),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={annotations!r}, metric="bbox")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end={epochs}, eta_min=1e-5),
]
default_hooks = dict(checkpoint=dict(interval={epochs}))
"""


# heads of a quarter of the width: the same code, in minutes
HEADS = {
    "maskrcnn": {
        "rpn_head": {"in_channels": 64, "feat_channels": 64},
        "roi_head": {
            "bbox_roi_extractor": {"out_channels": 64},
            "bbox_head": {"in_channels": 64, "fc_out_channels": 256},
            "mask_roi_extractor": {"out_channels": 64},
            "mask_head": {"num_convs": 2, "in_channels": 64, "conv_out_channels": 64},
        },
        "train_cfg": {
            "rpn": {"sampler": {"num": 64}},
            "rpn_proposal": {"nms_pre": 300, "max_per_img": 100},
            "rcnn": {"sampler": {"num": 64}},
        },
    },
    "retinanet": {"bbox_head": {"in_channels": 64, "feat_channels": 64, "stacked_convs": 2}},
}


def eight_pictures(shared: Path, file: Path) -> None:
    """The annotations of the eight pictures with the fewest objects of at least two, crowds left out."""
    contents = json.loads((shared / "data/coco-tiny/annotations/instances_train2017.json").read_text())
    objects: dict[int, list[dict]] = {}
    for annotation in contents["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    fit = [one for one in objects if len(objects[one]) >= 2 and not any(a["iscrowd"] for a in objects[one])]
    chosen = sorted(fit, key=lambda one: (len(objects[one]), one))[:8]
    contents["images"] = [image for image in contents["images"] if image["id"] in chosen]
    contents["annotations"] = [annotation for one in chosen for annotation in objects[one]]
    file.write_text(json.dumps(contents))


@pytest.mark.long
@pytest.mark.parametrize(("name", "first"), [("maskrcnn", 0), ("retinanet", 1)])
def test_eight_pictures_are_learnt_by_heart(go: Go, shared: Path, tmp_path: Path, name: str, first: int) -> None:
    annotations = tmp_path / "eight.json"
    eight_pictures(shared, annotations)
    config = tmp_path / "narrow.py"
    config.write_text(
        NARROW.format(
            base=str(DET / f"davit_{name}_1x_coco.py"),
            masks=name == "maskrcnn",
            heads=HEADS[name],
            first=first,
            root=str(shared / "data/coco-tiny/"),
            annotations=str(annotations),
            epochs=75,
        )
    )
    go(train, config, "--work-dir", tmp_path / "out", "--seed", "0", "--no-validate")
    go(evaluate, config, tmp_path / "out/epoch_75.pth", "--work-dir", tmp_path / "test", "--eval", "bbox")
    assert scores_of(tmp_path / "test")["coco/bbox_mAP_50"] >= 0.5
