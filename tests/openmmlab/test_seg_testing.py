"""What test.py measures and writes of a segmentor: metrics, test-time augmentation, sliding windows, files."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from tests.openmmlab.conftest import CLASSES, SEGMENTOR, SIZE, Go, build, config, scores_of, weights_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, masks: Path, segmentor_weights: Path) -> Path:
    """The folder of a run of test.py with all metrics; its predictions are in out/, its drawings in shown/."""
    folder = tmp_path_factory.mktemp("whole")
    more = ["--eval", "mIoU", "mDice", "mFscore", "--out", folder / "out", "--show-dir", folder / "shown"]
    words = [SEGMENTOR, segmentor_weights, "--data-root", masks, "--work-dir", folder / "run", *more]
    assert evaluate([*map(str, words)]) == 0
    return folder


def labels_and_predictions(folder: Path, masks: Path, shift: int = 0) -> list[tuple[Any, Any]]:
    files = sorted((masks / "masks" / "val").iterdir())
    found = [np.asarray(Image.open(folder / file.name)).astype(int) - shift for file in files]
    return [(np.asarray(Image.open(file)), predicted) for file, predicted in zip(files, found, strict=True)]


def expected_scores(pairs: list[tuple[Any, Any]]) -> dict[str, float]:
    """aAcc, mIoU, mAcc in percent by a confusion matrix in plain NumPy; pixels labelled 255 do not count."""
    table = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    for labels, predicted in pairs:
        counted = labels != 255
        np.add.at(table, (labels[counted], predicted[counted]), 1)
    assert (table.sum(axis=0) > 0).sum() > 1  # several classes are predicted
    hits = np.diag(table)
    return {
        "aAcc": 100 * hits.sum() / table.sum(),
        "mIoU": 100 * np.nanmean(hits / (table.sum(0) + table.sum(1) - hits)),
        "mAcc": 100 * np.nanmean(hits / table.sum(1)),
    }


def test_metrics_equal_a_confusion_matrix(whole: Path, masks: Path) -> None:
    found = scores_of(whole / "run")
    for name, value in expected_scores(labels_and_predictions(whole / "out", masks)).items():
        assert found[name] == pytest.approx(value, abs=0.006), name  # mmseg rounds to two digits
    assert {"mDice", "mFscore", "mPrecision", "mRecall"} <= set(found)


def test_every_picture_is_drawn(whole: Path, masks: Path) -> None:
    pictures = sorted(file.name for file in (masks / "images" / "val").iterdir())
    assert sorted(file.name for file in (whole / "shown").iterdir()) == pictures
    drawn = np.asarray(Image.open(whole / "shown" / pictures[0]))
    assert drawn.shape[1] % SIZE[0] == 0 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10


def test_augmented_and_sliding_runs(go: Go, whole: Path, masks: Path, segmentor_weights: Path, tmp_path: Path) -> None:
    """Sliding equals whole where one window covers the image; each run of a process has a folder of its own."""
    sliding = ["model.test_cfg.mode=slide", "model.test_cfg.crop_size=48,64", "model.test_cfg.stride=32,42"]
    words = [SEGMENTOR, segmentor_weights, "--data-root", masks]
    go(evaluate, *words, "--work-dir", "slide", "--out", "slide_out", "--cfg-options", *sliding)
    go(evaluate, *words, "--work-dir", "views", "--out", "views_out", "--aug-test", "--eval", "mIoU")
    assert scores_of(tmp_path / "slide")["mIoU"] == scores_of(whole / "run")["mIoU"]
    pairs = (labels_and_predictions(folder, masks) for folder in (whole / "out", tmp_path / "slide_out"))
    assert all(np.array_equal(one[1], other[1]) for one, other in zip(*pairs, strict=True))
    found = scores_of(tmp_path / "views")
    for name, value in expected_scores(labels_and_predictions(tmp_path / "views_out", masks)).items():
        assert found[name] == pytest.approx(value, abs=0.006), name
    assert all(len([*Path(name).glob("*/vis_data/config.py")]) == 1 for name in ("slide", "views"))


def test_format_only_needs_no_masks(go: Go, whole: Path, masks: Path, segmentor_weights: Path, tmp_path: Path) -> None:
    """A server's test set has none, and views read none; with reduce_zero_label files number the classes from 1."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(masks / "images")
    words = [SEGMENTOR, segmentor_weights, "--data-root", "set", "--format-only"]
    go(evaluate, *words, "--work-dir", "plain", "--options", "test_dataloader.dataset.reduce_zero_label=True")
    go(evaluate, *words, "--work-dir", "views", "--out", "views_out", "--aug-test")
    expected = labels_and_predictions(whole / "out", masks)
    reduced = labels_and_predictions(tmp_path / "plain/results", masks, shift=1)
    assert all(np.array_equal(one[1], other[1]) for one, other in zip(expected, reduced, strict=True))
    assert len(labels_and_predictions(tmp_path / "views_out", masks)) == len(expected)
    assert "mIoU" not in scores_of(tmp_path / "plain")


