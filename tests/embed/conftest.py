"""The checkpoint and the images of the tests of prediction, and the command within this process."""

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from davit.embed.__main__ import main
from tests.predict.conftest import Outcome, checkpoint, folder, loaded, model, save  # noqa: F401


@pytest.fixture
def embed(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    checkpoint: Path,  # noqa: F811
) -> Iterator[Callable[..., Outcome]]:
    """embed(*words, stdin=b""): the command with the checkpoint, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    handlers = logging.root.handlers[:]

    def go(*words: object, stdin: bytes = b"") -> Outcome:
        logging.root.handlers[:] = []
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            status = main([str(checkpoint), *map(str, words)])
        except SystemExit as leave:  # argparse
            status = int(leave.code or 0)
        return Outcome(status, *capfd.readouterr())

    yield go
    logging.root.handlers[:] = handlers
