_base_ = ["mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py", "./coco_masks.py"]
model = dict(
    backbone=dict(_delete_=True, type="DaViT", variant="DaViT_tiny", drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
