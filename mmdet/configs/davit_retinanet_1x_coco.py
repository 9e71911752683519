# RetinaNet, DaViT_tiny, 1x (12 epochs).
# Command, in mmdet/:
#   bash tools/dist_train.sh configs/davit_retinanet_1x_coco.py 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: box mAP 44.0 (published, not re-run here).
_base_ = ["./_base_/retinanet.py", "./_base_/schedule_1x.py"]
