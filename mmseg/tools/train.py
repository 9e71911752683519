#!/usr/bin/env python3
"""Train a segmentor: ``python tools/train.py CONFIG``; on several GPUs: ``bash tools/dist_train.sh CONFIG GPUS``."""

import sys

from davit.openmmlab.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
