# The neck reads three levels, so the backbone returns three: a norm of a fourth would get no gradient.
_base_ = ["mmdet::_base_/models/retinanet_r50_fpn.py", "./coco_boxes.py"]
model = dict(
    backbone=dict(_delete_=True, type="DaViT", variant="DaViT_tiny", drop_path_rate=0.1, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
