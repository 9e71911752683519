#!/usr/bin/env python3
"""Evaluate DaViT, or any model that timm knows: ``python validate.py DIR --checkpoint FILE``.

DIR holds val/ (or validation/), one folder a class. On several processes: ``torchrun --nproc_per_node=N
validate.py ...``. ``--help`` lists the flags; davit/engine/validate.py does the work.
"""

import sys

from davit_command import run_script  # answers help and mistakes in the flags before PyTorch is loaded

if __name__ == "__main__":
    sys.exit(run_script("validate"))
