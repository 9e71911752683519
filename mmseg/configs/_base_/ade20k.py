# ADE20K and its augmentation, in training and at test time.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/datasets/ade20k.py"  # why: see schedule_160k.py

data_root = "{{ fileDirname }}/../../data/ade/ADEChallengeData2016"
scale = (2048, 512)  # the short side is 512, unless the long one would pass 2048
crop_size = (512, 512)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),  # after the resize: predictions are scaled back and compared at full size
    dict(type="PackSegInputs"),
]
# --aug-test: six ratios of the scale above (not of the image's own size), each flipped too.
img_ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in img_ratios],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

# Masks hold 0 for "none of the classes" and 1..150 for the classes. With reduce_zero_label 0 becomes 255, which
# neither the loss nor the metric counts, and 1..150 become 0..149; --format-only writes 1..150 again. Masks that
# number their classes from 0, as most others do, need False.
reduce_zero_label = True

train_dataloader = dict(
    batch_size=2,
    dataset=dict(data_root=data_root, pipeline=train_pipeline, reduce_zero_label=reduce_zero_label),
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, pipeline=test_pipeline, reduce_zero_label=reduce_zero_label),
)
test_dataloader = val_dataloader
