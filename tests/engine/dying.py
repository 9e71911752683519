"""train.py that sends itself a signal: DIE=NUMBER,STEPS,SECONDS is which, after how many steps, how much later.

Told from outside, the signal would come at a moment that the load of the machine decides, or never.
"""

import os
import sys
import threading
from typing import Any

from davit.engine.steps import Stepper
from davit.engine.train import main


def armed() -> None:
    """Let the steps of this process be counted from now on."""
    number, steps, seconds = os.environ["DIE"].split(",")
    if os.getpgrp() != os.getpid():
        os.setsid()  # the loader's processes get the signal too, and nobody else
    done = 0
    step = Stepper.step

    def counted(self: Stepper, *rest: Any) -> Any:
        nonlocal done
        result = step(self, *rest)
        done += 1
        if done == int(steps):
            threading.Timer(float(seconds), os.killpg, (os.getpgrp(), int(number))).start()
        return result

    Stepper.step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    armed()
    sys.exit(main())
