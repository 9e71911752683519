# Cascade Mask R-CNN, DaViT_base_fl, 3x (36 epochs).
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_base_fl_cascade_maskrcnn_3x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
_base_ = "./davit_cascade_maskrcnn_3x_coco.py"
model = dict(
    backbone=dict(variant="DaViT_base_fl"),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
