# Mask2Former, DaViT_base_fl, 160,000 iterations.
# Command:  bash tools/dist_train.sh THIS 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
# FILE: a Florence-2 base vision tower; `davit checkpoint inspect FILE` says whether it is one.
_base_ = "./mask2former_davit_512x512_160k_ade20k.py"
model = dict(
    backbone=dict(variant="DaViT_base_fl", drop_path_rate=0.3),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
)
