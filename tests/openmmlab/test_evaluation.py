"""COCO's own files: they pass the checks before a run, and our evaluator gives cocoapi's numbers on its example."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import METRICS, init_default_scope

from davit.openmmlab.datasets import check_dataset
from tests.openmmlab.conftest import DET, config


def test_numbers_of_cocoapi(shared: Path) -> None:
    folder = shared / "data/coco-eval-reference"
    truth = folder / "rafaelpadilla/tests/test_coco_eval/gts/sampled_gts_bbox_area.json"
    found = json.loads((folder / "cocoapi/results/instances_val2014_fakebbox100_results.json").read_text())
    contents = json.loads(truth.read_text())
    init_default_scope("mmdet")
    cfg = config(DET / "davit_retinanet_1x_coco.py")
    evaluator = METRICS.build({**cfg.val_evaluator, "ann_file": str(truth)})
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO["classes"]
    evaluator.dataset_meta = {"classes": names}
    ids = {category["id"]: names.index(category["name"]) for category in contents["categories"]}
    for image in contents["images"]:
        mine = [one for one in found if one["image_id"] == image["id"]]
        boxes = torch.tensor([one["bbox"] for one in mine], dtype=torch.float64).reshape(-1, 4)  # as the file has them
        instances = {
            "bboxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            "scores": torch.tensor([one["score"] for one in mine]),
            "labels": torch.tensor([ids[one["category_id"]] for one in mine], dtype=torch.int64),
        }
        shape = (image["height"], image["width"])
        evaluator.process({}, [{"img_id": image["id"], "ori_shape": shape, "pred_instances": instances}])
    measured = evaluator.evaluate(size=len(contents["images"]))
    names = ("coco/bbox_mAP", "coco/bbox_mAP_50", "coco/bbox_mAP_75")
    assert [measured[name] for name in names] == [0.504, 0.697, 0.572]  # cocoapi's, to mmdet's three digits


def test_coco_itself_passes(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the config of a data set without names of classes: those of mmdet's own are meant."""
    init_default_scope("mmdet")
    dataset = {"type": "CocoDataset", "data_root": str(shared / "data/coco-tiny")}
    for split, crowd in (("train", 6), ("val", 11)):
        files = {"ann_file": f"annotations/instances_{split}2017.json", "data_prefix": {"img": f"{split}2017/"}}
        with caplog.at_level("INFO"):
            check_dataset({**dataset, **files}, split, {"roi_head": {"mask_head": {}}})
        logged, summary = caplog.records[-1].args
        assert (logged, summary.pictures, summary.classes, summary.crowd) == (split, 80, 80, crowd)
