#!/usr/bin/env python3
"""Evaluate DaViT, or any model that timm knows: ``python validate.py DIR --checkpoint FILE``.

DIR holds val/ (or validation/), one folder a class. On several processes: ``torchrun --nproc_per_node=N
validate.py ...``. ``--help`` lists the flags; davit/engine/validate.py does the work.
"""

import os
import sys

# Before torch is loaded: threads that spin while they wait, beside a loader process on few cores, make both
# many times slower (docs/training.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from davit.engine.validate import main

if __name__ == "__main__":
    sys.exit(main())
