# RTMDet, DaViT_nano, on scenes of handwritten digits. Not from the paper.
# Command:  python tools/train.py configs/davit_nano_rtmdet_digits.py
_base_ = "./_base_/rtmdet.py"

data_root = "data/scenes/"  # written by python -m davit.data scenes
metainfo = dict(classes=tuple("0123456789"))
width = 64
norm_cfg = dict(type="GN", num_groups=8)

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),  # so that maps of two levels fit each other
    backbone=dict(variant="DaViT_nano", drop_path_rate=0.05),
    neck=dict(in_channels=[64, 128, 160], out_channels=width, num_csp_blocks=1, norm_cfg=norm_cfg),
    bbox_head=dict(num_classes=10, in_channels=width, feat_channels=width, norm_cfg=norm_cfg),
    test_cfg=dict(nms_pre=1000, score_thr=0.01, max_per_img=100),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=5, val_interval=5, dynamic_intervals=None)
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=50, end=1500, eta_min=1e-5),
]
custom_hooks = []  # no average of the weights and no second pipeline in so few steps
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(interval=15), checkpoint=dict(max_keep_ckpts=1))
