# UPerNet, DaViT_base, 160,000 iterations.
# Command:  bash tools/dist_train.sh THIS 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: mIoU 49.4 (published, not re-run here).
_base_ = "./upernet_davit_512x512_160k_ade20k.py"
model = dict(
    backbone=dict(variant="DaViT_base"),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
