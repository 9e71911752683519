# UPerNet, DaViT_nano, on CamVid at 320 x 240, from random weights. Not from the paper.
# Command:  python tools/train.py THIS --data-root DIR (DIR holds train/, trainannot/, val/ and valannot/)
# Hardware: two CPU cores, 3 minutes.
# Expected: mIoU 35.1 (seed 0, n = 1), see benchmarks/results/camvid; again: python benchmarks/camvid.py CAMVID_DIR
_base_ = "./_base_/nano_from_scratch.py"

data_root = "data/camvid"
classes = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
palette = [
    *([128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0]),
    *([192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]),
]
scale, crop_size = (320, 240), (144, 176)

model = dict(data_preprocessor=dict(size=crop_size), backbone=dict(drop_path_rate=0.05))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
camvid = dict(
    data_root=data_root,
    img_suffix=".png",
    ignored_labels=[11],  # void
    metainfo=dict(classes=classes, palette=palette),
)
train_dataloader = dict(
    dataset=dict(**camvid, data_prefix=dict(img_path="train", seg_map_path="trainannot"), pipeline=train_pipeline),
)
val_dataloader = dict(
    dataset=dict(**camvid, data_prefix=dict(img_path="val", seg_map_path="valannot"), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(320 * r), int(240 * r)), keep_ratio=True)
                for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

train_cfg = dict(max_iters=600, val_interval=600)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=30, end=600),
]
default_hooks = dict(checkpoint=dict(interval=600, max_keep_ckpts=1))
