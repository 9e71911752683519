"""How images of any kind and number of bands come into MMDetection and MMSegmentation."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image

from davit.data import BadImageError, DataError, load_rgb
from davit.openmmlab import demo
from davit.openmmlab.bands import follow_bands
from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from davit.openmmlab.config import read_config
from davit.openmmlab.loading import LoadImageFromFile
from davit.openmmlab.predictor import Predictor, Segmentation
from tests.openmmlab.conftest import SEG, SEGMENTOR, SIZE, Go, build

NOISE = np.random.default_rng(0).integers(0, 65536, (20, 30, 4), dtype=np.uint16)
EIGHT = (NOISE >> 8).astype(np.uint8)


def load(file: Path, scope: str = "mmdet", **options: Any) -> Any:
    init_default_scope(scope)
    results = TRANSFORMS.build({"type": "LoadImageFromFile", **options})({"img_path": str(file)})
    assert results["img_shape"] == results["ori_shape"] == results["img"].shape[:2]
    return results["img"]


@pytest.fixture
def rgba(tmp_path: Path) -> Path:
    Image.fromarray(EIGHT).save(tmp_path / "rgba.png")
    return tmp_path / "rgba.png"


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    np.save(tmp_path / "deep.npy", NOISE >> 4)
    return tmp_path / "deep.npy"


# -- the transform


def test_it_is_the_one_of_every_config():

    for scope in ("mmdet", "mmseg"):
        init_default_scope(scope)
        for name in ("LoadImageFromFile", "mmcv.LoadImageFromFile"):
            assert type(TRANSFORMS.build({"type": name})) is LoadImageFromFile
    assert mmcv.transforms.LoadImageFromFile is LoadImageFromFile
    assert type(TRANSFORMS.build({"type": mmcv.transforms.LoadImageFromFile})) is LoadImageFromFile
    inner = TRANSFORMS.build({"type": "mmdet.InferencerLoader"}).from_file
    assert type(inner) is LoadImageFromFile


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_colours(rgba: Path, scope: str):
    expected = np.asarray(load_rgb(rgba))
    assert (load(rgba, scope)[..., ::-1] == expected).all()
    floats = load(rgba, scope, to_float32=True)
    assert floats.dtype == np.float32 and (floats[..., ::-1] == expected).all()
    assert (load(rgba, scope, color_type="grayscale") == np.asarray(load_rgb(rgba).convert("L"))).all()
    assert (load(rgba, scope, color_type="unchanged", bands=3)[..., ::-1] == expected).all()


def test_values_as_they_are_stored(rgba: Path, deep: Path, tmp_path: Path):
    assert (load(rgba, color_type="unchanged") == EIGHT).all()
    assert (load(deep, color_type="unchanged") == NOISE >> 4).all()
    np.save(tmp_path / "wide.npy", (NOISE >> 4).astype(np.int64))
    wide = load(tmp_path / "wide.npy", color_type="unchanged")
    assert wide.dtype == np.float32 and (wide == NOISE >> 4).all()
    np.save(tmp_path / "bits.npy", NOISE[..., :2] > 99)
    assert load(tmp_path / "bits.npy", color_type="unchanged", bands=2).dtype == np.uint8
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "grey.png")
    assert (load(tmp_path / "grey.png", color_type="unchanged") == NOISE[..., 0]).all()


def test_values_by_a_rule(deep: Path):
    for options in ({"bands": 4}, {"color_type": "unchanged"}):
        np.testing.assert_allclose(load(deep, bit_depth=12, **options), (NOISE >> 4) / 4095 * 255, atol=1e-3)
        low, high = np.percentile(NOISE >> 4, (5, 95))
        expected = (((NOISE >> 4) - low) / (high - low)).clip(0, 1) * 255
        np.testing.assert_allclose(load(deep, percentiles=[5, 95], **options), expected, atol=1e-3)
    np.testing.assert_allclose(load(deep, bands=4), (NOISE >> 4) / 65535 * 255, atol=1e-3)
    shown = LoadImageFromFile(color_type="unchanged", bit_depth=12).shown(str(deep))
    assert np.abs(np.asarray(shown) - (NOISE[..., :3] >> 4) / 4095 * 255).max() <= 0.5001


def test_files_elsewhere(rgba: Path):
    expected = load(rgba)
    assert (load(rgba, backend_args={"backend": "local"}) == expected).all()
    with pytest.warns(DeprecationWarning):
        assert (load(rgba, file_client_args={"backend": "disk"}) == expected).all()


def test_what_cannot_be_read(tmp_path: Path, rgba: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken.png").write_text("no image")
    for wrong in ("broken.png", "missing.png"):
        with pytest.raises(DataError, match=wrong):
            load(tmp_path / wrong)
        assert LoadImageFromFile(ignore_empty=True)({"img_path": str(tmp_path / wrong)}) is None
    with pytest.raises(DataError, match="4 bands"):
        load(rgba, color_type="color", bands=5)

    def fail(*_: Any) -> None:
        raise OSError(5, "the disk")

    monkeypatch.setattr(LoadImageFromFile, "read", fail)
    with pytest.raises(OSError, match="the disk"):
        load(rgba)
    assert LoadImageFromFile(ignore_empty=True)({"img_path": str(rgba)}) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"color_type": "color_ignore_orientation"}, "color_ignore_orientation"),
        ({"color_type": "grayscale", "bands": 4}, "grayscale"),
        ({"bit_depth": 99}, "99"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        LoadImageFromFile(**options)


def test_another_backend_is_said_to_have_no_effect(rgba: Path, caplog: pytest.LogCaptureFixture):
    assert (load(rgba, imdecode_backend="pillow") == load(rgba)).all()
    assert "pillow" in caplog.text


# -- means and deviations


@pytest.mark.parametrize("kind", ["mmdet.DetDataPreprocessor", "mmseg.SegDataPreProcessor"])
@pytest.mark.parametrize("training", [False, True])
def test_a_mean_for_each_band(kind: str, training: bool):
    scope = kind.partition(".")[0]
    init_default_scope(scope)
    size = {"size": (8, 8)} if scope == "mmseg" else {}
    mean, std = [10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0]
    values = torch.arange(4 * 64, dtype=torch.uint8).view(4, 8, 8)
    if scope == "mmseg":
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        sample: Any = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 8, 8)))
    else:
        from mmdet.structures import DetDataSample

        sample = DetDataSample()
    for flip in (True, False):
        module = MODELS.build({"type": kind, "mean": mean, "std": std, "bgr_to_rgb": flip, **size})
        for _ in range(2):
            found = module({"inputs": [values], "data_samples": [sample]}, training)["inputs"][0]
            expected = (values.float() - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
            assert torch.equal(found, expected)
    plain = MODELS.build({"type": kind, "bgr_to_rgb": True, **size})
    assert torch.equal(plain({"inputs": [values], "data_samples": [sample]}, training)["inputs"][0], values.float())
    three = plain({"inputs": [values[:3]], "data_samples": [sample]}, training)["inputs"][0]
    assert torch.equal(three, values[[2, 1, 0]].float())


def test_as_many_means_as_deviations():
    with pytest.raises(ValueError, match=r"4 means and 2"):
        ImgDataPreprocessor([0.0] * 4, [1.0] * 2)


# -- configs


def four_bands(**preprocessor: Any) -> Config:
    cfg = read_config(SEGMENTOR)
    cfg.model.backbone.in_chans = 4
    cfg.model.data_preprocessor.update(preprocessor)
    return cfg


def test_all_pipelines_follow_the_backbone():
    cfg = four_bands(mean=None, std=None)
    follow_bands(cfg)
    pipelines = [cfg[f"{split}_dataloader"].dataset.pipeline for split in ("train", "val", "test")]
    assert [pipeline[0].bands for pipeline in (*pipelines, cfg.tta_pipeline)] == [4] * 4
    plain = read_config(SEGMENTOR)
    before = plain.pretty_text
    follow_bands(plain)
    assert plain.pretty_text == before


def test_transforms_of_colours_are_left_out(caplog: pytest.LogCaptureFixture):
    cfg = read_config(SEG / "upernet_davit_folders.py")
    cfg.model.backbone.in_chans = 4
    cfg.model.data_preprocessor.update(mean=None, std=None)
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    follow_bands(cfg)
    left = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert left == [kind for kind in kinds if kind != "PhotoMetricDistortion"] and len(left) < len(kinds)
    assert "PhotoMetricDistortion" in caplog.text


def test_means_of_another_number_of_bands_are_refused():
    with pytest.raises(ValueError, match=r"data_preprocessor\.mean.*3.*4"):
        follow_bands(four_bands())


# -- from training to demo


@pytest.fixture(scope="module")
def multispectral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose fourth band alone shows the disc that the masks have."""
    root = tmp_path_factory.mktemp("multispectral")
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for number in range(4):
            draw = np.random.default_rng(number)
            labels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
            labels[8:40, 12:52] = 1
            picture = draw.integers(0, 256, (SIZE[1], SIZE[0], 4), dtype=np.uint8)
            picture[..., 3] = 200 * labels
            Image.fromarray(picture).save(root / "images" / split / f"{number}.png")
            Image.fromarray(labels).save(root / "masks" / split / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("loader", "preprocessor"),
    [
        ("color_type='unchanged', to_float32=True", "mean=None, std=None, bgr_to_rgb=False"),
        ("color_type='unchanged', to_float32=True", "mean=[10, 20, 30, 40], std=[1, 2, 3, 4], bgr_to_rgb=False"),
        ("", "mean=[10, 20, 30, 40], std=[1, 2, 3, 4]"),
    ],
    ids=["unchanged", "means", "defaults"],
)
def test_four_bands_are_the_same_everywhere(
    go: Go, multispectral: Path, loader: str, preprocessor: str, tmp_path: Path
) -> None:
    """train.py, test.py, image_demo.py and the Predictor give the model the same four bands, in the file's order."""
    Path("four.py").write_text(
        f"_base_ = {str(SEGMENTOR)!r}\n"
        f"model = dict(backbone=dict(in_chans=4), data_preprocessor=dict({preprocessor}))\n"
        f"pipeline = [dict(type='LoadImageFromFile', {loader}), dict(type='LoadAnnotations'),"
        " dict(type='PackSegInputs')]\n"
        "data = dict(dataset=dict(pipeline=pipeline))\n"
        "train_dataloader = val_dataloader = test_dataloader = data\n"
        "train_cfg = dict(max_iters=2, val_interval=2)\n"
    )
    words = ["--data-root", multispectral]
    go(train, "four.py", *words, "--work-dir", "run", "--no-validate")
    go(evaluate, "four.py", "run/iter_2.pth", *words, "--work-dir", "test", "--show-dir", "shown", "--out", "out")
    assert len([*Path("shown").iterdir()]) == 4
    file = multispectral / "images" / "val" / "0.png"
    go(demo.main, file, "four.py", "run/iter_2.pth", "--out-dir", "demo")
    predictor = Predictor("four.py", "run/iter_2.pth", device="cpu")
    seen: list[torch.Tensor] = []
    predictor.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = predictor.predict(file)
    assert isinstance(found, Segmentation)
    pixels = np.asarray(Image.open(file))
    assert (found.picture == pixels[..., :3]).all()
    assert (found.labels == np.asarray(Image.open("out/0.png"))).all()
    expected = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
    if "None" not in preprocessor:
        expected = (expected - torch.tensor([10.0, 20, 30, 40])[:, None, None]) / torch.tensor([1.0, 2, 3, 4])[
            :, None, None
        ]
    assert torch.equal(seen[0][0, :, : SIZE[1], : SIZE[0]], expected)
    assert (predictor.predict(pixels).labels == found.labels).all()
    assert (predictor.predict(file.read_bytes()).labels == found.labels).all()
    three = io.BytesIO()
    Image.fromarray(pixels[..., :3]).save(three, "PNG")
    with pytest.raises(BadImageError, match="3 bands"):
        predictor.predict(three.getvalue())


