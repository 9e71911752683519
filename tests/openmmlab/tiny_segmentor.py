# ruff: noqa: C408  (how configs are written)
# A segmentor of a few thousand parameters on masks of three classes, for tests.
_base_ = "../../mmseg/configs/upernet_davit_folders.py"
metainfo = dict(classes=("ground", "disc", "bar"))
model = dict(
    data_preprocessor=dict(size=(48, 64)),
    backbone=dict(
        embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=4, drop_path_rate=0.0
    ),
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=8, num_classes=3),
    auxiliary_head=dict(in_channels=24, channels=8, num_classes=3),
)
train_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
tiny = dict(img_suffix=".png", metainfo=metainfo, pipeline=train_pipeline)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(**tiny))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(**tiny))
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_cfg = dict(max_iters=8, val_interval=4)
param_scheduler = [dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=8)]
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
log_level = "WARNING"
