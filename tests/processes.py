"""Jobs of several processes that tests start and end."""

import contextlib
import os
import signal
import socket
import subprocess


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, at once: torchrun gives each of its processes a session of its own."""
    started = children(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in started:
        kill_tree(child)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
