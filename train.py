#!/usr/bin/env python3
"""Train DaViT, or any model that timm knows, on an image folder; see `python train.py --help`.

python train.py                                         # handwritten digits, two minutes on two cores
torchrun --nproc_per_node=8 train.py DIR --model DaViT_tiny --batch-size 128 --lr 1e-3 --amp --clip-grad 1.0
python train.py DIR -c configs/davit_tiny_224.yaml      # a recipe
"""

import os
import sys

# Before torch is loaded: threads that spin while they wait, beside a loader process on few cores, make both
# many times slower (docs/training.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from davit.engine.train import main

if __name__ == "__main__":
    sys.exit(main())
