# Mask R-CNN, DaViT_small, 3x (36 epochs).
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_small_maskrcnn_3x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: box mAP 49.5, mask mAP 44.3 (published, not re-run here).
_base_ = "./davit_maskrcnn_3x_coco.py"
model = dict(backbone=dict(variant="DaViT_small"))
