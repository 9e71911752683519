# Cascade Mask R-CNN, DaViT_tiny, 3x (36 epochs).
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_cascade_maskrcnn_3x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
_base_ = ["./_base_/cascade_mask_rcnn.py", "./_base_/schedule_3x.py"]
model = dict(backbone=dict(drop_path_rate=0.2))
