#!/usr/bin/env python3
"""Evaluate a segmentor: ``python tools/test.py CONFIG CHECKPOINT --eval mIoU``; ``dist_test.sh`` for more GPUs."""

import os
import sys

# Before torch is loaded: threads that spin while they wait slow one another down (docs/training.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from davit.openmmlab.cli import test_main

if __name__ == "__main__":
    sys.exit(test_main())
