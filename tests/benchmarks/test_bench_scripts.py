"""Check that the smaller scripts under benchmarks/ compare what they say, and that documents quote their results."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.benchmarks.conftest import BENCHMARKS


@pytest.fixture
def choices(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("cpu_choices")


def test_a_log_and_its_metrics(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """The minutes of a log may pass midnight; a run that is not there is told with its command."""
    scenes = script("digit_scenes")
    log = "11/25 23:50:00 - mmengine - INFO - a\nno time\n11/26 00:05:30 - mmengine - INFO - b\n"
    assert scenes.minutes(log) == 15.5
    table = scenes.metrics("segmentation", {"mIoU": 65.881, "mAcc": 80.0, "aAcc": 96.5})
    assert table.splitlines()[-1] == "| 65.88 | 80.00 | 96.50 |"
    found = {f"coco/{kind}_mAP{limit}": 0.5 for kind in ("bbox", "segm") for limit in ("", "_50", "_75")}
    table = scenes.metrics("detection", {**found, "coco/segm_mAP_75": 0.25})
    assert table.splitlines()[-2:] == ["| boxes | 0.500 | 0.500 | 0.500 |", "| masks | 0.500 | 0.500 | 0.250 |"]
    with pytest.raises(SystemExit, match="make demo-seg"):
        scenes.newest(tmp_path / "demo-seg", "*/*.log")


def test_all_ways_of_linear_layers_agree(choices: ModuleType) -> None:
    """So that times of the same computation are compared."""
    if not choices.onednn.AVAILABLE:
        pytest.skip("needs oneDNN's operators, as the CPU path does")
    steps = choices.linear_layers(24, 32, 48, torch.float32)
    gelu, expected = steps.pop("oneDNN + GELU")(), steps["F.linear"]()
    for name, step in steps.items():
        got = step()
        got = got if got.dim() == 2 else got.permute(0, 2, 3, 1).reshape(24, 48)
        assert torch.allclose(got, expected, atol=1e-4), name
    assert torch.allclose(gelu, torch.nn.functional.gelu(expected), atol=1e-4)
    plain, *others = choices.mlps(70, 32, torch.float32).values()
    assert all(torch.allclose(step(), plain(), atol=1e-4) for step in others)


def test_all_ways_of_blocks_agree(choices: ModuleType) -> None:
    with torch.no_grad():
        plain, *others = choices.few_positions(3, 192, torch.float32).values()
        for step in others:
            for one, other in zip(step(), plain(), strict=True):
                assert torch.allclose(one, other, atol=1e-4)


def test_all_ways_of_attentions_agree(choices: ModuleType) -> None:
    steps = choices.window_products(2, 14, 2, 16, torch.float32)
    for way in ("PyTorch's", "native"):
        assert torch.allclose(steps["plain, forward"](), steps[f"{way}, forward"](), atol=1e-5)
        (one,), (other,) = steps["plain, both"](), steps[f"{way}, both"]()
        assert torch.allclose(one, other, atol=1e-5)
    plain, *others = choices.channel_layers(2, 9, 64, torch.float32).values()
    for step in others:
        for one, other in zip(step(), plain(), strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * other.abs().max())


def test_candidates_take_turns(choices: ModuleType) -> None:
    order: list[str] = []
    times = choices.timed({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, "wall")
    assert order == ["a", "b"] * 5 and set(times) == {"a", "b"} and min(times.values()) >= 0


# --- numbers in documents are those of benchmarks/results ---

ROWS = {
    "inference, float32, eager": ("throughput_cpu", "Inference", "float32/eager"),
    "inference, float32, compiled with frozen weights": ("throughput_cpu", "Inference, compiled", "float32/compile"),
    "inference, bfloat16, eager": ("throughput_cpu", "Inference", "bfloat16/eager"),
    "inference, bfloat16, compiled with frozen weights": ("throughput_cpu", "Inference, compiled", "bfloat16/compile"),
    "training step, float32": ("throughput_cpu_training", "Training", "float32/eager"),
    "training step, autocast to bfloat16": ("throughput_cpu_training", "Training", "amp/eager"),
}


def results(name: str, section: str) -> dict[str, Any]:
    found = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())["results"][section]
    return {row["name"]: row for row in found}


def cells(document: str, first: str) -> list[str]:
    (line,) = (line for line in document.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("words", ROWS)
def test_ratios_of_the_performance_document(words: str) -> None:
    name, section, how = ROWS[words]
    found = results(name, section)
    reference = found["davit_tiny/float32/eager"]["seconds"]
    _, *shown = cells((BENCHMARKS.parent / "docs" / "performance.md").read_text(), words)
    for model, cell in zip(("DaViT_tiny", "davit_tiny", "DaViT_tiny:plain"), shown, strict=True):
        row = found.get(f"{model}/{how}")
        if row is None:
            assert cell == "-"
            continue
        ratios = [a / b for a, b in zip(reference, row["seconds"], strict=True)]
        assert cell == f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


COMPARED = {
    "inference, float32, images/s": ("throughput_cpu", "Inference", "float32/eager"),
    "inference, bfloat16, images/s": ("throughput_cpu", "Inference", "bfloat16/eager"),
    "inference, float32, compiled, images/s": ("throughput_cpu", "Inference, compiled", "float32/compile"),
    "training step, float32, images/s": ("throughput_cpu_training", "Training", "float32/eager"),
    "training step, bfloat16 autocast, images/s": ("throughput_cpu_training", "Training", "amp/eager"),
}


@pytest.mark.parametrize("words", COMPARED)
def test_speeds_of_the_comparison(words: str) -> None:
    name, section, how = COMPARED[words]
    found = results(name, section)
    shown = cells((BENCHMARKS.parent / "docs" / "comparison.md").read_text(), words)[:2]
    assert shown == [f"{found[f'{model}/{how}']['images_per_second']:.1f}" for model in ("davit_tiny", "DaViT_tiny")]


def test_speeds_of_the_readme() -> None:
    text = " ".join((BENCHMARKS.parent / "README.md").read_text().split())
    for words, (name, section, how) in ROWS.items():
        if how.endswith("/eager"):
            ratio = results(name, section)[f"DaViT_tiny/{how}"]["ratio"]
            assert f"{ratio:.2f}" in text, words


def test_a_checkout_beside_itself(
    script: Callable[[str], ModuleType], tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    against = script("against")
    case = "DaViT_nano/float32/training/plain/2/32"
    assert against.main([str(repository), "--rounds", "3", "--cases", case, "--folder", str(tmp_path)]) == 0
    (result,) = json.loads((tmp_path / "against.json").read_text())["results"]
    assert result["case"] == case and len(result["theirs"]) == len(result["ours"]) == 3
    assert all(seconds > 0 and peak > 0 for seconds, peak in result["ours"])
    assert case in capsys.readouterr().out
    with pytest.raises(SystemExit):
        against.main([str(tmp_path)])


def test_the_check_of_data_is_timed(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path))
    words = ["--pictures", "20", "--many", "40", "--rounds", "2", "--results", str(tmp_path)]
    assert script("data_check").main(words) == 0
    times = json.loads((tmp_path / "data_check.json").read_text())["results"]
    assert [len(found) for found in times.values()] == [2] * 5


def test_modules_and_kernels_of_both_functions_agree(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    florence2 = script("florence2")
    for kind in florence2.KINDS:
        for train in (False, True):
            one, other = (step() for step in florence2.steps(kind, 9, 64, torch.float32, train).values())
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    words = ["--size", "32", "--widths", "32", "64", "--rounds", "2", "--dtypes", "float32", "--folder", str(tmp_path)]
    assert florence2.main(words) == 0
    results = json.loads((tmp_path / "florence2.json").read_text())["results"]
    assert len(results) == 2 * 2 * 2 and all(len(result["kernels"]) == 2 for result in results)
