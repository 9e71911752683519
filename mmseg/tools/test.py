#!/usr/bin/env python3
"""Evaluate a segmentor: ``python tools/test.py CONFIG CHECKPOINT --eval mIoU``; ``dist_test.sh`` for more GPUs."""

import sys

from davit.openmmlab.cli import test_main

if __name__ == "__main__":
    sys.exit(test_main())
