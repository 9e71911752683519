"""The runner's files: loaded as `load_checkpoint` does, written whole, resumed from the newest that is whole."""

import logging

import pytest
import torch
from torch import nn

from davit.checkpoint import Checkpoint, CheckpointError
from davit.openmmlab.runner import load_whole


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
