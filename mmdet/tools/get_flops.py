#!/usr/bin/env python3
"""Count parameters and FLOPs: ``python tools/get_flops.py CONFIG ... [--shape HEIGHT WIDTH]``."""

import sys

from davit.openmmlab.flops import main

if __name__ == "__main__":
    sys.exit(main())
