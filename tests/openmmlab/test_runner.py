"""The runner's files: loaded as `load_checkpoint` does, written whole, resumed from the newest that is whole."""

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from davit.checkpoint import Checkpoint, CheckpointError
from davit.openmmlab.runner import _make_plain, _with_buffers, load_whole, newest_whole


@pytest.mark.parametrize("may_adapt", [True, False])
def test_a_detector_loads_its_own_weights_and_new_classes_start_anew_in_training_only(
    may_adapt: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4), "retina_cls": nn.Linear(4, 3)})
    weights = {name: torch.full_like(tensor, 2) for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        load_whole(model, Checkpoint("a.pth", weights), may_adapt=may_adapt, logger=logging.getLogger("run"))
    assert all((tensor == 2).all() for tensor in model.state_dict().values())
    assert [(record.name, record.levelno) for record in caplog.records] == [("run", logging.INFO)]
    new = Checkpoint("b.pth", {**weights, "retina_cls.weight": torch.ones(9, 4), "retina_cls.bias": torch.ones(9)})
    if may_adapt:
        assert set(load_whole(model, new, may_adapt=True).missing) == {"retina_cls.weight", "retina_cls.bias"}
        return
    with pytest.raises(CheckpointError, match=r"b\.pth.*retina_cls.*--classes"):
        load_whole(model, new, may_adapt=False)


def test_a_classifier_is_no_detector() -> None:
    with pytest.raises(CheckpointError, match=r"model.pretrained=c.pth"):
        load_whole(nn.Linear(2, 2), Checkpoint("c.pth", {"head.weight": torch.zeros(2)}), may_adapt=True)


def test_the_newest_that_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("runner")
    assert newest_whole(tmp_path, logger) is None
    for number in (1, 2, 10):
        torch.save({"state_dict": {"a": torch.full((50,), number)}}, tmp_path / f"epoch_{number}.pth")
    torch.save({"state_dict": {}}, tmp_path / "best_coco_bbox_mAP_epoch_11.pth")
    assert newest_whole(tmp_path, logger) == tmp_path / "epoch_10.pth"
    damaged = bytearray((tmp_path / "epoch_10.pth").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "epoch_10.pth").write_bytes(damaged)
    assert newest_whole(tmp_path, logger) == tmp_path / "epoch_2.pth"
    assert "passed over" in caplog.text
    (tmp_path / "epoch_2.pth").write_bytes(b"")

    class Program:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "epoch_1.pth").write_bytes(pickle.dumps({"state_dict": {}, "x": Program()}))
    with pytest.raises(CheckpointError, match="no state in"):
        newest_whole(tmp_path, logger)
    assert not (tmp_path / "ran").exists()


def test_logs_survive_as_plain_values() -> None:
    from mmengine.logging import HistoryBuffer

    hub = {
        "log_scalars": {"loss": HistoryBuffer([3.0, 2.0], [1, 2])},
        "runtime_info": {},
        "resumed_keys": {"loss": True},
    }
    state = {"message_hub": hub, "meta": {"epoch": 1, "classes": ("a",)}}
    _make_plain(state)
    assert state["message_hub"]["log_scalars"]["loss"] == [[3.0, 2.0], [1, 2]]
    back = _with_buffers(state["message_hub"])["log_scalars"]["loss"]
    assert back.current() == 2.0 and back.mean() == pytest.approx((3.0 + 2.0) / 3)
