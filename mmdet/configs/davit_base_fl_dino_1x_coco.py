# DINO (4 scales), 1x (12 epochs), DaViT_base_fl.
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_base_fl_dino_1x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
# FILE: a Florence-2 base vision tower; `davit checkpoint inspect FILE` says whether it is one.
_base_ = "./davit_dino_1x_coco.py"
model = dict(
    backbone=dict(variant="DaViT_base_fl", drop_path_rate=0.3),
    neck=dict(in_channels=[256, 512, 1024]),
)
