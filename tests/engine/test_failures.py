"""What must stop a run: a full disk, a number that is not finite."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davit.engine.run_folder import RunFolder, read_state
from tests.engine.runs import environment, run_here

Train = Callable[..., subprocess.CompletedProcess[str]]
SHORT = ["--epochs", "3", "--warmup-epochs", "1", "--cooldown-epochs", "0", "--batch-size", "8", "--workers", "0"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs may not be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_the_old_checkpoints_whole(train: Train, small_disk: Path) -> None:
    flags = [*SHORT, "--output", str(small_disk), "--experiment", "a", "--recovery-interval", "1"]
    first = train(*flags, "--epochs", "1")
    assert first.returncode == 0, first.stderr
    size = (small_disk / "a/last.pth.tar").stat().st_size
    (small_disk / "filler").write_bytes(b"x" * max(0, _room(small_disk) - size // 2))
    result = train(*flags, "--auto-resume")
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr
    assert not list((small_disk / "a").glob(".*.partial"))
    for file in (small_disk / "a").glob("*.pth.tar"):
        read_state(file)
    (small_disk / "filler").unlink()
    assert train(*flags, "--auto-resume").returncode in (0, 4)


def _room(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def test_a_nan_pixel_is_caught_on_its_step(train: Train, tmp_path: Path) -> None:
    # a picture file cannot hold a NaN, a normalisation can make one: std so small that a pixel overflows
    result = train(*SHORT, "--output", "runs", "--experiment", "a", "--std", "1e-45", "1", "1")
    assert result.returncode == 3, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "nonfinite-e0-s0-r0.pt" in line]
    assert "input" in line
    (dump,) = (tmp_path / "runs/a").glob("nonfinite*.pt")
    assert not torch.isfinite(torch.load(dump, weights_only=True)["images"]).all()


def test_a_diverging_run_keeps_its_last_good_checkpoint(train: Train, tmp_path: Path) -> None:
    flags = [*SHORT, "--output", "runs", "--experiment", "a", "--opt", "sgd", "--mixup", "0", "--cutmix", "0"]
    flags += ["--recovery-interval", "1", "--lr", "1e30", "--warmup-epochs", "0"]
    result = train(*flags)
    assert result.returncode == 3, result.stderr
    assert "last.pth.tar" in result.stderr
    weights = read_state(tmp_path / "runs/a/last.pth.tar")["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_held_folder_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ValueError, match="--experiment"):
        RunFolder(tmp_path / "run")
    folder.close()
    RunFolder(tmp_path / "run").close()


def test_a_killed_run_lets_its_folder_go_though_its_children_live(tmp_path: Path) -> None:
    script = (
        "import os, time; from pathlib import Path; from davit.engine.run_folder import RunFolder\n"
        f"folder = RunFolder(Path({str(tmp_path / 'run')!r}))\n"
        "pid = os.fork()\n"
        "if pid: print(pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(ValueError, match="--experiment"):
                RunFolder(tmp_path / "run")
            process.kill()
            process.wait()
            os.kill(child, 0)  # still there
            RunFolder(tmp_path / "run").close()
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_sixteen_bit_pictures_train(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                pixels = np.full((16, 16), 40_000 if name == "a" else 2_000, dtype=np.uint16)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    result = run_here(tmp_path, *SHORT, "--epochs", "1", "--output", "runs", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
