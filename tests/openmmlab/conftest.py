"""A detector small enough for seconds, and a few scenes of digits to train it on."""

import contextlib
import io
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from davit.data import scenes

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "mmdet" / "configs"

SMALL = """
_base_ = {base!r}
model = dict(
    backbone=dict(embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2)),
    neck=dict(in_channels=[8, 16, 16, 16], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=4)]
"""


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes to train on, four to evaluate."""
    counts = scenes.COUNTS
    scenes.COUNTS = {"train": 8, "val": 4}
    try:
        return scenes.write_scenes(tmp_path_factory.mktemp("scenes") / "set")
    finally:
        scenes.COUNTS = counts


@pytest.fixture
def small_config(tmp_path: Path) -> Path:
    """The config of the digits' Mask R-CNN, made small."""
    file = tmp_path / "small.py"
    file.write_text(SMALL.format(base=str(CONFIGS / "davit_nano_maskrcnn_digits.py")))
    return file


Go = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Go]:
    """Run one of the tools' mains within this process; what it says comes back as its output."""
    monkeypatch.chdir(tmp_path)
    handlers = logging.root.handlers[:]

    def run(main: Callable[[list[str]], int], *words: Any) -> subprocess.CompletedProcess[str]:
        from mmengine.logging import MMLogger
        from mmengine.visualization import Visualizer

        for kept in (MMLogger, Visualizer):  # mmengine keeps one of each by name for ever
            kept._instance_dict.clear()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = main([str(word) for word in words])
            except SystemExit as leave:  # argparse
                status = int(leave.code or 0)
        return subprocess.CompletedProcess([], status, said.getvalue(), "")

    yield run
    logging.root.handlers[:] = handlers
