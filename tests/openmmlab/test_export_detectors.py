"""Exported detectors and segmentors find what the checkpoint finds."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from davit.data.opencv import resize_bilinear
from davit.export.__main__ import main as export_main
from davit.export.detectors import Normalised, detector_graph
from davit.export.int8 import detectors as int8_detectors
from davit.export.int8.detectors import Detectors
from davit.export.openmmlab import detections_differ, of_openmmlab, openmmlab_program, segments_differ
from davit.export.options import ExportOptions, Int8Options
from davit.export.program import Program
from davit.export.run import export, write_program
from davit.export.segmentors import CellMeans, segmentor_graph
from davit.export.suppression import NONE, onnx_translations, suppress
from davit.loading import load
from davit.openmmlab.predictor import Predictor
from davit.predict.detector import ExportedDetector, paste_masks
from davit.runtimes import ExportedError, ExportedModel, open_exported
from tests.conftest import randomise
from tests.openmmlab.conftest import DET, SEGMENTOR, build, config

NARROW = """
model = dict(
    backbone=dict(embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), drop_path_rate=0.0),
    neck=dict(in_channels={channels}, out_channels=16),
    {heads}
)
"""
RETINANET = f"""
_base_ = {str(DET / "davit_retinanet_1x_coco.py")!r}
{NARROW.format(channels="[16, 16, 16]", heads="bbox_head=dict(in_channels=16, feat_channels=16, num_classes=5),")}
model["test_cfg"] = dict(nms_pre=60, max_per_img=25)
"""
_RPN = "rpn_head=dict(in_channels=16, feat_channels=16), test_cfg=dict(rpn=dict(nms_pre=60, max_per_img=30)),"
_STAGE = """dict(
    type="Shared2FCBBoxHead", in_channels=16, fc_out_channels=16, roi_feat_size=7, num_classes=4,
    bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[{std}, {std}, 0.2, 0.2]),
    reg_class_agnostic={agnostic}, loss_cls=dict(type="CrossEntropyLoss"), loss_bbox=dict(type="L1Loss"),
)"""
_KINDS = ((0.1, True), (0.05, False), (0.03, True))
CASCADE = f"""
_base_ = {str(DET / "davit_cascade_maskrcnn_3x_coco.py")!r}
{NARROW.format(channels="[8, 16, 16, 16]", heads=_RPN)}
model["roi_head"] = dict(
    bbox_roi_extractor=dict(out_channels=16),
    bbox_head=[{", ".join(_STAGE.format(std=std, agnostic=one) for std, one in _KINDS)}],
    mask_roi_extractor=dict(out_channels=16),
    mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=4),
)
"""
FASTER = f"""
_base_ = {str(DET / "davit_maskrcnn_1x_coco.py")!r}
{NARROW.format(channels="[8, 16, 16, 16]", heads=_RPN)}
model["type"] = "FasterRCNN"
model["roi_head"] = dict(
    bbox_roi_extractor=dict(out_channels=16),
    bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=4),
    mask_roi_extractor=None, mask_head=None,
)
"""
NANO = f"""
_base_ = {str(DET / "davit_retinanet_1x_coco.py")!r}
model = dict(
    backbone=dict(variant="DaViT_nano", drop_path_rate=0.0),
    neck=dict(in_channels=[64, 128, 160], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2, num_classes=10),
)
"""
SIZES = ((96, 128), (61, 77), (33, 200))


@pytest.fixture(scope="session")
def detectors(tmp_path_factory: pytest.TempPathFactory, detector: Path) -> dict[str, Path]:
    """Configs of small detectors of each kind."""
    folder = tmp_path_factory.mktemp("detectors")
    files = {"mask": detector}
    for name, text in {"retinanet": RETINANET, "cascade": CASCADE, "faster": FASTER}.items():
        files[name] = folder / f"{name}.py"
        files[name].write_text(text)
    return files


def lively(file: Path, seed: int = 0) -> Any:
    """A detector of random weights, whose scores are spread."""
    return randomise(build(file), seed).eval()


def in_mmdet(model: Any, images: Tensor) -> list[Any]:
    """What mmdet itself finds in normalised images."""
    from mmdet.structures import DetDataSample

    height, width = images.shape[2:]
    samples = [DetDataSample() for _ in images]
    for sample in samples:
        sample.set_metainfo({"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)})
    padded = nn.functional.pad(images, (0, -width % 32, 0, -height % 32))
    return [one.pred_instances for one in model.predict(padded, samples, rescale=True)]


@pytest.mark.parametrize("kind", ["mask", "faster", "cascade", "retinanet"])
@torch.no_grad()
def test_the_graph_finds_what_mmdet_finds(detectors: dict[str, Path], kind: str) -> None:
    model = lively(detectors[kind])
    graph, names = detector_graph(model, Normalised(32))
    assert names == ("boxes", "scores", "labels", "masks")[: 4 if kind in ("mask", "cascade") else 3]
    for seed, size in enumerate(SIZES):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))
        outputs = graph.eval()(images)
        for picture, theirs in enumerate(in_mmdet(model, images)):
            ours = [one[picture] for one in outputs]
            count = len(theirs)
            assert count > 5 and (ours[2][:count] >= 0).all() and (ours[2][count:] == -1).all()
            assert torch.equal(ours[2][:count], theirs.labels)
            assert torch.allclose(ours[0][:count], theirs.bboxes, atol=1e-3)
            assert torch.allclose(ours[1][:count], theirs.scores, atol=1e-5)
            assert (ours[1][count:] == 0).all() and (ours[0][count:] == 0).all()
            if "masks" in names:
                pasted = paste_masks(ours[3][:count], ours[0][:count], *size, 0.5)
                assert (pasted != theirs.masks.numpy()).mean() < 1e-3


@torch.no_grad()
def test_raw_outputs_are_every_anchors(detectors: dict[str, Path]) -> None:
    """Suppressing them outside gives what the graph gives by itself, where no limit cuts candidates off."""
    cfg = config(detectors["retinanet"])
    cfg.model.test_cfg.update(nms_pre=100_000, score_thr=0.3)
    model = randomise(build(cfg), 0).eval()
    images = torch.randn(1, 3, 61, 77)
    graph, names = detector_graph(model, Normalised(32), raw=True)
    assert names == ("boxes", "scores")
    boxes, scores = graph(images)
    assert boxes.shape[1] == scores.shape[1] == 9 * sum(-(-64 // s) * -(-96 // s) for s in (8, 16, 32, 64, 128))
    has_area = (boxes[0, :, 2:] > boxes[0, :, :2]).all(-1)  # as min_bbox_size=0 asks for
    row, label = ((scores[0] > 0.3) & has_area[:, None]).nonzero().T
    apart = boxes[0, row] + (boxes[0, row].max() + 1) * label[:, None]
    best = suppress(apart[None], scores[0, row, label][None], 0.5, 25)[0].topk(25).values
    found = detector_graph(model, Normalised(32))[0](images)
    assert torch.allclose(best, found[1][0])


def test_what_is_not_written_is_refused_by_name(detectors: dict[str, Path]) -> None:
    def refused(kind: str, name: str, change: Callable[[Any], Any], raw: bool = False) -> None:
        cfg = config(detectors[kind])
        change(cfg.model)
        with pytest.raises(ValueError, match=name):
            detector_graph(build(cfg), Normalised(), raw=raw)

    refused("mask", "soft_nms", lambda m: m.test_cfg.rcnn.nms.update(type="soft_nms"))
    refused("mask", "MaskRCNN", lambda m: None, raw=True)
    refused("retinanet", "PISARetinaHead", lambda m: m.bbox_head.update(type="PISARetinaHead"))
    refused("retinanet", "nms_pre", lambda m: m.test_cfg.update(nms_pre=-1))
    refused("mask", "min_area", lambda m: m.test_cfg.rcnn.nms.update(min_area=3))
    refused("mask", "pool_mode", lambda m: m.roi_head.bbox_roi_extractor.roi_layer.update(pool_mode="max"))


def test_suppression_in_onnx(tmp_path: Path) -> None:
    """Of each image by itself; what is no candidate stays out, and no more than the limit stay."""
    import onnxruntime

    class Best(nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
            return suppress(boxes, scores, 0.5, 12)

    generator = torch.Generator().manual_seed(0)

    def drawn(batch: int, count: int) -> tuple[Tensor, Tensor]:
        first = 60 * torch.rand(batch, count, 2, generator=generator)
        boxes = torch.cat([first, first + 5 + 40 * torch.rand(batch, count, 2, generator=generator)], -1)
        scores = torch.rand(batch, count, generator=generator)
        return boxes, torch.where(scores > 0.2, scores, NONE)

    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(Best(), drawn(2, 30), dynamic_shapes=({0: free, 1: free}, {0: free, 1: free}))
    found = torch.onnx.export(program, dynamo=True, custom_translation_table=onnx_translations(), verbose=False)
    onnx.save(found.model_proto, str(tmp_path / "best.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "best.onnx"))
    for batch, count in ((2, 30), (1, 1), (3, 200)):
        boxes, scores = drawn(batch, count)
        wanted = suppress(boxes, scores, 0.5, 12)
        names = [one.name for one in session.get_inputs()]
        (ours,) = session.run(None, dict(zip(names, (boxes.numpy(), scores.numpy()), strict=True)))
        assert np.array_equal(ours, wanted.numpy())
        kept = (wanted >= 0).sum(1)
        assert (kept <= 12).all() and (count == 1 or ((kept < (scores >= 0).sum(1)) & (kept > 1)).all())


@pytest.mark.parametrize("size", [(1, 1), (6, 6), (7, 13), (2, 5), (40, 33)])
def test_means_of_cells(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    for cells in (1, 2, 3, 6, (2, 4), (None, 3)):
        assert torch.allclose(CellMeans(cells)(x), nn.AdaptiveAvgPool2d(cells)(x), atol=1e-6)


def test_pictures_are_resized_as_opencv_does() -> None:
    draws = np.random.default_rng(0)
    for number in range(60):
        height, width, old_height, old_width = draws.integers(1, 160, 4)
        if number % 6 == 0:
            old_height, old_width = 2 * height, 2 * width
        shape = (old_height, old_width, 3)[: 2 + number % 2]
        pixels = draws.integers(0, 256, shape).astype(np.uint8)
        wanted = cv2.resize(pixels, (int(width), int(height)))
        assert np.array_equal(resize_bilinear(pixels, int(width), int(height)), wanted)
        deep = draws.integers(0, 60000, shape).astype(np.uint16)
        wanted = cv2.resize(deep, (int(width), int(height)))
        assert np.abs(resize_bilinear(deep, int(width), int(height)) - wanted.astype(float)).max() <= 1


class Unexported(ExportedModel):
    """A program that was not written: its own module computes it."""

    runtime = "none"

    def __init__(self, program: Program) -> None:
        super().__init__(Path("unexported.onnx"), program.metadata, 1)
        self.program = program

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.program.compute(images)


def pictures() -> list[np.ndarray]:
    draws = np.random.default_rng(0)
    coarse = [draws.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(3)]
    sizes = ((90, 50), (128, 128), (61, 203))
    return [cv2.resize(one, size, interpolation=cv2.INTER_CUBIC) for one, size in zip(coarse, sizes, strict=True)]


def test_a_detector_is_predicted_with_as_its_checkpoint_is(detector: Path, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "epoch_2.pth"
    theirs = Predictor(detector, checkpoint, 0.0, "cpu")
    program = openmmlab_program(detector, checkpoint, ExportOptions())
    ours = ExportedDetector(Unexported(program), 0.0)
    assert ours.classes == tuple("0123456789") and program.metadata.extra["resize"]["keep_ratio"]
    for picture in pictures():
        one, other = ours.predict(picture), theirs.predict(picture)
        assert len(one.boxes) == len(other.boxes) > 0
        assert np.array_equal(one.labels, other.labels) and np.array_equal(one.picture, other.picture)
        assert np.abs(one.boxes - other.boxes).max() < 1e-2 and np.abs(one.scores - other.scores).max() < 1e-4
        assert (one.masks != other.masks).mean() < 1e-3
    best = float(one.scores[0])
    ours.score_threshold = best
    assert len(ours.predict(pictures()[-1]).boxes) >= 1 and (ours.predict(pictures()[-1]).scores >= best).all()
    with pytest.raises(ExportedError):
        raw = program.described(output_names=("boxes", "scores"))
        ExportedDetector(Unexported(raw))
    with pytest.raises(ValueError, match="float16"):
        openmmlab_program(detector, checkpoint, ExportOptions(fp16=True))


@pytest.mark.parametrize("scale", [None, (96, 40)])
@pytest.mark.parametrize("raw", [False, True])
def test_a_segmentor_is_predicted_with_as_its_checkpoint_is(
    segmentor_weights: Path, tmp_path: Path, scale: tuple[int, int] | None, raw: bool
) -> None:
    cfg = config(SEGMENTOR)
    pack = {"type": "PackSegInputs"}
    resize = [{"type": "Resize", "scale": scale, "keep_ratio": True}] if scale else []
    cfg.test_dataloader.dataset.pipeline = [{"type": "LoadImageFromFile"}, *resize, pack]
    cfg.model.data_preprocessor.test_cfg = {"size_divisor": 32}
    cfg.dump(tmp_path / "config.py")
    theirs = Predictor(tmp_path / "config.py", segmentor_weights, device="cpu")
    ours = ExportedDetector(
        Unexported(openmmlab_program(tmp_path / "config.py", segmentor_weights, ExportOptions(raw=raw)))
    )
    for picture in pictures():
        one, other = ours.predict(picture), theirs.predict(picture)
        assert one.classes == other.classes and one.palette == other.palette
        assert len(np.unique(other.labels)) > 1
        assert (one.labels != other.labels).mean() < 1e-3


def test_segmentors_that_predict_otherwise_are_refused() -> None:
    cfg = config(SEGMENTOR)
    cfg.model.test_cfg.update(mode="slide", crop_size=(32, 32), stride=(16, 16))
    with pytest.raises(ValueError, match="slide"):
        segmentor_graph(build(cfg), Normalised())


def test_a_work_folder_brings_its_config(trained: Path, tmp_path: Path) -> None:
    found = of_openmmlab(trained, ExportOptions())
    assert found is not None and Path(found[0]).suffix == ".py" and found[1].suffix == ".pth"
    assert of_openmmlab(tmp_path, ExportOptions()) is None
    with pytest.raises(ValueError, match="config"):
        of_openmmlab(None, ExportOptions(config="some.py"))


def test_how_outputs_are_compared() -> None:
    """Objects may change places, not their values; a lost one counts, as does a label."""
    boxes = 100 * torch.rand(1, 20, 4)
    scores, labels = torch.rand(1, 20), torch.arange(20)[None] % 3
    outputs = (boxes, scores, labels)
    mixed = torch.randperm(20)
    assert detections_differ(tuple(one[:, mixed] for one in outputs), outputs) == 0
    assert 0.09 < detections_differ((boxes, scores + 0.1, labels), outputs) < 0.11
    assert detections_differ((boxes, scores, torch.where(labels == 0, -1, labels)), outputs) == float("inf")
    nothing = (boxes, scores, torch.full_like(labels, -1))
    assert detections_differ(nothing, nothing) == 0 and detections_differ(nothing, outputs) == float("inf")
    map_labels, logits = torch.zeros(1, 10, 10, dtype=torch.uint8), torch.randn(1, 3, 3, 3)
    other = map_labels.clone()
    other[0, 0, 0] = 1
    assert segments_differ((other, logits), (map_labels, logits)) == pytest.approx(0.01)


def test_int8_is_refused_before_much_time_is_spent(
    trained: Path, few_scenes: Path, segmentor_weights: Path, tmp_path: Path
) -> None:
    """Raw outputs, segmentors, formats without a tool for it, and data that are not there."""
    there = Int8Options(str(few_scenes))
    for source, name, options in (
        (trained, "model.onnx", ExportOptions(raw=True, int8=there)),
        (segmentor_weights, "model.onnx", ExportOptions(config=str(SEGMENTOR), int8=there)),
        (trained, "model.onnx", ExportOptions(int8=Int8Options(str(tmp_path / "none")))),
    ):
        with pytest.raises(ValueError):
            export(source, tmp_path / name, options)
    assert not list(tmp_path.iterdir())


def test_a_detectors_judge(detector: Path, trained: Path, few_scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calibrates by training images as they are predicted, and measures objects, boxes and masks."""
    program = openmmlab_program(detector, trained / "epoch_2.pth", ExportOptions())
    judge = Detectors(Unexported(program), Int8Options(str(few_scenes), calibration=3))  # type: ignore[arg-type]
    assert (judge.pictures, judge.judged, len(judge.batches)) == (3, 3, 3)
    assert all(one.shape == (1, 3, 128, 128) for one in judge.batches)
    assert dict(judge.scores).keys() == {"ap50", "mask_ap50"}
    monkeypatch.setattr(int8_detectors, "open_exported", lambda *_, **__: Unexported(program))
    assert judge.change(Path("same.onnx")) == pytest.approx(0, abs=1e-6)
    same = judge.compare(Path("same.onnx"))
    assert (
        same["pictures"] == 4 and same["ap50_float"] == same["ap50"] and same["mask_ap50_float"] == same["mask_ap50"]
    )


