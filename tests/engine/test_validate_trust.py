"""validate.py's report, slices, temperature, and folders of some of a model's classes, as a user runs it."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import davit
from davit.engine import calibration
from davit.engine.validate import main
from davit.robustness.sets import synsets, synsets_of
from tests.engine.test_validate_cli import odd, run_two, save  # noqa: F401 (a fixture)
from tests.robustness.planted import draw, plant, save_model


@pytest.fixture
def go(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[int, Any, str]]:
    """validate.py in this process: exit status, the results it printed last, and what it said of itself."""
    caplog.set_level("INFO")

    def call(*words: object) -> tuple[int, Any, str]:
        caplog.clear()
        try:
            status = main([*map(str, words), "--json", "-j", "0", "--device", "cpu"])
        except SystemExit as leave:
            status = int(leave.code or 0)
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        return status, json.loads(lines[-1]) if lines else None, caplog.text + printed.err

    return call


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_folder_of_some_of_imagenets_classes_is_matched_by_their_names(go: Any, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.pth", 1000)
    place = {name: index for index, name in enumerate(synsets())}
    present = [place[name] for name in synsets_of("imagenet_a")[:30]]
    while True:  # only the classes that are there compete: until each of those planted among has an image
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        plant(tmp_path / "data/val", model, draw(40, 3), 26, lambda i: synsets()[i], present)
        found = {path.name for path in (tmp_path / "data/val").iterdir()}
        if len(found) == len(present):
            break
        present = [index for index in present if synsets()[index] in found]

    status, row, said = go(tmp_path / "data", "--checkpoint", tmp_path / "m.pth", "--report", tmp_path / "r")
    assert (status, row["correct1"], row["count"], row["top1"]) == (0, 26, 40, 65)
    assert row["top1_of_all"] < 65 and f"{1000 - len(present)} of the model's 1000 classes" in said
    assert {entry["class"] for entry in read(tmp_path / "r/per_class.csv")} == found
    assert sum(int(entry["correct"]) for entry in read(tmp_path / "r/per_class.csv")) == 26


def test_a_class_without_pictures_is_named_and_a_folder_too_many_refused(go: Any, tmp_path: Path) -> None:
    names = [f"kind {number}" for number in range(5)]
    model = save_model(tmp_path / "m.pth", 5, class_names=names)
    plant(tmp_path / "val", model, draw(30), 20, lambda i: names[i], [0, 1, 3, 4])
    status, row, said = go(tmp_path, "--checkpoint", tmp_path / "m.pth")
    assert (status, row["correct1"], row["count"]) == (0, 20, 30)
    assert "kind 2" in said

    (tmp_path / "map.txt").write_text("\n".join(names))
    status, row, said = go(tmp_path, "--checkpoint", tmp_path / "m.pth", "--class-map", tmp_path / "map.txt")
    assert status == 0 and "kind 2" in said and "top1_of_all" not in row

    (tmp_path / "val/odd one").mkdir()
    draw(1)[0].save(tmp_path / "val/odd one/x.png")
    status, _, said = go(tmp_path, "--checkpoint", tmp_path / "m.pth")
    assert status == 2 and "odd one" in said and "--class-map" in said
    status, row, _ = go(tmp_path, "--checkpoint", tmp_path / "m.pth", "--class-map", tmp_path / "map.txt")
    assert status == 0 and row["count"] == 30


def test_equal_logits_give_the_lower_class_as_predictions_do(go: Any, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.pth", 4, class_names=list("abcd"))
    state = torch.load(tmp_path / "m.pth")
    for name in ("head.weight", "head.bias"):
        state["state_dict"][name][:] = 0
        state["state_dict"][name][1:3] = 1.0
    torch.save(state, tmp_path / "m.pth")
    plant(tmp_path / "val", model, draw(20), 10, lambda i: "abcd"[i])
    status, row, _ = go(tmp_path, "--checkpoint", tmp_path / "m.pth", "--report", tmp_path / "r")
    pictures = read(tmp_path / "r/pictures.csv")
    predictor = davit.load(tmp_path / "m.pth")
    answers = {picture["predicted"] for picture in pictures}
    assert answers == {predictor.predict(str(tmp_path / "val" / pictures[0]["file"])).name}
    assert len(answers) == 1 and status == 0
    assert row["correct1"] == sum(picture["class"] == picture["predicted"] for picture in pictures)


@pytest.fixture
def sure(tmp_path: Path) -> Path:
    """A model that is far too sure, and 60 images, of which it has 36 right."""
    names = ["one", "three", "two"]
    model = save_model(tmp_path / "m.pth", 3, class_names=names)
    state = torch.load(tmp_path / "m.pth")
    state["state_dict"]["head.weight"] *= 30
    torch.save(state, tmp_path / "m.pth")
    with torch.no_grad():
        model.head.weight.mul_(30)
    plant(tmp_path / "val", model, draw(60), 36, lambda i: names[i])
    return tmp_path


def test_a_temperature_lowers_what_is_held_and_predictions_use_it(go: Any, sure: Path) -> None:
    file = sure / "m.pth"
    status, row, said = go(sure, "--checkpoint", file, "--fit-temperature", "half", "--report", sure / "r")
    assert status == 0 and row["fitted_on"] == row["held"] == 30
    assert row["held_nll_calibrated"] < row["held_nll"] and row["held_ece_calibrated"] < row["held_ece"]
    assert row["temperature"] > 1 and row["nll_calibrated"] < row["nll"] == pytest.approx(row["loss"])
    noted = json.loads(calibration.file_beside(file).read_text())
    assert noted["temperature"] == row["temperature"] and noted["part"] == "half" and str(sure) in noted["data"]
    assert calibration.file_beside(file).name in said
    rows = read(sure / "r/reliability.csv")
    assert len({entry["probabilities"] for entry in rows}) == 2

    assert davit.load(file).temperature == row["temperature"]
    status, again, _ = go(sure, "--checkpoint", file)  # measured with the temperature that is there
    assert (again["loss"], again["nll_calibrated"]) == pytest.approx((row["loss"], row["nll_calibrated"]))
    status, raw, _ = go(sure, "--checkpoint", file, "--temperature", "1")
    assert "temperature" not in raw

    status, whole, said = go(sure, "--checkpoint", file, "--fit-temperature")
    assert whole["fitted_on"] == whole["held"] == 60 and "replaced" in said


def test_slices_and_a_report_by_flags(go: Any, sure: Path) -> None:
    names = sorted(path.relative_to(sure / "val").as_posix() for path in (sure / "val").glob("*/*"))
    side = {name: "left" if number % 3 else "right" for number, name in enumerate(names)}
    (sure / "s.csv").write_text("path,side\n" + "".join(f"val/{name},{value}\n" for name, value in side.items()))
    words = (sure, "--checkpoint", sure / "m.pth", "--report", sure / "r", "--slices", sure / "s.csv")
    status, row, said = go(*words, "--results-file", sure / "results.csv")
    assert status == 0 and "slices" not in read(sure / "results.csv")[0]
    found = {entry["value"]: (entry["count"], entry["correct"]) for entry in row["slices"]}
    right = {entry["file"]: int(entry["right"]) for entry in read(sure / "r/pictures.csv")}
    assert found == {
        value: (list(side.values()).count(value), sum(right[name] for name in names if side[name] == value))
        for value in ("left", "right")
    }
    assert len(read(sure / "r/slices.csv")) == 2 and sum(right.values()) == 36
    assert json.loads((sure / "r/summary.json").read_text())["correct1"] == 36
    status, _, said = go(*words)
    assert status == 2 and "--overwrite" in said
    status, _, said = go(*words, "--overwrite")
    assert status == 0


def test_several_models_have_a_report_each(go: Any, sure: Path) -> None:
    (sure / "all").mkdir()
    for name in ("a.pth", "b.pth"):
        (sure / "all" / name).write_bytes((sure / "m.pth").read_bytes())
    status, rows, _ = go(sure, "--checkpoint", sure / "all", "--report", sure / "r", "--fit-temperature")
    assert status == 0 and len(rows) == 2
    assert {path.name for path in (sure / "r").iterdir()} == {"a.pth", "b.pth"}
    assert all(calibration.file_beside(sure / "all" / name).is_file() for name in ("a.pth", "b.pth"))


def test_a_temperature_is_kept_beside_each_name_of_a_file(go: Any, sure: Path) -> None:
    (sure / "run").mkdir()
    (sure / "run/checkpoint-1.pth").write_bytes((sure / "m.pth").read_bytes())
    os.link(sure / "run/checkpoint-1.pth", sure / "run/model_best.pth")
    status, rows, _ = go(sure, "--checkpoint", sure / "run", "--fit-temperature")
    assert status == 0 and len(rows) == 2
    files = [calibration.file_beside(sure / "run" / name) for name in ("checkpoint-1.pth", "model_best.pth")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--overwrite"], "--report"),
        (["--fit-temperature", "most"], "half"),
        (["--fit-temperature", "--temperature", "2"], "--temperature 2"),
        (["--fit-temperature", "--real-labels", "timm"], "--real-labels"),
        (["--temperature", "0"], "--temperature"),
        (["--slices", "nowhere.csv"], "nowhere.csv"),
        (["--report", "m.pth"], "m.pth"),
    ],
)
def test_mistakes_are_named_and_end_with_status_2(
    go: Any, sure: Path, words: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sure)
    status, _, said = go(sure, "--checkpoint", sure / "m.pth", *words)
    assert status == 2 and named in said
    assert not calibration.file_beside(sure / "m.pth").exists()


def test_some_classes_have_no_temperature_for_all(go: Any, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.pth", 3, class_names=list("abc"))
    plant(tmp_path / "val", model, draw(8), 4, lambda i: "abc"[i], [0, 1])
    status, _, said = go(tmp_path, "--checkpoint", tmp_path / "m.pth", "--fit-temperature")
    assert status == 2 and "--fit-temperature" in said


def test_two_processes_report_and_calibrate_as_one(go: Any, sure: Path) -> None:
    names = sorted(path.relative_to(sure / "val").as_posix() for path in (sure / "val").glob("*/*"))
    (sure / names[-1]).parent.mkdir(exist_ok=True)
    (sure / "val" / names[-1]).unlink()  # 59 images
    (sure / "s.csv").write_text("path,x\n" + "".join(f"{name},{len(name) % 2}\n" for name in names[:-1]))
    flags = [
        str(sure),
        "--checkpoint",
        str(sure / "m.pth"),
        "--slices",
        str(sure / "s.csv"),
        "--fit-temperature",
        "half",
    ]
    _, one, _ = go(*flags, "--report", sure / "one")
    runs = run_two([*flags, "--json", "--report", str(sure / "two"), "--device", "cpu", "-j", "0", "-b", "7"], sure)
    assert [status for status, _, _ in runs] == [0, 0]
    two = json.loads(runs[0][1].splitlines()[-1])
    assert two["slices"] == one["slices"]
    for name in ("temperature", "nll", "ece", "held_nll_calibrated", "held_ece", "nll_calibrated"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    assert (two["count"], two["correct1"], two["held"]) == (59, one["correct1"], one["held"])
    for name in ("per_class.csv", "confusion.csv", "slices.csv"):
        assert (sure / "one" / name).read_text() == (sure / "two" / name).read_text()
    assert [row["file"] for row in read(sure / "two/pictures.csv")] == [
        row["file"] for row in read(sure / "one/pictures.csv")
    ]
    assert np.isfinite(two["ece"])
