# RTMDet-l's head, 100 epochs, DaViT_small.
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_small_rtmdet_100e_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 4 GPUs x 32 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
_base_ = "./davit_rtmdet_100e_coco.py"
model = dict(
    backbone=dict(variant="DaViT_small", drop_path_rate=0.2),
)
