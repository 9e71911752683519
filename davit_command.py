"""Start the command `davit`, which pip puts on the path, and train.py, validate.py, predict.py; davit/cli.py works.

It lies outside of the package because importing `davit` loads PyTorch, which takes seconds. Where `davit` finds this
module loaded it leaves that to the commands, so that help and mistakes are answered at once.
"""

from davit.cli import main, run_script

__all__ = ["main", "run_script"]
