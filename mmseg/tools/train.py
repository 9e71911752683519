#!/usr/bin/env python3
"""Train a segmentor: ``python tools/train.py CONFIG``; on several GPUs: ``bash tools/dist_train.sh CONFIG GPUS``."""

import os
import sys

# Before torch is loaded: threads that spin while they wait slow one another down (docs/training.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from davit.openmmlab.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
