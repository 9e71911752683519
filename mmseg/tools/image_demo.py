#!/usr/bin/env python3
"""Draw segments: ``python tools/image_demo.py IMAGE|FOLDER CONFIG CHECKPOINT [--out-dir DIR]``."""

import sys

from davit_command import run_tool  # answers help and mistakes in the flags before PyTorch is loaded

if __name__ == "__main__":
    sys.exit(run_tool("demo"))
