#!/usr/bin/env python3
"""Train DaViT, or any model that timm knows, on an image folder; see `python train.py --help`.

python train.py                                         # handwritten digits, two minutes on two cores
torchrun --nproc_per_node=8 train.py DIR --model DaViT_tiny --batch-size 128 --lr 1e-3 --amp --clip-grad 1.0
python train.py DIR -c configs/davit_tiny_224.yaml      # a recipe
"""

import sys

from davit_command import run_script  # answers help and mistakes in the flags before PyTorch is loaded

if __name__ == "__main__":
    sys.exit(run_script("train"))
