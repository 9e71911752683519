#!/usr/bin/env python3
"""Draw boxes and masks: ``python tools/image_demo.py IMAGE|FOLDER CONFIG CHECKPOINT [--out-dir DIR]``."""

import sys

from davit.openmmlab.demo import main

if __name__ == "__main__":
    sys.exit(main())