def test_the_predictor_needs_our_loader(segmentor_weights: Path):
    cfg = read_config(SEGMENTOR)
    for dataset in (cfg.test_dataloader.dataset, cfg.val_dataloader.dataset):
        dataset.pipeline[0] = {"type": "LoadImageFromNDArray"}
    with pytest.raises(ValueError, match="LoadImageFromFile"):
        Predictor(cfg, segmentor_weights, device="cpu")


def test_a_transparent_picture_is_the_same_in_test_and_demo(segmentor_weights: Path, rgba: Path):
    predictor = Predictor(SEGMENTOR, segmentor_weights, device="cpu")
    assert (predictor.predict(rgba).picture == load(rgba, "mmseg")[..., ::-1]).all()


def test_a_pretrained_stem_is_spread_over_four_bands(tmp_path: Path):
    weights = build(SEGMENTOR).backbone.state_dict()
    torch.save(weights, tmp_path / "three.pth")
    cfg = four_bands(mean=None, std=None)
    cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "three.pth")}
    model = build(cfg)
    logging.disable(logging.NOTSET)
    model.backbone.init_weights()
    (stem,) = [name for name in weights if weights[name].shape[1:] == (3, 7, 7)]
    found = model.backbone.state_dict()[stem]
    torch.testing.assert_close(found[:, :3], weights[stem] * 3 / 4)
