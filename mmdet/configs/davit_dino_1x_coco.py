# DINO (4 scales), 1x (12 epochs), DaViT_tiny.
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_dino_1x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
_base_ = "./_base_/dino.py"
