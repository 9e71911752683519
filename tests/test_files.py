"""Files are whole or not there: failing writers, a full disk, a kill."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from davit import files
from davit.files import write_atomically, write_bytes
from tests.engine.conftest import small_disk

__all__ = ["small_disk"]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_failing_writer_changes_nothing(tmp_path: Path, error: BaseException, existing: bool) -> None:
    file = tmp_path / "a.bin"
    if existing:
        file.write_bytes(b"old")

    def write(stream) -> None:  # type: ignore[no-untyped-def]
        stream.write(b"half" * 1000)
        assert [name for name in names(tmp_path) if name.startswith(".a.bin.") and name.endswith(".partial")]
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(file, write)
    assert caught.value is error
    assert names(tmp_path) == (["a.bin"] if existing else [])
    assert not existing or file.read_bytes() == b"old"


def test_content_is_synced_before_the_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, rename = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size
        events.append(kind)
        fsync(descriptor)

    def watched_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_rename)
    (tmp_path / "a").write_bytes(b"old, and longer")
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"12345")
    finally:
        os.umask(before)
    assert events == [5, "rename", "folder"]
    assert (tmp_path / "a").read_bytes() == b"12345"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640  # others may read what the umask allows


def test_full_disk_under_torch_save_is_still_called_a_full_disk(small_disk: Path) -> None:
    """By itself torch.save raises a RuntimeError about positions."""
    file = small_disk / "last.pth.tar"
    state = {"weights": torch.arange(10_000)}
    write_atomically(file, lambda stream: torch.save(state, stream))
    big = {f"weights{i}": torch.zeros(60_000) for i in range(6)}
    with pytest.raises(OSError) as caught:
        write_atomically(file, lambda stream: torch.save(big, stream))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(file)
    assert names(small_disk) == ["last.pth.tar"]
    assert torch.equal(torch.load(file, weights_only=True)["weights"], state["weights"])


def test_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    code = (
        "import sys, types\n"
        "davit = sys.modules['davit'] = types.ModuleType('davit')\n"  # importing the package would take seconds
        "davit.__path__ = [sys.argv[2]]\n"
        "from davit.files import write_bytes\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    write_bytes(sys.argv[1], bytes([n % 251]) * 3_000_000)\n"
    )
    file = tmp_path / "a.bin"
    for pause in (0.0, 0.031):
        file.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", code, file, Path(files.__file__).parent])
        while not file.exists():
            assert writer.poll() is None
            time.sleep(0.001)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = file.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1
