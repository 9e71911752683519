"""`davit det train` that sends itself a signal (tests/engine/dying.py)."""

import sys

from davit.detect.cli import train_main
from tests.engine.dying import armed

armed()
sys.exit(train_main())
