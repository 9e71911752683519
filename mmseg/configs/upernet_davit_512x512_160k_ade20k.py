# UPerNet, DaViT_tiny, 160,000 iterations.
# Command:  bash tools/dist_train.sh THIS 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: mIoU 46.3 (published, not re-run here).
_base_ = ["./_base_/upernet_davit.py", "./_base_/ade20k.py", "./_base_/schedule_160k.py"]
