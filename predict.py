#!/usr/bin/env python3
"""Say what is in pictures: ``python predict.py PICTURE|FOLDER|- --checkpoint FILE``; see ``--help``.

python predict.py cat.jpg --model DaViT_tiny --pretrained         # published weights
python predict.py FOLDER --checkpoint FILE --format csv > predictions.csv
find . -name '*.png' | python predict.py - --checkpoint FILE      # or a picture's bytes
"""

import os
import sys

# Before torch is loaded, as in train.py (docs/training.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from davit.predict.cli import main

if __name__ == "__main__":
    sys.exit(main())
