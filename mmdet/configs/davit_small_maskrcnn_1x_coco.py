# Mask R-CNN, DaViT_small, 1x (12 epochs).
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_small_maskrcnn_1x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: box mAP 47.7, mask mAP 42.9 (published, not re-run here).
_base_ = "./davit_maskrcnn_1x_coco.py"
model = dict(backbone=dict(variant="DaViT_small"))
