# Data, augmentation, optimizer and runtime of all detectors here.
_base_ = ["mmdet::_base_/datasets/coco_detection.py", "mmdet::_base_/default_runtime.py"]
custom_imports = dict(imports=["davit.openmmlab"])
runner_type = "DaViTRunner"

data_root = "{{ fileDirname }}/../../data/coco/"

# Multi-scale training of DETR and Sparse R-CNN: resized, or resized, cropped and resized again.
flip = dict(type="RandomFlip", prob=0.5)
resize = dict(type="RandomChoiceResize", scales=[(480 + 32 * i, 1333) for i in range(11)], keep_ratio=True)
resize_or_crop = dict(
    type="RandomChoice",
    transforms=[
        [resize],
        [
            dict(type="RandomChoiceResize", scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True),
            dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
            resize,
        ],
    ],
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    flip,
    resize_or_crop,
    dict(type="PackDetInputs"),
]
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best="auto"))
