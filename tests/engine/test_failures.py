"""What must stop a run: a full disk, a number that is not finite."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from davit.data.transforms import ToNormalizedTensor
from davit.engine.run_folder import RunFolder, read_state
from tests.engine.runs import SHORT, Train, environment


def test_full_disk_keeps_the_old_checkpoints_whole(train: Train, small_disk: Path) -> None:
    flags = [*SHORT, "--epochs", "3", "--output", str(small_disk), "--recovery-interval", "1"]
    train(*flags, "--epochs", "1")
    size = (small_disk / "a/last.pth.tar").stat().st_size
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - size // 2)))
    result = train(*flags, "--auto-resume", status=4)
    assert "Traceback" not in result.stderr
    assert not list((small_disk / "a").glob(".*.partial"))
    for file in (small_disk / "a").glob("*.pth.tar"):
        read_state(file)
    (small_disk / "filler").unlink()
    assert train(*flags, "--auto-resume", status=None).returncode in (0, 4)


def test_a_nan_pixel_is_caught_on_its_step(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image file holds a NaN, but a transform of one's own may make one."""
    normalise = ToNormalizedTensor.__call__
    monkeypatch.setattr(ToNormalizedTensor, "__call__", lambda self, image: normalise(self, image) * float("nan"))
    result = train(*SHORT, status=3)
    (line,) = [line for line in result.stderr.splitlines() if "nonfinite-e0-s0-r0.pt" in line]
    assert "input" in line
    (dump,) = (tmp_path / "runs/a").glob("nonfinite*.pt")
    assert not torch.isfinite(torch.load(dump, weights_only=True)["images"]).all()


def test_a_diverging_run_keeps_its_last_good_checkpoint(train: Train, tmp_path: Path) -> None:
    flags = ["--opt", "sgd", "--mixup", "0", "--cutmix", "0", "--recovery-interval", "1", "--warmup-epochs", "0"]
    result = train(*SHORT, *flags, "--lr", "1e4", status=3)
    assert "last.pth.tar" in result.stderr
    weights = read_state(tmp_path / "runs/a/last.pth.tar")["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_killed_run_lets_its_folder_go_though_its_children_live(tmp_path: Path) -> None:
    """And a fresh interpreter that imports the log of a run pays for none of what only some runs need."""
    script = (
        "import os, sys, time; from pathlib import Path; from davit.engine import run_folder, run_log\n"
        f"folder = run_folder.RunFolder(Path({str(tmp_path / 'run')!r}))\n"
        "pid = os.fork()\n"
        "if pid: print(pid, *{'matplotlib', 'tensorboard', 'wandb'} & {*sys.modules}, flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child, *loaded = process.stdout.readline().split()
        try:
            assert loaded == []
            with pytest.raises(ValueError, match="--experiment"):
                RunFolder(tmp_path / "run")
            process.kill()
            process.wait()
            os.kill(int(child), 0)  # still there
            folder = RunFolder(tmp_path / "run")
            with pytest.raises(ValueError, match="--experiment"):  # nor does one process hold it twice
                RunFolder(tmp_path / "run")
            folder.close()
            RunFolder(tmp_path / "run").close()
        finally:
            process.kill()
            os.kill(int(child), signal.SIGKILL)
