"""Jobs of several processes that tests start and end."""

import contextlib
import os
import signal
import subprocess


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, at once: torchrun gives each of its processes a session of its own."""
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in map(int, children.stdout.split()):
        kill_tree(child)
