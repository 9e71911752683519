"""Whole detectors' weights: every tensor accounted for, old files too, nothing run, nothing half loaded."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from davit import DaViTPyramid
from davit.checkpoint import CheckpointError
from davit.openmmlab.runner import load_whole


class Detector(nn.Module):
    def __init__(self, classes: int = 3, levels: tuple[int, ...] = (1, 2)):
        super().__init__()
        self.backbone = nn.ModuleDict({f"norm{level}": nn.LayerNorm(4) for level in levels})
        self.bbox_head = nn.ModuleDict({"retina_cls": nn.Conv2d(4, classes, 1), "retina_reg": nn.Conv2d(4, 4, 1)})


def filled(value: float, **words: Any) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in Detector(**words).state_dict().items()}


def test_everything_is_loaded_and_said() -> None:
    model = Detector()
    said = load_whole(model, filled(2.0), "a.pth", may_adapt=False)
    assert all((tensor == 2).all() for tensor in model.state_dict().values())
    assert said.startswith("a.pth: loaded 8 of the model's 8 tensors, 100 %")


def test_the_originals_norms_of_unread_levels_are_dropped() -> None:
    model = Detector()
    said = load_whole(
        model, {f"module.{k}": v for k, v in filled(2.0, levels=(0, 1, 2)).items()}, "a", may_adapt=False
    )
    assert "dropped 2 tensors of norms of levels" in said
    assert (model.backbone["norm1"].weight == 2).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"backbone.norm1.weight": None}, "backbone.norm1.weight is missing"),
        ({"backbone.extra": torch.zeros(1)}, "backbone.extra is unexpected"),
        ({"bbox_head.retina_reg.bias": torch.zeros(9)}, r"\(9,\) in the file, \(4,\) in the model"),
        ({"bbox_head.retina_cls.bias": torch.zeros(9)}, r"trained on other classes"),
    ],
)
@pytest.mark.parametrize("may_adapt", [True, False])
def test_what_does_not_fit_stops_it_whole(change: dict[str, Tensor | None], expected: str, may_adapt: bool) -> None:
    weights = {**filled(2.0), **{name: tensor for name, tensor in change.items() if tensor is not None}}
    weights = {name: tensor for name, tensor in weights.items() if change.get(name, tensor) is not None}
    model = Detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if may_adapt and "retina_cls" in next(iter(change)):
        said = load_whole(model, weights, "a.pth", may_adapt=True)
        assert "so new: bbox_head.retina_cls.bias" in said
        assert torch.equal(model.bbox_head["retina_cls"].bias, before["bbox_head.retina_cls.bias"])
        return
    with pytest.raises(CheckpointError, match=f"a.pth does not fit.*{expected}.*Nothing was loaded"):
        load_whole(model, weights, "a.pth", may_adapt=may_adapt)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class EditedDetector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = DaViTPyramid(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), out_indices=(1,))
        for stage in self.backbone.main_blocks:
            stage[0][0].gamma = nn.Parameter(torch.zeros(4))
        self.neck = nn.Linear(2, 2)


def test_a_detector_with_an_edited_backbone_loads_its_own_state() -> None:
    model = EditedDetector()
    weights = {name: torch.full_like(tensor, 2) for name, tensor in model.state_dict().items()}
    load_whole(model, weights, "a.pth", may_adapt=False)
    assert all((tensor == 2).all() for tensor in model.state_dict().values())


def test_what_was_added_to_a_backbone_may_be_new_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int]] = []
    monkeypatch.setattr("davit.openmmlab.runner.print_log", lambda text, logger, level: said.append((text, level)))
    model = EditedDetector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {name: torch.full_like(tensor, 2) for name, tensor in before.items() if not name.endswith("gamma")}
    with pytest.raises(CheckpointError):
        load_whole(model, weights, "a.pth", may_adapt=False)
    for name in ("neck.bias", "backbone.main_blocks.0.0.0.norm1.bias"):
        rest = {key: tensor for key, tensor in weights.items() if key != name}
        with pytest.raises(CheckpointError):
            load_whole(model, rest, "a.pth", may_adapt=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    load_whole(model, weights, "a.pth", may_adapt=True)
    assert all((tensor == (0 if name.endswith("gamma") else 2)).all() for name, tensor in model.state_dict().items())
    ((text, level),) = said
    assert all(f"backbone.main_blocks.{stage}.0.0.gamma" in text for stage in (0, 1)) and level == logging.WARNING


def test_a_classifier_is_no_detector() -> None:
    with pytest.raises(CheckpointError, match=r"model.pretrained=c.pth"):
        load_whole(Detector(), {"head.weight": torch.zeros(2)}, "c.pth", may_adapt=True)
