"""Detections are measured by COCO's rules, each image once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from davit.data import Batch
from davit.detect.data import BoxDataset
from davit.detect.evaluate import BoxScores, best_boxes, measure, write_results
from tests.detect.test_boxes import ALONE, opened


def logits_of(dataset: BoxDataset, position: int, queries: int = 8) -> tuple[Tensor, Tensor]:
    """What a detector without a fault would say of an image."""
    boxes, labels = (torch.from_numpy(one) for one in dataset.source.objects(position))
    width, height = dataset.source.sizes[position].tolist()
    logits, shares = torch.full((queries, len(dataset.class_names)), -9.0), torch.full((queries, 4), 0.01)
    logits[torch.arange(len(labels)), labels] = 9.0
    corners = boxes / torch.tensor([width, height, width, height])
    shares[: len(labels)] = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    return logits, shares


def scored(dataset: BoxDataset, positions: list[int]) -> BoxScores:
    scores = BoxScores(dataset, torch.device("cpu"))
    for position in positions:
        logits, boxes = logits_of(dataset, position)
        scores.add((logits[None], boxes[None]), Batch(torch.empty(0), torch.empty(0), torch.tensor([position])))
    return scores


def test_no_fault_is_100_percent(few: Path) -> None:
    dataset = opened(few, "val")
    measured = scored(dataset, [3, 1, 0, 4, 2]).measures(ALONE)
    assert measured.percent()["ap"] == pytest.approx(100) == measured.percent()["ap75"]
    present = {one["category_id"] - 1 for one in dataset.annotations["annotations"]}
    for index, name in enumerate(dataset.class_names):
        assert measured.of_class[name] == pytest.approx(1) if index in present else np.isnan(measured.of_class[name])


def test_other_classes_and_places_count_less(few: Path) -> None:
    dataset = opened(few, "val")
    right = scored(dataset, [0, 1, 2, 3, 4])
    right.measures(ALONE)
    moved = [{**one, "bbox": [one["bbox"][0] + 5, *one["bbox"][1:]]} for one in right.results]
    swapped = [{**one, "category_id": one["category_id"] % 10 + 1} for one in right.results]
    ids = dataset.source.ids.tolist()
    assert measure(dataset, moved, ids).figures["ap"] < 0.7 < 0.8 < measure(dataset, moved, ids).figures["ap50"]
    assert measure(dataset, swapped, ids).figures["ap50"] < 0.3
    assert measure(dataset, [], ids).figures["ap"] == 0


def test_results_are_read_by_cocos_tools(few: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset = opened(few, "val")
    scores = scored(dataset, [0, 1, 2, 3, 4])
    measured = scores.measures(ALONE)
    write_results(tmp_path / "results.json", scores.results)
    truth = COCO(str(few / "annotations/instances_val2017.json"))
    judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    judge.evaluate(), judge.accumulate(), judge.summarize()
    assert judge.stats[0] == pytest.approx(measured.figures["ap"])
    assert judge.stats[8] == pytest.approx(measured.figures["ar"])
    assert [one["image_id"] for one in json.loads((tmp_path / "results.json").read_text())] == sorted(
        one["image_id"] for one in scores.results
    )


def test_only_the_pictures_that_were_looked_at_count(few: Path) -> None:
    dataset = opened(few, "val")
    assert scored(dataset, [2]).measures(ALONE).figures["ap"] == pytest.approx(1)


def test_what_is_not_finite_is_no_detection(few: Path) -> None:
    dataset = opened(few, "val")
    scores = BoxScores(dataset, torch.device("cpu"))
    logits, boxes = logits_of(dataset, 0)
    both = (torch.stack([logits, logits * torch.nan]), torch.stack([boxes, boxes]))
    scores.add(both, Batch(torch.empty(0), torch.empty(0), torch.tensor([0, 1])))
    scores.measures(ALONE)
    assert {one["image_id"] for one in scores.results} == {dataset.source.ids[0]}
    assert scores.counts[3] == 1


def test_the_best_pairs_of_query_and_class() -> None:
    logits = torch.tensor([[[0.0, 2.0, -1.0], [3.0, 1.0, -9.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.4, 0.2]]])
    labels, scores, corners = best_boxes(logits, boxes, torch.tensor([[200, 100]]))
    assert labels[0].tolist() == [0, 1, 1, 0, 2, 2]
    torch.testing.assert_close(scores[0, :2], torch.tensor([3.0, 2.0]).sigmoid())
    torch.testing.assert_close(corners[0, 0], torch.tensor([0.0, 0.0, 60.0, 20.0]))  # cut at the border
    torch.testing.assert_close(corners[0, 1], torch.tensor([80.0, 30.0, 120.0, 70.0]))
