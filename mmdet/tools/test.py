#!/usr/bin/env python3
"""Evaluate a detector: ``python tools/test.py CONFIG CHECKPOINT --eval bbox segm``; ``dist_test.sh`` for more GPUs."""

import sys

from davit_command import run_tool  # answers help and mistakes in the flags before PyTorch is loaded

if __name__ == "__main__":
    sys.exit(run_tool("test"))
