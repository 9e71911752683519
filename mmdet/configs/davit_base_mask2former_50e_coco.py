# Mask2Former (instances), 50 epochs, DaViT_base.
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_base_mask2former_50e_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
_base_ = "./davit_mask2former_50e_coco.py"
model = dict(
    backbone=dict(variant="DaViT_base", drop_path_rate=0.3),
    panoptic_head=dict(in_channels=[128, 256, 512, 1024]),
)
