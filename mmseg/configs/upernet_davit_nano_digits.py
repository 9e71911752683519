# UPerNet, DaViT_nano, on scenes of handwritten digits: what `make demo-seg` runs. Not from the paper.
# Command:  python tools/train.py THIS
# Hardware: two CPU cores.
# Expected: not measured yet.
_base_ = "./upernet_davit_folders.py"

data_root = "data/scenes/"  # written by python -m davit.data scenes
metainfo = dict(
    classes=("ground", *"0123456789"),
    palette=[
        *([0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]),
        *([145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [170, 110, 40]),
    ],
)
width = 64
weights = [0.3] + [1.0] * 10  # nine tenths of the pixels are ground

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        embed_dims=(32, 64, 128, 160), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 5), window_size=4, drop_path_rate=0.0
    ),
    decode_head=dict(
        in_channels=[32, 64, 128, 160], channels=width, num_classes=11, loss_decode=dict(class_weight=weights)
    ),
    auxiliary_head=dict(in_channels=128, channels=width, num_classes=11),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(128, 128), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(128, 128)),  # and no flip: a digit's mirror image is none
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
own = dict(data_root=data_root, img_suffix=".png", metainfo=metainfo)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        **own, data_prefix=dict(img_path="train2017", seg_map_path="masks/train2017"), pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(**own, data_prefix=dict(img_path="val2017", seg_map_path="masks/val2017"), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in (1.0, 1.25, 1.5)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

train_cfg = dict(max_iters=2400, val_interval=2400)
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=50, end=2400, eta_min=1e-5),
]
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=2400, max_keep_ckpts=1))
