"""The evaluator of the configs gives pycocotools' numbers on cocoapi's own example."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import METRICS, init_default_scope

from tests.openmmlab.conftest import DET


def test_numbers_of_cocoapi(shared: Path) -> None:
    folder = shared / "data/coco-eval-reference"
    truth = folder / "rafaelpadilla/tests/test_coco_eval/gts/sampled_gts_bbox_area.json"
    found = json.loads((folder / "cocoapi/results/instances_val2014_fakebbox100_results.json").read_text())
    contents = json.loads(truth.read_text())
    cfg = Config.fromfile(DET / "davit_retinanet_1x_coco.py")
    init_default_scope(cfg.default_scope)
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
    # it rounds to three digits
    assert measured["coco/bbox_mAP"] == pytest.approx(0.503647, abs=5e-4)
    assert measured["coco/bbox_mAP_50"] == pytest.approx(0.696973, abs=5e-4)
    assert measured["coco/bbox_mAP_75"] == pytest.approx(0.571667, abs=5e-4)
