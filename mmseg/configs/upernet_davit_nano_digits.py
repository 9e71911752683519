# UPerNet, DaViT_nano, on scenes of handwritten digits: what `make demo-seg` runs. Not from the paper.
# Command:  python tools/train.py THIS
# Hardware: two CPU cores, 7 minutes.
# Expected: mIoU 65.9 (seed 0, n = 1), see benchmarks/results/digit_scenes_segmentation.
_base_ = "./_base_/nano_from_scratch.py"

data_root = "data/scenes/"  # written by python -m davit.data scenes
metainfo = dict(
    classes=("ground", *"0123456789"),
    palette=[
        *([0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]),
        *([145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [170, 110, 40]),
    ],
)
weights = [0.3] + [1.0] * 10  # nine tenths of the pixels are ground

crop_size = (96, 96)  # with less ground in it than the whole image, and twice as many of them

model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(loss_decode=dict(class_weight=weights)),
    auxiliary_head=dict(loss_decode=dict(class_weight=weights)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.85),  # no flip: a digit's mirror image is none
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
own = dict(data_root=data_root, img_suffix=".png", metainfo=metainfo)
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        **own, data_prefix=dict(img_path="train2017", seg_map_path="masks/train2017"), pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    dataset=dict(**own, data_prefix=dict(img_path="val2017", seg_map_path="masks/val2017"), pipeline=test_pipeline),
)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

optim_wrapper = dict(optimizer=dict(lr=4e-3))
auto_scale_lr = dict(base_batch_size=16)
train_cfg = dict(max_iters=1800, val_interval=1800)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=50, end=1800, eta_min=1e-5),
]
default_hooks = dict(checkpoint=dict(interval=1800, max_keep_ckpts=1))
