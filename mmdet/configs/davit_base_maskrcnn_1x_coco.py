# Mask R-CNN, DaViT_base, 1x (12 epochs).
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_base_maskrcnn_1x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: box mAP 48.2, mask mAP 43.3 (published, not re-run here).
_base_ = "./davit_maskrcnn_1x_coco.py"
model = dict(
    backbone=dict(variant="DaViT_base"),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
