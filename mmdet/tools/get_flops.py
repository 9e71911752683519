#!/usr/bin/env python3
"""Count parameters and FLOPs: ``python tools/get_flops.py CONFIG ... [--shape HEIGHT WIDTH]``."""

import sys

from davit_command import run_tool  # answers help and mistakes in the flags before PyTorch is loaded

if __name__ == "__main__":
    sys.exit(run_tool("flops"))
