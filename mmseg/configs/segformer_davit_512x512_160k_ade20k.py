# SegFormer's head, DaViT_tiny, 160,000 iterations.
# Command:  bash tools/dist_train.sh THIS 8 --cfg-options model.pretrained=FILE
# Hardware: 8 GPUs x 2 images; other numbers with --auto-scale-lr.
# Expected: not published for DaViT, and not measured here.
_base_ = "./_base_/segformer_davit.py"
