#!/usr/bin/env python3
"""Say what is in pictures: ``python predict.py PICTURE|FOLDER|- --checkpoint FILE``; see ``--help``.

python predict.py cat.jpg --model DaViT_tiny --pretrained         # published weights
python predict.py FOLDER --checkpoint FILE --format csv > predictions.csv
find . -name '*.png' | python predict.py - --checkpoint FILE      # or a picture's bytes
"""

import sys

from davit_command import run_script  # answers help and mistakes in the flags before PyTorch is loaded

if __name__ == "__main__":
    sys.exit(run_script("predict"))
