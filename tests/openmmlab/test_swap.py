"""DaViT in the place of other backbones: levels by stride, widths behind them, images as its weights need them."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet")
import davit.openmmlab  # noqa: F401
from davit.commands import OK, USER_ERROR
from davit.openmmlab import bridge
from davit.openmmlab.cli import train_main
from davit.openmmlab.config import read_config
from davit.openmmlab.flops import main as flops_main
from davit.openmmlab.swap import swap_backbone
from davit.variants import VARIANTS

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
NANO = list(VARIANTS["DaViT_nano"].embed_dims)


def swapped(name: str, variant: str = "DaViT_nano") -> Any:
    cfg = read_config(name)
    swap_backbone(cfg, variant)
    return cfg


def test_a_neck_over_four_levels() -> None:
    cfg = swapped("mmdet::mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py")
    assert cfg.model.backbone == {"type": "DaViT", "variant": "DaViT_nano"}
    assert cfg.model.neck.in_channels == NANO
    assert cfg.model.rpn_head.in_channels == 256  # of the neck's own maps
    given = cfg.model.data_preprocessor  # the Caffe backbone took BGR without a std
    assert given.bgr_to_rgb is True and given.std == [58.395, 57.12, 57.375] and given.mean[0] == 123.675


def test_levels_that_the_neck_does_not_read_are_not_made() -> None:
    cfg = swapped("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py")
    assert cfg.model.backbone.out_indices == [1, 2, 3]
    assert cfg.model.neck.in_channels == NANO[1:] and cfg.model.neck.start_level == 0
    assert cfg.model.neck.add_extra_convs == "on_input" and cfg.model.neck.num_outs == 5


@pytest.mark.parametrize(
    ("name", "levels", "where"),
    [
        ("mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py", [1, 2, 3], "neck"),
        ("mmdet::detr/detr_r50_8xb2-150e_coco.py", [3], "neck"),
        ("mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py", [3], "neck"),
        ("mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py", [1, 2, 3], "neck"),
        ("mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py", [0, 1, 2, 3], "panoptic_head"),
        ("mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py", [0, 1, 2, 3], "decode_head"),
    ],
)
def test_what_reads_the_maps_has_their_widths(name: str, levels: list[int], where: str) -> None:
    cfg = swapped(name)
    assert list(cfg.model.backbone.get("out_indices", [0, 1, 2, 3])) == levels
    found = cfg.model[where].in_channels
    assert (found if isinstance(found, list) else [found]) == [NANO[level] for level in levels]


def test_heads_that_read_one_of_several_maps(caplog: pytest.LogCaptureFixture) -> None:
    """A dilated ResNet has strides 4, 8, 8, 8; DaViT's levels take their places, and the difference is said."""
    with caplog.at_level(logging.WARNING):
        cfg = swapped("mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py")
    assert cfg.model.decode_head.in_channels == NANO[3] and cfg.model.auxiliary_head.in_channels == NANO[2]
    assert cfg.model.backbone.out_indices == [2, 3]  # nothing reads the others
    assert (cfg.model.decode_head.in_index, cfg.model.auxiliary_head.in_index) == (1, 0)
    assert "pretrained" not in cfg.model  # of the ResNet
    assert any("[4, 8, 8, 8]" in record.getMessage() for record in caplog.records)


def test_a_head_that_reads_the_first_map_too() -> None:
    cfg = swapped("mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py")
    assert cfg.model.decode_head.in_channels == NANO[3] and cfg.model.decode_head.c1_in_channels == NANO[0]
    assert cfg.model.backbone.out_indices == [0, 2, 3] and cfg.model.decode_head.in_index == 2


def test_another_size_of_a_config_of_ours() -> None:
    cfg = read_config("upernet_davit_512x512_160k_ade20k")
    cfg.model.backbone.frozen_stages = 1
    swap_backbone(cfg, "DaViT_base")
    widths = list(VARIANTS["DaViT_base"].embed_dims)
    assert cfg.model.backbone.variant == "DaViT_base" and cfg.model.backbone.frozen_stages == 1
    assert cfg.model.decode_head.in_channels == widths and cfg.model.auxiliary_head.in_channels == widths[2]


def test_arguments_that_are_not_taken_over_are_named(caplog: pytest.LogCaptureFixture) -> None:
    cfg = read_config("davit_maskrcnn_1x_coco")
    cfg.model.backbone.window_size = 12
    with caplog.at_level(logging.WARNING):
        swap_backbone(cfg, "DaViT_nano")
    assert "window_size" not in cfg.model.backbone and cfg.model.backbone.drop_path_rate == 0.1
    assert any("window_size" in record.getMessage() for record in caplog.records)


def test_weights_of_the_other_backbone_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    cfg = read_config("mmdet::atss/atss_r50_fpn_1x_coco.py")
    cfg.load_from = "https://elsewhere/detector.pth"
    with caplog.at_level(logging.WARNING):
        swap_backbone(cfg, "DaViT_nano")
    assert cfg.load_from is None and "https://elsewhere/detector.pth" in caplog.text
    assert "init_cfg" not in cfg.model.backbone


def test_what_cannot_be_swapped() -> None:
    cfg = read_config("mmdet::atss/atss_r50_fpn_1x_coco.py")
    with pytest.raises(ValueError, match="DaViT_nano"):
        swap_backbone(cfg, "DaViT_nanno")
    cfg.model.backbone.depth = 51
    with pytest.raises(ValueError, match="ResNet"):
        swap_backbone(cfg, "DaViT_nano")
    del cfg.model["backbone"]
    with pytest.raises(ValueError, match="ATSS"):
        swap_backbone(cfg, "DaViT_nano")


def test_names_of_installed_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="retinanet/retinanet_r50_fpn_1x_coco"):
        read_config("mmdet::retinanet/retinanet_r50_fpn_1x_cocoo")
    with pytest.raises(ValueError):
        read_config("mmdet::../../../setup")
    own = tmp_path / "own.py"
    own.write_text(
        '_base_ = "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"\n'
        'model = dict(backbone=dict(_delete_=True, type="DaViT", variant="DaViT_nano"),\n'
        f"             decode_head=dict(in_channels={NANO}))\n"
    )
    assert flops_main([str(own), "--shape", "64"]) == OK
    assert "decode_head" in capsys.readouterr().out


def test_the_tools_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        flops_main(["mmdet::retinanet/retinanet_r50_fpn_1x_coco", "--backbone", "DaViT_nano", "--shape", "64"]) == OK
    )
    assert "backbone" in capsys.readouterr().out
    assert train_main(["mmdet::retinanet/retinanet_r50_fpn_1x_coco", "--backbone", "resnet"]) == USER_ERROR


def test_the_readme_lists_the_operators() -> None:
    sys.path.insert(0, str(REPOSITORY / "mmdet/tools"))
    import compare_ops

    assert compare_ops.table() in (REPOSITORY / "mmdet/README.md").read_text()
    assert set(bridge.SERVED) < set(compare_ops.operators()) | {"nms", "softnms"}
    assert all(any(name.startswith(stem) for stem in compare_ops.BY) for name in bridge.SERVED)


@pytest.mark.long
def test_configs_of_the_libraries_train_and_predict() -> None:
    """Finite loss, every gradient of the backbone, a prediction."""
    import openmmlab_zoo

    sys.argv = ["openmmlab_zoo.py"]
    assert openmmlab_zoo.main() == 0
