# UPerNet, DaViT_small, 160,000 iterations.
# Command:  bash tools/dist_train.sh THIS 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: mIoU 48.8 (published, not re-run here).
_base_ = "./upernet_davit_512x512_160k_ade20k.py"
model = dict(backbone=dict(variant="DaViT_small"))