@torch.no_grad()
def test_augmentation_averages_as_mmseg_does(masks: Path, segmentor_weights: Path) -> None:
    """Of two images in twelve views each; mmseg's model holds all maps at once."""
    from mmseg.models.segmentors import SegTTAModel
    from mmseg.registry import DATASETS, MODELS

    cfg = config(SEGMENTOR)
    model = build(SEGMENTOR).eval()
    model.load_state_dict(weights_of(segmentor_weights))
    dataset = {**cfg.test_dataloader.dataset, "data_root": str(masks), "pipeline": cfg.tta_pipeline}
    items = [DATASETS.build(dataset)[index] for index in (0, 1)]
    batch = {name: [list(view) for view in zip(*(one[name] for one in items), strict=True)] for name in items[0]}
    assert len(batch["inputs"]) == 12
    found = MODELS.build({**cfg.tta_model, "module": model}).test_step(copy.deepcopy(batch))
    for ours, theirs in zip(found, SegTTAModel(module=model).test_step(batch), strict=True):
        assert torch.equal(ours.pred_sem_seg.data.squeeze(), theirs.pred_sem_seg.data.squeeze())
        assert torch.equal(ours.pred_sem_seg.data[0], ours.seg_logits.data.argmax(dim=0))
        torch.testing.assert_close(ours.seg_logits.data.sum(dim=0), torch.ones(SIZE[1], SIZE[0]))
        assert torch.equal(ours.gt_sem_seg.data, theirs.gt_sem_seg.data) and ours.img_path == theirs.img_path


# -- weights of other code bases and classes


def test_segmentors_of_other_code_and_classes(go: Go, masks: Path, segmentor_weights: Path) -> None:
    """mmseg 0.11's layout loads; what does not fit is named, and nothing is loaded; new classifiers start again."""
    state = weights_of(segmentor_weights)
    words = [SEGMENTOR, "old.pth", "--data-root", masks, "--eval", "mIoU"]
    torch.save({"meta": {"CLASSES": ("a", "b", "c"), "iter": 160000}, "state_dict": state, "optimizer": {}}, "old.pth")
    go(evaluate, *words)
    torch.save({"state_dict": {name: state[name] for name in [*state][:-1]}}, "old.pth")
    assert [*state][-1] in go(evaluate, *words, status=2)
    said = go(evaluate, *words[:-1], "bbox", status=2)
    assert all(name in said for name in ("'bbox'", "mIoU", "mDice", "mFscore"))
    for name in [name for name in state if "conv_seg" in name]:
        state[name] = torch.zeros(150, *state[name].shape[1:])
    torch.save({"state_dict": state}, "other.pth")
    words = [SEGMENTOR, "--data-root", masks, "--no-validate", "--load-from", "other.pth"]
    said = go(train, *words, "--options", "train_cfg.max_iters=1", "log_level=INFO")
    assert "decode_head.conv_seg.weight" in said and "decode_head.fpn_convs" not in said