def test_boxes_alone_are_measured_where_there_are_no_masks(
    detector: Path, trained: Path, few_scenes: Path, tmp_path: Path
) -> None:
    data = tmp_path / "set"
    shutil.copytree(few_scenes, data)
    for file in (data / "annotations").glob("instances_*.json"):
        contents = json.loads(file.read_text())
        for one in contents["annotations"]:
            del one["segmentation"]
        file.write_text(json.dumps(contents))
    program = openmmlab_program(detector, trained / "epoch_2.pth", ExportOptions())
    judge = Detectors(Unexported(program), Int8Options(str(data), calibration=1))  # type: ignore[arg-type]
    assert dict(judge.scores).keys() == {"ap50"}


def test_the_commands_config_is_the_detectors(detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no recipe of flags, as that of train.py is."""
    asked: list[ExportOptions] = []

    def export(source: str, out: str, options: ExportOptions) -> SimpleNamespace:
        asked.append(options)
        metadata = SimpleNamespace(differences=(), unchecked="")
        return SimpleNamespace(path=out, files={}, metadata=metadata, seconds=0.0)

    monkeypatch.setattr("davit.export.__main__.export", export)
    assert export_main(["epoch_2.pth", "model.onnx", "--config", str(detector), "--img-size", "64"]) == 0
    assert asked[0].config == str(detector) and asked[0].model_options == {"img_size": 64}


# -- the files themselves


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, detectors: dict[str, Path]) -> dict[str, Path]:
    """Random weights of each detector, with the names of its classes as training leaves them."""
    folder = tmp_path_factory.mktemp("weights")
    for name in detectors:
        model = lively(detectors[name])
        head = model.bbox_head if name == "retinanet" else model.roi_head.bbox_head
        count = (head[0] if isinstance(head, nn.ModuleList) else head).num_classes
        meta = {"dataset_meta": {"classes": [f"class {number}" for number in range(count)]}}
        torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in detectors}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["mask", "retinanet", "cascade"])
def test_the_command_writes_a_detector_of_any_size(
    detectors: dict[str, Path], weights: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    words = [weights[kind], tmp_path / "model.onnx", "--to", "onnx", "--config", detectors[kind]]
    assert export_main([*map(str, words)]) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    opened = load(tmp_path / "model.onnx", score_threshold=0.0)
    theirs = Predictor(detectors[kind], weights[kind], 0.0, "cpu")
    for picture in pictures():
        one, other = opened.predict(picture), theirs.predict(picture)
        assert len(one.boxes) == len(other.boxes) > 0
        count = len(other.boxes)
        pad = lambda found: [torch.from_numpy(v)[None] for v in (found.boxes, found.scores, found.labels)]  # noqa: E731
        assert detections_differ(tuple(pad(one)), tuple(pad(other))) < 1e-3, count


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["retinanet", "mask"])
def test_nano_detectors_at_ten_drawn_sizes(tmp_path: Path, kind: str) -> None:
    """Odd, not square, of one image and of two: boxes, scores, labels and masks are PyTorch's."""
    file = tmp_path / "retinanet.py"
    file.write_text(NANO)
    file = file if kind == "retinanet" else DET / "davit_nano_maskrcnn_digits.py"
    meta = {"dataset_meta": {"classes": [str(number) for number in range(10)]}}
    torch.save({"state_dict": lively(file).state_dict(), "meta": meta}, tmp_path / "model.pth")
    program = openmmlab_program(file, tmp_path / "model.pth", ExportOptions())
    opened = open_exported(write_program(program, tmp_path / "model.onnx", ExportOptions()).path)
    images_of, drawn = program.images, random.Random(24)
    assert images_of is not None
    for seed in range(10):
        size = (drawn.randint(1, 2), drawn.randint(33, 384) | 1, drawn.randint(33, 384))
        images = images_of(size, torch.Generator().manual_seed(seed))
        found, wanted = opened(images), program.compute(images)
        assert int((wanted[2] >= 0).sum()) > 20
        assert detections_differ(found, wanted) < 1e-3, size  # each with its counterpart: equal scores change places
        assert (found[1] - wanted[1]).abs().max() < 1e-4
        assert torch.equal(found[2].sort().values, wanted[2].sort().values)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_int8_of_a_detector(detector: Path, trained: Path, few_scenes: Path, tmp_path: Path) -> None:
    """What is chosen and measured is noted, any size still goes in, and a limit of -1 leaves no file."""
    words = [trained, tmp_path / "small.onnx", "--int8", few_scenes, "--calibration", 4]
    assert export_main([*map(str, words), "--max-drop", "-1"]) == 3
    assert not list(tmp_path.iterdir())
    assert export_main([*map(str, words), "--max-drop", "100"]) == 0
    opened = open_exported(tmp_path / "small.onnx")
    facts = dict(opened.metadata.int8 or {})
    assert opened.metadata.precision == "int8" and (facts["calibration"], facts["pictures"]) == (4, 4)
    assert facts["scores"] == ["ap50", "mask_ap50"] and {"ap50_float", "ap50", "mask_ap50"} <= facts.keys()
    assert facts["groups"]["neck"]["operations"] == 8 and facts["groups"]["last layers of heads"]["operations"] == 13
    assert any(group["int8"] for group in facts["groups"].values()) and facts["error"] < 0.1
    kinds = {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert {"QuantizeLinear", "NonMaxSuppression", "RoiAlign"} <= kinds
    assert opened(torch.randn(2, 3, 61, 130))[0].shape[:1] == (2,)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_command_writes_a_segmentor_of_any_size(segmentor_weights: Path, tmp_path: Path) -> None:
    """Labels are equal on 99.9 % of the pixels."""
    words = [segmentor_weights, tmp_path / "model.onnx", "--config", SEGMENTOR, "--preprocess"]
    assert export_main([*map(str, words)]) == 0
    opened, theirs = load(tmp_path / "model.onnx"), Predictor(SEGMENTOR, segmentor_weights, device="cpu")
    draws = np.random.default_rng(1)
    for size in ((33, 47), (101, 64), (129, 255), (64, 48), (300, 201)):
        picture = cv2.resize(draws.integers(0, 256, (6, 6, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
        one, other = opened.predict(picture), theirs.predict(picture)
        assert one.labels.shape == size[::-1]
        assert (one.labels != other.labels).mean() <= 1e-3
    program = openmmlab_program(SEGMENTOR, segmentor_weights, ExportOptions())
    images_of, drawn = program.images, random.Random(24)
    assert images_of is not None
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (program.metadata.mean, program.metadata.std))
    for seed in range(12):
        size = (drawn.randint(1, 3), drawn.randint(33, 512) | 1, drawn.randint(33, 512))
        images = images_of(size, torch.Generator().manual_seed(seed)).mul(50).add(120).clamp(0, 255).byte()
        labels, wanted = opened.model(images)[0], program.compute((images / 255 - mean) / std)[0]
        assert len(wanted.unique()) > 1 and (labels != wanted).double().mean() <= 1e-3


def average_precision(predictor: Any, data: Path, kinds: tuple[str, ...]) -> list[float]:
    """AP50 of each kind by COCO's evaluation, over the held-out scenes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(data / "annotations" / "instances_val2017.json"))
    rows = []
    for number, image in truth.imgs.items():
        for one in predictor.predict(data / "val2017" / image["file_name"]).to_json()["objects"]:
            x1, y1, x2, y2 = one["box"]
            row = {"image_id": number, "category_id": int(one["class"]) + 1, "score": one["score"]}
            rows.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": one["mask"]})
    found = []
    for kind in kinds:
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        found.append(float(evaluation.stats[1]))
    return found


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_trained_detector_loses_no_precision(tmp_path: Path) -> None:
    """Boxes and masks of an export are within 0.002 of the checkpoint's AP50 on held-out scenes."""
    from davit.data import write_scenes
    from davit.openmmlab.cli import train_main

    data, config_file = write_scenes(tmp_path / "scenes"), DET / "davit_nano_maskrcnn_digits.py"
    words = [config_file, "--data-root", data, "--work-dir", tmp_path / "run", "--seed", "0", "--no-validate"]
    assert train_main([*map(str, words), "--cfg-options", "train_cfg.max_epochs=1"]) == 0
    words = [tmp_path / "run" / "epoch_1.pth", tmp_path / "model.onnx", "--config", config_file]
    assert export_main([*map(str, words)]) == 0
    theirs = Predictor(config_file, tmp_path / "run" / "epoch_1.pth", 0.0, "cpu")
    ours = ExportedDetector(tmp_path / "model.onnx", 0.0)
    kinds = ("bbox", "segm")
    wanted = average_precision(theirs, data, kinds)
    assert min(wanted) > 0.01, "nothing was learned, so nothing is compared"
    for one, other in zip(average_precision(ours, data, kinds), wanted, strict=True):
        assert abs(one - other) <= 0.002
