"""Whether weights of classes help the rare ones, by the script that measures it."""

import json
from pathlib import Path

import pytest

from benchmarks.class_weights import TASKS, main


@pytest.mark.long
@pytest.mark.parametrize("task", list(TASKS))
def test_weights_raise_the_recall_of_rare_classes_for_each_seed(task: str, tmp_path: Path) -> None:
    assert main(["--tasks", task, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "class_weights.json").read_text())["rows"]
    for seed in range(3):
        plain, weighted = (
            next(row["rare"] for row in rows if (row["setting"], row["seed"]) == (setting, seed))
            for setting in ("plain", "weights")
        )
        assert weighted > plain
    assert (tmp_path / "class_weights.md").is_file()
