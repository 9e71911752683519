"""Start the command `davit`, which pip puts on the path, and the scripts of a clone; davit/cli.py does the work.

It lies outside of the package because importing `davit` loads PyTorch, which takes seconds. Where `davit` finds this
module loaded it leaves that to the commands, so that help and mistakes are answered at once.
"""

from davit.cli import main, run_script, run_tool

__all__ = ["main", "run_script", "run_tool"]
