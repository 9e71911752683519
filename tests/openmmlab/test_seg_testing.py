"""What test.py measures and writes of a segmentor: metrics, test-time augmentation, sliding windows, files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from tests.openmmlab.conftest import CLASSES, SEGMENTOR, SIZE, Go, build, config, scores_of, weights_of

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


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
    assert drawn.shape[1] % SIZE[0] == 0
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10


def test_augmented_and_sliding_runs(go: Go, whole: Path, masks: Path, segmentor_weights: Path, tmp_path: Path) -> None:
    """Sliding equals whole where one window covers the picture; each run of a process has a folder of its own."""
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


def test_format_only_needs_no_masks(go: Go, masks: Path, segmentor_weights: Path, tmp_path: Path) -> None:
    """A server's test set has none; with reduce_zero_label its files number the classes from 1."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(masks / "images")
    words = [SEGMENTOR, segmentor_weights, "--data-root", "set", "--format-only"]
    go(evaluate, *words, "--work-dir", "plain")
    go(evaluate, *words, "--work-dir", "reduced", "--options", "test_dataloader.dataset.reduce_zero_label=True")
    go(evaluate, *words, "--work-dir", "views", "--out", "views_out", "--aug-test")
    plain = labels_and_predictions(tmp_path / "plain/results", masks)
    reduced = labels_and_predictions(tmp_path / "reduced/results", masks, shift=1)
    assert all(np.array_equal(one[1], other[1]) for one, other in zip(plain, reduced, strict=True))
    assert len(labels_and_predictions(tmp_path / "views_out", masks)) == len(plain)
    assert "mIoU" not in scores_of(tmp_path / "plain")


def test_an_unknown_metric_is_named(go: Go, masks: Path, segmentor_weights: Path) -> None:
    said = go(evaluate, SEGMENTOR, segmentor_weights, "--data-root", masks, "--eval", "bbox", status=2)
    assert all(name in said for name in ("'bbox'", "mIoU", "mDice", "mFscore"))


# -- models


@pytest.fixture
def model(segmentor_weights: Path) -> Any:
    model = build(SEGMENTOR).eval()
    model.load_state_dict(weights_of(segmentor_weights))
    return model


@pytest.fixture
def views(masks: Path, model: Any) -> Any:
    """The validation set, each picture as its twelve views."""
    from mmseg.registry import DATASETS

    cfg = config(SEGMENTOR)
    return DATASETS.build({**cfg.test_dataloader.dataset, "data_root": str(masks), "pipeline": cfg.tta_pipeline})


def batch_of(items: list[Any]) -> Any:
    return {name: [list(view) for view in zip(*(one[name] for one in items), strict=True)] for name in items[0]}


@torch.no_grad()
def test_augmentation_is_the_mean_of_twelve_softmax_maps(masks: Path, model: Any, views: Any) -> None:
    """By hand: resized with OpenCV, flipped, predicted, flipped back, resized back, softmax, mean."""
    import mmcv
    from mmseg.models.segmentors import SegTTAModel
    from mmseg.registry import MODELS

    found, second = MODELS.build({**config(SEGMENTOR).tta_model, "module": model}).test_step(
        batch_of([views[0], views[1]])
    )
    theirs = SegTTAModel(module=model).test_step(batch_of([views[0], views[1]]))
    for ours, other in zip((found, second), theirs, strict=True):
        assert torch.equal(ours.pred_sem_seg.data.squeeze(), other.pred_sem_seg.data.squeeze())
        assert ours.img_path == other.img_path
    picture = mmcv.imread(str(masks / "images" / "val" / "000.png"))
    mean = torch.zeros(len(CLASSES), SIZE[1], SIZE[0])
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        resized = mmcv.imrescale(picture, ratio)
        for flipped in (False, True):
            view = (resized[:, ::-1] if flipped else resized)[:, :, ::-1]  # RGB
            pixels = torch.from_numpy((view - MEAN) / STD).permute(2, 0, 1).float()
            logits = model.decode_head(model.backbone(pixels[None]))
            logits = torch.nn.functional.interpolate(logits, size=pixels.shape[1:], mode="bilinear")
            logits = logits.flip(3) if flipped else logits
            logits = torch.nn.functional.interpolate(logits, size=(SIZE[1], SIZE[0]), mode="bilinear")
            mean += logits[0].softmax(dim=0) / 12
    torch.testing.assert_close(found.seg_logits.data, mean, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.pred_sem_seg.data[0], found.seg_logits.data.argmax(dim=0))
    assert torch.equal(found.gt_sem_seg.data[0], torch.from_numpy(np.asarray(Image.open(masks / "masks/val/000.png"))))


@torch.no_grad()
def test_sliding_averages_where_windows_overlap(model: Any) -> None:
    model.test_cfg.update(mode="slide", crop_size=(32, 32), stride=(16, 32))
    picture = torch.randn(1, 3, 48, 32)
    found = model.slide_inference(picture, [{}])
    upper = model.encode_decode(picture[:, :, :32], [{"img_shape": (32, 32)}])
    lower = model.encode_decode(picture[:, :, 16:], [{"img_shape": (32, 32)}])
    torch.testing.assert_close(found[:, :, :16], upper[:, :, :16])
    torch.testing.assert_close(found[:, :, 16:32], (upper[:, :, 16:] + lower[:, :, :16]) / 2)
    torch.testing.assert_close(found[:, :, 32:], lower[:, :, 16:])


# -- weights of other code bases and classes


def test_original_segmentors_load(go: Go, masks: Path, segmentor_weights: Path) -> None:
    """mmseg 0.11's layout: a "state_dict" and a "meta"; what does not fit is named, and nothing is loaded."""
    state = weights_of(segmentor_weights)
    words = [SEGMENTOR, "old.pth", "--data-root", masks, "--eval", "mIoU"]
    torch.save({"meta": {"CLASSES": ("a", "b", "c"), "iter": 160000}, "state_dict": state, "optimizer": {}}, "old.pth")
    go(evaluate, *words)
    del state["decode_head.fpn_convs.0.conv.weight"]
    torch.save({"state_dict": state}, "old.pth")
    assert "decode_head.fpn_convs.0.conv.weight" in go(evaluate, *words, status=2)


def test_weights_of_other_classes_start_training_with_new_classifiers(
    go: Go, masks: Path, segmentor_weights: Path
) -> None:
    state = weights_of(segmentor_weights)
    for name in [name for name in state if "conv_seg" in name]:
        state[name] = torch.zeros(150, *state[name].shape[1:])
    torch.save({"state_dict": state}, "other.pth")
    words = [SEGMENTOR, "--data-root", masks, "--no-validate", "--load-from", "other.pth"]
    said = go(train, *words, "--options", "train_cfg.max_iters=1", "log_level=INFO")
    assert "decode_head.conv_seg.weight" in said and "decode_head.fpn_convs" not in said
