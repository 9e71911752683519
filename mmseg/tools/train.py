#!/usr/bin/env python3
"""Train a segmentor: ``python tools/train.py CONFIG``; on several GPUs: ``bash tools/dist_train.sh CONFIG GPUS``."""

import sys

from davit_command import run_tool  # answers help and mistakes in the flags before PyTorch is loaded

if __name__ == "__main__":
    sys.exit(run_tool("train"))
