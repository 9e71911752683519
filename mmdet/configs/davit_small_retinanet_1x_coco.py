# RetinaNet, DaViT_small, 1x (12 epochs).
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_small_retinanet_1x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: box mAP 46.0 (published, not re-run here).
_base_ = "./davit_retinanet_1x_coco.py"
model = dict(backbone=dict(variant="DaViT_small"))
