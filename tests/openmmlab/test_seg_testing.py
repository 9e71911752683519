"""What test.py measures and writes: the metrics, test-time augmentation, sliding windows, files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davit.openmmlab  # noqa: F401  (before mmseg)
from davit.openmmlab.cli import test_main as run_test
from davit.openmmlab.config import read_config
from tests.openmmlab.segs import CLASSES, CONFIG, SIZE, build, checkpoint, confusion, scores, write_set

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pth")


def measured(folder: Path) -> dict[str, float]:
    """The metrics that the newest run in a folder wrote."""
    (file,) = folder.glob("*/*.json")
    return json.loads(file.read_text())


def predict(data: Path, weights: Path, work: Path, *words: str) -> None:
    assert run_test([str(CONFIG), str(weights), "--data-root", str(data), "--work-dir", str(work), *words]) == 0


def labels_and(folder: Path, data: Path, shift: int = 0) -> list[tuple[Any, Any]]:
    pairs = []
    for file in sorted((data / "masks" / "val").iterdir()):
        found = np.asarray(Image.open(folder / file.name)).astype(int) - shift
        pairs.append((np.asarray(Image.open(file)), found))
    return pairs


@pytest.mark.parametrize("words", [(), ("--aug-test",)], ids=["once", "augmented"])
def test_metrics_equal_a_confusion_matrix(data: Path, weights: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    predict(data, weights, tmp_path, "--eval", "mIoU", "--out", str(tmp_path / "out"), *words)
    found, table = measured(tmp_path), confusion(labels_and(tmp_path / "out", data), len(CLASSES))
    assert (table.sum(axis=0) > 0).sum() > 1  # several classes are predicted
    for name, value in scores(table).items():
        assert found[name] == pytest.approx(value, abs=0.006), name  # mmseg rounds to two digits


def test_each_run_of_a_process_writes_to_its_own_folder(data: Path, weights: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        predict(data, weights, tmp_path / name, "--eval", "mIoU")
        assert len([*(tmp_path / name).glob("*/vis_data/config.py")]) == 1


def test_other_metrics_by_their_names(data: Path, weights: Path, tmp_path: Path) -> None:
    predict(data, weights, tmp_path, "--eval", "mDice", "mFscore")
    assert {"mDice", "mFscore", "mPrecision", "mRecall"} <= set(measured(tmp_path))


def test_augmentation_is_the_mean_of_twelve_softmax_maps(data: Path, weights: Path) -> None:
    """By hand: resized with OpenCV, flipped, predicted, flipped back, resized back, softmax, mean."""
    import mmcv
    from mmseg.registry import DATASETS, MODELS

    cfg = read_config(CONFIG)
    model = build(cfg).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    augmented = MODELS.build({**cfg.tta_model, "module": model})
    own = {**cfg.test_dataloader.dataset, "data_root": str(data), "pipeline": cfg.tta_pipeline}
    item = DATASETS.build(own)[0]
    with torch.no_grad():
        batch = {name: [[value] for value in values] for name, values in item.items()}
        (found,) = augmented.test_step(batch)
    picture = mmcv.imread(str(data / "images" / "val" / "000.png"))
    mean = torch.zeros(len(CLASSES), SIZE[1], SIZE[0])
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        resized = mmcv.imrescale(picture, ratio)
        for flipped in (False, True):
            view = (resized[:, ::-1] if flipped else resized)[:, :, ::-1]  # RGB
            pixels = torch.from_numpy((view - MEAN) / STD).permute(2, 0, 1).float()
            with torch.no_grad():
                logits = model.decode_head(model.backbone(pixels[None]))
            logits = torch.nn.functional.interpolate(logits, size=pixels.shape[1:], mode="bilinear")
            logits = logits.flip(3) if flipped else logits
            logits = torch.nn.functional.interpolate(logits, size=(SIZE[1], SIZE[0]), mode="bilinear")
            mean += logits[0].softmax(dim=0) / 12
    torch.testing.assert_close(found.seg_logits.data, mean, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.pred_sem_seg.data[0], found.seg_logits.data.argmax(dim=0))
    assert torch.equal(found.gt_sem_seg.data[0], torch.from_numpy(np.asarray(Image.open(data / "masks/val/000.png"))))


def test_augmentation_equals_mmsegs(data: Path, weights: Path) -> None:
    from mmseg.models.segmentors import SegTTAModel
    from mmseg.registry import DATASETS, MODELS

    cfg = read_config(CONFIG)
    model = build(cfg).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    own = {**cfg.test_dataloader.dataset, "data_root": str(data), "pipeline": cfg.tta_pipeline}
    dataset = DATASETS.build(own)

    def batch() -> Any:  # two pictures at once
        items = [dataset[0], dataset[1]]
        return {name: [list(view) for view in zip(*(one[name] for one in items), strict=True)] for name in items[0]}

    with torch.no_grad():
        ours = MODELS.build({**cfg.tta_model, "module": model}).test_step(batch())
        theirs = SegTTAModel(module=model).test_step(batch())
    for own_one, their_one in zip(ours, theirs, strict=True):
        assert torch.equal(own_one.pred_sem_seg.data.squeeze(), their_one.pred_sem_seg.data.squeeze())
        assert own_one.img_path == their_one.img_path


def test_sliding_equals_whole_where_one_window_covers_the_picture(data: Path, weights: Path, tmp_path: Path) -> None:
    predict(data, weights, tmp_path / "whole", "--out", str(tmp_path / "whole_out"))
    sliding = ["model.test_cfg.mode=slide", "model.test_cfg.crop_size=48,64", "model.test_cfg.stride=32,42"]
    out = str(tmp_path / "slide_out")
    predict(data, weights, tmp_path / "slide", "--out", out, "--cfg-options", *sliding)
    whole, slide = (labels_and(tmp_path / name, data) for name in ("whole_out", "slide_out"))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(whole, slide, strict=True))
    assert measured(tmp_path / "whole")["mIoU"] == measured(tmp_path / "slide")["mIoU"]


def test_sliding_averages_where_windows_overlap(data: Path, weights: Path) -> None:
    cfg = read_config(CONFIG)
    cfg.model.test_cfg = {"mode": "slide", "crop_size": (32, 32), "stride": (16, 32)}
    model = build(cfg).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    picture = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        found = model.slide_inference(picture, [{}])
        upper, lower = (
            model.encode_decode(picture[:, :, :32], [{"img_shape": (32, 32)}]),
            model.encode_decode(picture[:, :, 16:], [{"img_shape": (32, 32)}]),
        )
    torch.testing.assert_close(found[:, :, :16], upper[:, :, :16])
    torch.testing.assert_close(found[:, :, 16:32], (upper[:, :, 16:] + lower[:, :, :16]) / 2)
    torch.testing.assert_close(found[:, :, 32:], lower[:, :, 16:])


@pytest.mark.parametrize("words", [(), ("--aug-test",)], ids=["once", "augmented"])
def test_format_only_needs_no_masks(data: Path, weights: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A server's test set has none; with reduce_zero_label its files number the classes from 1."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(data / "images")
    plain, reduced = tmp_path / "plain", tmp_path / "reduced"
    predict(tmp_path / "set", weights, plain, "--format-only", *words)
    option = "test_dataloader.dataset.reduce_zero_label=True"
    predict(tmp_path / "set", weights, reduced, "--format-only", *words, "--options", option)
    for one, other in zip(
        labels_and(plain / "results", data), labels_and(reduced / "results", data, shift=1), strict=True
    ):
        assert one[1].shape == (SIZE[1], SIZE[0])
        assert np.array_equal(one[1], other[1])
    assert "mIoU" not in measured(plain)


def test_show_dir_draws_every_picture(data: Path, weights: Path, tmp_path: Path) -> None:
    predict(data, weights, tmp_path / "run", "--eval", "mIoU", "--show-dir", str(tmp_path / "shown"))
    pictures = sorted(file.name for file in (data / "images" / "val").iterdir())
    assert sorted(file.name for file in (tmp_path / "shown").iterdir()) == pictures
    drawn = np.asarray(Image.open(tmp_path / "shown" / pictures[0]))
    assert drawn.shape[1] % SIZE[0] == 0
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10


def test_an_unknown_metric_is_named(data: Path, weights: Path, tmp_path: Path, capfd: Any) -> None:
    words = [str(CONFIG), str(weights), "--data-root", str(data), "--work-dir", str(tmp_path), "--eval", "bbox"]
    assert run_test(words) == 2
    assert "'bbox' is not one of mIoU, mDice, mFscore" in capfd.readouterr().err


def test_a_drawing_keeps_what_is_no_class() -> None:
    from davit.openmmlab.predictor import draw_segments

    picture = np.full((400, 400, 3), 200, dtype=np.uint8)
    labels = np.zeros((400, 400), dtype=int)
    labels[:, 200:] = 255
    drawn = np.asarray(draw_segments(picture, labels, ("one", "two"), [(0, 0, 0), (9, 9, 9)]))
    assert (drawn[:400, 200:] == 200).all()
    assert (drawn[:400, :200] == 80).all()
    assert drawn.shape[0] > 400  # the legend
