"""Today's heads learn eight digit scenes by heart over DaViT_nano on the CPU; and start in two processes."""

import json
from pathlib import Path

import pytest

from davit.data import scenes
from davit.openmmlab.cli import train_main
from tests.openmmlab.conftest import DET, DET_TOOLS, Go, shell

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

_DATA = """
_base_ = {base!r}
metainfo = dict(classes=tuple("0123456789"))
load = [dict(type="LoadImageFromFile")]
boxes = dict(type="LoadAnnotations", with_bbox=True, with_mask={masks})
size = dict(type="Resize", scale=(128, 128), keep_ratio=True)
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
learn = [*load, boxes, dict(type="PackDetInputs")]
judge = [*load, size, boxes, dict(type="PackDetInputs", meta_keys=keys)]
place = dict(data_root={root!r}, ann_file="eight.json", data_prefix=dict(img="train2017/"), metainfo=metainfo)
loader = dict(batch_size=8, num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader, dataset=dict(**place, pipeline=learn))
val_dataloader = dict(**loader, dataset=dict(**place, pipeline=judge))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={root!r} + "eight.json", metric="bbox")
test_evaluator = val_evaluator
optim_wrapper = dict(
    optimizer=dict(lr={lr}, weight_decay=0.0),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(_delete_=True, bypass_duplicate=True),  # no lower rate: the backbone has nothing to keep
)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1000, max_keep_ckpts=1, save_best=None))
custom_hooks = []
"""
_BY_EPOCH = """
train_cfg = dict(max_epochs={steps}, val_interval={steps})
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end={steps}, eta_min=1e-5),
]
"""
_BACKBONE = 'backbone=dict(variant="DaViT_nano", drop_path_rate=0.0)'

HEADS = {
    "dino": (
        "davit_dino_1x_coco.py",
        f"""
ffn = dict(embed_dims=64, feedforward_channels=128)
model = dict(
    {_BACKBONE},
    neck=dict(in_channels=[64, 128, 160], out_channels=64, norm_cfg=dict(num_groups=8)),
    num_queries=30,
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=dict(embed_dims=64), ffn_cfg=ffn)),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=64), cross_attn_cfg=dict(embed_dims=64), ffn_cfg=ffn
        ),
    ),
    positional_encoding=dict(num_feats=32),
    bbox_head=dict(num_classes=10, embed_dims=64),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    test_cfg=dict(max_per_img=100),
)
"""
        + _BY_EPOCH,
        {"lr": 1e-3, "steps": 200, "masks": False},
    ),
    "mask2former": (
        "davit_mask2former_50e_coco.py",
        f"""
model = dict(
    {_BACKBONE},
    data_preprocessor=dict(batch_augments=[dict(type="BatchFixedSizePad", size=(128, 128), pad_mask=True)]),
    panoptic_head=dict(
        in_channels=[32, 64, 128, 160],
        feat_channels=64,
        out_channels=64,
        num_things_classes=10,
        num_queries=30,
        pixel_decoder=dict(
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=64),
                    ffn_cfg=dict(embed_dims=64, feedforward_channels=128),
                ),
            ),
            positional_encoding=dict(num_feats=32),
            norm_cfg=dict(num_groups=8),
        ),
        positional_encoding=dict(num_feats=32),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=64),
                cross_attn_cfg=dict(embed_dims=64),
                ffn_cfg=dict(embed_dims=64, feedforward_channels=128),
            ),
        ),
        loss_cls=dict(class_weight=[1.0] * 10 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=10),
    train_cfg=dict(num_points=1024),
)
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs={{steps}}, val_interval={{steps}})
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end={{steps}}, eta_min=1e-5),
]
log_processor = dict(by_epoch=True)
""",
        {"lr": 1e-3, "steps": 300, "masks": True},
    ),
    "cascade": (
        "davit_cascade_maskrcnn_3x_coco.py",
        f"""
head = dict(
    type="Shared2FCBBoxHead",
    in_channels=64,
    fc_out_channels=128,
    num_classes=10,
    reg_class_agnostic=True,
    loss_bbox=dict(type="SmoothL1Loss", beta=1.0),
)
deviations = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
coders = [dict(type="DeltaXYWHBBoxCoder", target_stds=one) for one in deviations]
model = dict(
    {_BACKBONE},
    neck=dict(in_channels=[32, 64, 128, 160], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[5])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=[dict(**head, bbox_coder=one) for one in coders],
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=1, in_channels=64, conv_out_channels=32, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=50),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50)),
)
"""
        + _BY_EPOCH,
        {"lr": 1e-3, "steps": 120, "masks": True},
    ),
    "rtmdet": (
        "davit_nano_rtmdet_digits.py",
        "model = dict(backbone=dict(drop_path_rate=0.0))\n" + _BY_EPOCH,
        {"lr": 2e-3, "steps": 160, "masks": False},
    ),
}


def config_of(head: str, root: Path, file: Path, **changes: object) -> Path:
    base, text, values = HEADS[head]
    given = {"base": str(DET / base), "root": f"{root}/", **values, **changes}
    file.write_text(_DATA.format(**given) + text.format(**given))
    return file


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes, which are learnt and judged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "COUNTS", {"train": 8, "val": 1})
        root = scenes.write_scenes(tmp_path_factory.mktemp("eight") / "coco")
    (root / "annotations/instances_train2017.json").rename(root / "eight.json")
    return root


@pytest.mark.parametrize("head", HEADS)
def test_a_head_learns_eight_scenes_by_heart(go: Go, eight: Path, tmp_path: Path, head: str) -> None:
    go(train_main, config_of(head, eight, tmp_path / "eight.py"), "--work-dir", tmp_path / "out", "--seed", "0")
    (file,) = (tmp_path / "out").glob("*/vis_data/scalars.json")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["coco/bbox_mAP_50"] for line in found if "coco/bbox_mAP_50" in line][-1] >= 0.9


@pytest.mark.parametrize("head", HEADS)
def test_two_processes(eight: Path, tmp_path: Path, head: str) -> None:
    file = config_of(head, eight, tmp_path / "two.py", steps=22)
    options = ["--cfg-options", "train_dataloader.batch_size=2", "train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
    words = [DET_TOOLS / "dist_train.sh", file, 2, "--work-dir", tmp_path / "out", "--seed", "0"]
    said = shell(*words, *options, cwd=tmp_path)
    assert "bbox_mAP_50" in said
