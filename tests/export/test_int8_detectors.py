"""int8 of detectors: which group an operation is of, by how much objects change, and what stays float together."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from davit.export.int8 import DropError, quantize
from davit.export.int8.detectors import objects_change
from davit.export.int8.groups import ANSWERS, HEADS, LINEAR, NECK, PATCHES, Places, group_of
from davit.export.options import Int8Options
from davit.runtimes import ExportedError, Metadata

MODULE = importlib.import_module(quantize.__module__)


def objects(count: int, *, masks: bool = False, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    first = 100 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([first, first + 5 + 20 * torch.rand(count, 2, generator=generator)], 1)
    found = (boxes, torch.rand(count, generator=generator) * 0.5 + 0.5, torch.arange(count) % 3)
    return (*found, torch.rand(count, 28, 28, generator=generator)) if masks else found


@pytest.mark.parametrize("masks", [False, True])
def test_objects_that_are_the_same_do_not_change(masks: bool) -> None:
    some = [objects(12, masks=masks), objects(3, masks=masks, seed=1), objects(0, masks=masks)]
    mixed = [tuple(one.flip(0) for one in found) for found in some]
    assert objects_change(mixed, some) == pytest.approx(0, abs=1e-6)


def test_how_much_objects_change() -> None:
    boxes, labels = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]), torch.tensor([1, 2])
    wanted = [(boxes, torch.tensor([0.8, 0.6]), labels)]
    lost = [(boxes[:1], torch.tensor([0.8]), labels[:1])]
    assert objects_change(lost, wanted) == pytest.approx(0.36)  # of 0.64 + 0.36
    assert objects_change(wanted, lost) == pytest.approx(0.36)
    shifted = [(boxes + torch.tensor([5.0, 0, 5, 0]), torch.tensor([0.8, 0.6]), labels)]
    assert objects_change(shifted, wanted) == pytest.approx(2 / 3)
    lower = [(boxes, torch.tensor([0.4, 0.3]), labels)]
    assert objects_change(lower, wanted) == pytest.approx(0.75)
    assert objects_change([(boxes, wanted[0][1], labels.flip(0))], wanted) == 1
    nothing = [(boxes[:0], torch.zeros(0), labels[:0])]
    assert objects_change(nothing, nothing) == 0
    assert objects_change(nothing, wanted) == objects_change(wanted, nothing) == 1


def test_masks_count_as_boxes_do() -> None:
    boxes, scores, labels = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0.9]), torch.tensor([0])
    left = torch.zeros(1, 4, 4)
    left[:, :, :2] = 1
    whole = torch.ones(1, 4, 4)
    assert objects_change([(boxes, scores, labels, left)], [(boxes, scores, labels, whole)]) == pytest.approx(0.5)
    assert objects_change([(boxes, scores, labels, left)], [(boxes, scores, labels, left)]) == 0


def test_places_of_operations() -> None:
    places = Places()
    steps = [
        ("images", "module.backbone.patch_embeds.1.proj.weight", "a", 0, PATCHES),
        ("a", "val_75", "b", 0, LINEAR),
        ("b", "module.neck.lateral_convs.0.conv.weight", "c", 1, NECK),
        ("c", "val_80", "d", 1, NECK),
        ("c", "first.network.rpn_conv.weight", "e", 2, HEADS),
        ("e", "first.network.rpn_cls.weight", "f", 2, ANSWERS),
        ("e", "stages.0.network.shared_fcs.0.weight", "g", 2, HEADS),
        ("a", "val_81", "h", 0, LINEAR),
    ]
    for image, weight, output, place, group in steps:
        assert places.follow([image, weight], [output]) == place
        found = group_of(
            is_convolution="val" not in weight,
            is_first=False,
            is_depthwise=False,
            has_weight=True,
            behind_gelu=False,
            is_head=False,
            place=place,
            weight=weight,
        )
        assert found == group


# --- what stays float together ---


class Judge:
    """Knows what each choice changes and costs."""

    what, pictures, judged = "results", 5, 4
    scores: Mapping[str, str] = {"ap50": "AP50 of boxes", "mask_ap50": "AP50 of masks"}
    changes: Mapping[frozenset[str], float] = {}
    lost: Mapping[str, float] = {}

    def __init__(self, source: Path, options: Int8Options) -> None:
        metadata = Metadata("detection", "m", (3, 8, 8), ("boxes", "scores", "labels"))
        self.program = SimpleNamespace(metadata=metadata, threads=1)
        self.batches: Sequence[Tensor] = [torch.zeros(1, 3, 8, 8)]

    def change(self, file: Path) -> float:
        if "refused" in (chosen := frozenset(file.read_text().split(","))):
            raise ExportedError("no such operation")
        return self.changes[chosen]

    def compare(self, file: Path) -> dict[str, float | int]:
        after = {key: 50.0 - self.lost.get(key, 0.0) for key in self.scores}
        return {**dict.fromkeys([f"{key}_float" for key in self.scores], 50.0), **after, "pictures": 7}


class Quantizer:
    def __init__(self, *_: Any) -> None:
        self.groups = {name: (f"{name}1",) for name in ("a", "b", "c", "refused", "slow")}

    def write(self, chosen: Sequence[str], out: Path, metadata: Metadata) -> None:
        out.write_text(",".join(sorted(chosen)))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> type[Judge]:
    backend = SimpleNamespace(Quantizer=Quantizer, SLOW=("slow",), TOOL="torch")
    opened = SimpleNamespace(metadata=None)
    monkeypatch.setattr(MODULE, "open_exported", lambda *_, **__: opened)
    monkeypatch.setattr(MODULE, "_chosen", lambda *_: (Judge, backend))
    monkeypatch.setattr(MODULE, "_cost", lambda *_: {"bytes": 1})
    alone = {frozenset("a"): 0.02, frozenset("b"): 0.08, frozenset("c"): 0.3}
    monkeypatch.setattr(Judge, "changes", alone)
    monkeypatch.setattr(Judge, "lost", {})
    return Judge


def run(tmp_path: Path, max_drop: float = 1.0) -> Mapping[str, Any]:
    metadata = quantize(tmp_path / "float.onnx", tmp_path / "small.onnx", Int8Options("data", max_drop=max_drop))
    return metadata.int8 or {}


def test_chosen_groups_are_judged_together(
    judge: type[Judge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(judge, "changes", {**judge.changes, frozenset("ab"): 0.09})
    facts = run(tmp_path)
    assert (tmp_path / "small.onnx").read_text() == "a,b" and facts["error"] == 0.09
    assert {name: one["error"] for name, one in facts["groups"].items()} == {
        **{"a": 0.02, "b": 0.08, "c": 0.3},
        **{"refused": None, "slow": None},
    }


def test_the_most_sensitive_goes_back_to_float_where_together_too_much_changes(
    judge: type[Judge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(judge, "changes", {**judge.changes, frozenset("ab"): 0.1})
    facts = run(tmp_path)
    assert (tmp_path / "small.onnx").read_text() == "a" and facts["error"] == 0.02
    assert [name for name, one in facts["groups"].items() if one["int8"]] == ["a"]


def test_the_drop_of_each_score_counts(judge: type[Judge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(judge, "changes", {**judge.changes, frozenset("ab"): 0.0})
    monkeypatch.setattr(judge, "lost", {"mask_ap50": 1.5})
    with pytest.raises(DropError):
        run(tmp_path)
    assert not list(tmp_path.iterdir())
    assert run(tmp_path, max_drop=1.5)["mask_ap50"] == 48.5
    monkeypatch.setattr(judge, "lost", {"ap50": float("nan")})
    with pytest.raises(DropError):
        run(tmp_path)


def test_nothing_is_written_where_all_is_sensitive(
    judge: type[Judge], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(judge, "changes", {frozenset(name): 0.5 for name in "abc"})
    with pytest.raises(DropError):
        run(tmp_path)
    assert not list(tmp_path.iterdir())
