# SegFormer's head, DaViT_small, 160,000 iterations.
# Command:  bash tools/dist_train.sh THIS 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
_base_ = "./segformer_davit_512x512_160k_ade20k.py"
model = dict(
    backbone=dict(variant="DaViT_small", drop_path_rate=0.2),
)
