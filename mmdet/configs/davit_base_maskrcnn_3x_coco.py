# Mask R-CNN, DaViT_base, 3x (36 epochs).
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_base_maskrcnn_3x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: box mAP 49.9, mask mAP 44.6 (published, not re-run here).
_base_ = "./davit_maskrcnn_3x_coco.py"
model = dict(
    backbone=dict(variant="DaViT_base"),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
