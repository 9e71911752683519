"""The robustness command on folders with planted errors, and on a model of the user's own classes."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from davit.data import open_dataset
from davit.engine.labels import Labels, real_labels
from davit.engine.records import Outcomes, interval_of_shares, wilson
from davit.robustness.__main__ import main
from davit.robustness.corrupted import CorruptedDataset, spread
from davit.robustness.corruptions import CORRUPTIONS, SEVERITIES
from davit.robustness.published import ALEXNET, TIMM, mean_corruption_error, published
from davit.robustness.sets import synsets, synsets_of
from davit.robustness.table import corruption_rows, mean_row
from tests.engine.test_validate_cli import run_two
from tests.robustness.planted import READ, draw, logits_of, plant, save_model

V2 = "imagenetv2-matched-frequency-format-val"


@pytest.fixture
def go(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Callable[..., Any]:
    """The command in this process: exit status, its JSON, what it printed, what it logged."""
    caplog.set_level("INFO")

    def call(*words: object, results: bool = True) -> tuple[int, Any, str, str]:
        caplog.clear()
        file = tmp_path / "results.json"
        file.unlink(missing_ok=True)
        flags = ["-j", "0", "--device", "cpu", *(["--results-file", str(file)] if results else [])]
        try:
            status = main([*map(str, words), *flags])
        except SystemExit as leave:
            status = int(leave.code or 0)
        printed = capsys.readouterr()
        found = json.loads(file.read_text()) if file.exists() else None
        return status, found, printed.out, caplog.text + printed.err

    return call


def rows_of(found: Any) -> dict[str, Any]:
    return {row["set"]: row for row in found["results"] if row["set"] != "c"}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of 1000 classes, and every set with planted errors: 24 of 40 right in val, and so on."""
    folder = tmp_path_factory.mktemp("imagenet")
    model = save_model(folder / "model.pth", 1000)
    root = folder / "root"
    place = {name: index for index, name in enumerate(synsets())}
    placed = plant(root / "val", model, draw(40, 1), 24, lambda i: synsets()[i])
    plant(root / V2, model, draw(30, 2), 21, str)
    plant(root / "sketch", model, draw(20, 3), 3, lambda i: synsets()[i])
    for name, seed, right in (("imagenet-a", 4, 9), ("imagenet-r", 5, 17)):
        competing = sorted(place[synset] for synset in synsets_of(name.replace("-", "_")))
        plant(root / name, model, draw(25, seed), right, lambda i: synsets()[i], competing)
    # ReaL: of the first ten no label; then two, the second of which is the model's answer for every third
    answers = logits_of(model, draw(40, 1)).argmax(1).tolist()
    real = [[], *[[]] * 9]
    real += [
        [placed[name], answer] if number % 3 == 0 else [(answer + 5) % 1000]
        for number, (name, answer) in enumerate(zip(sorted(placed), answers, strict=True))
        if number >= 10
    ]
    (root / "real.json").write_text(json.dumps(real))
    return folder / "model.pth", root


def test_planted_errors_are_found_with_no_class_map(go: Any, imagenet: tuple[Path, Path]) -> None:
    model, root = imagenet
    status, found, printed, _ = go(model, root, "--leave-out", "c")
    rows = rows_of(found)
    assert status == 0
    got = {key: (row["correct"], row["count"], row["competing"]) for key, row in rows.items()}
    assert got == {
        "val": (24, 40, 1000),
        "real": (10, 30, 1000),
        "v2": (21, 30, 1000),
        "a": (9, 25, 200),
        "r": (17, 25, 200),
        "sketch": (3, 20, 1000),
    }
    assert rows["a"]["top1"] == 36 and rows["a"]["top1_low"] < 36 < rows["a"]["top1_high"]
    assert "ImageNet-A" in printed and "36.00" in printed


def test_the_table_has_timms_rows_for_the_architectures_that_have_some(
    go: Any, imagenet: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published("DaViT_tiny") == published("davit_tiny.msft_in1k") == TIMM["davit_tiny"]
    assert published("DaViT_nano") == {}
    monkeypatch.setattr("davit.robustness.run.published", lambda _: TIMM["davit_base"])
    _, found, printed, _ = go(*imagenet, "--leave-out", "c")
    assert {key: row["published_top1"] for key, row in rows_of(found).items()} == TIMM["davit_base"]
    assert "40.76" in printed


def test_a_model_that_numbers_imagenets_classes_otherwise(go: Any, tmp_path: Path) -> None:
    order = [str(name) for name in np.random.default_rng(0).permutation(synsets())]
    model = save_model(tmp_path / "m.pth", 1000, class_names=order)
    place = {name: index for index, name in enumerate(order)}
    plant(tmp_path / "root/val", model, draw(12, 1), 5, lambda i: order[i])
    plant(tmp_path / "root" / V2, model, draw(12, 2), 7, lambda i: str(synsets().index(order[i])))
    competing = sorted(place[synset] for synset in synsets_of("imagenet_r"))
    plant(tmp_path / "root/ImageNet-R", model, draw(12, 3), 4, lambda i: order[i], competing)
    status, found, _, _ = go(tmp_path / "m.pth", tmp_path / "root", "--leave-out", "c")
    assert status == 0
    assert {key: row["correct"] for key, row in rows_of(found).items() if key != "real"} == {"val": 5, "v2": 7, "r": 4}


def test_what_cannot_be_scored_is_named_and_the_rest_goes_on(
    go: Any, imagenet: tuple[Path, Path], tmp_path: Path
) -> None:
    model, root = imagenet
    mine = tmp_path / "root"
    mine.mkdir()
    for name in ("imagenet-r", "sketch"):
        (mine / name).symlink_to(root / name)
    a = mine / "imagenet-a"
    for folder in (root / "imagenet-a").iterdir():
        a.mkdir(exist_ok=True)
        (a / folder.name).symlink_to(folder)
    (a / "n00000000").mkdir()
    draw(1)[0].save(a / "n00000000/x.png")
    status, found, _, said = go(model, mine)
    rows = rows_of(found)
    assert status == 1
    assert "n00000000" in rows["a"]["failed"] and "n00000000" in said
    assert rows["r"]["correct"] == 17 and rows["sketch"]["correct"] == 3
    assert found["left_out"].keys() == {"val", "real", "c", "v2"}


def test_a_model_of_ten_classes_is_corrupted_on_its_own_pictures(go: Any, tmp_path: Path) -> None:
    names = [f"kind {index}" for index in range(10)]
    model = save_model(tmp_path / "m.pth", 10, class_names=names)
    root = tmp_path / "root"
    plant(root / "val", model, draw(20, 1), 13, lambda i: names[i])
    plant(root / "imagenet-a", model, draw(4, 2), 2, lambda i: synsets_of("imagenet_a")[i])
    status, found, printed, _ = go(tmp_path / "m.pth", root, "--severities", "1", "5", "--samples", tmp_path / "s.png")
    assert status == 0
    assert rows_of(found)["val"]["correct"] == 13
    assert found["left_out"].keys() == {"real", "v2", "a", "r", "sketch"}
    rows = [row for row in found["results"] if row["set"] == "c"]
    assert {(row["corruption"], row["severity"]) for row in rows} == {
        *((name, severity) for name in CORRUPTIONS for severity in (1, 5, "mean")),
        ("mean", "mean"),
    }
    by_name = {(row["corruption"], row["severity"]): row for row in rows}
    for name in CORRUPTIONS:
        pair = [by_name[name, severity]["top1"] for severity in (1, 5)]
        mean = by_name[name, "mean"]
        assert mean["top1"] == pytest.approx(sum(pair) / 2)
        assert mean["relative"] == pytest.approx(100 * mean["top1"] / 65)
        assert "ce" not in mean
    total = by_name["mean", "mean"]
    assert total["error"] == found["mean_error"]
    assert total["error"] == pytest.approx(np.mean([by_name[name, "mean"]["error"] for name in CORRUPTIONS]))
    assert "mce" not in found
    assert (tmp_path / "s.png").stat().st_size > 0 and "gaussian noise" in printed

    again = go(
        tmp_path / "m.pth", root, "--sets", "c", "--corruptions", "fog", "snow", "--severities", "5", "-b", "3"
    )[1]
    assert {row["corruption"]: row["correct"] for row in again["results"] if row["severity"] == 5} == {
        name: by_name[name, 5]["correct"] for name in ("fog", "snow")
    }


def test_the_corruption_error_of_imagenets_classes(go: Any, imagenet: tuple[Path, Path], tmp_path: Path) -> None:
    model, root = imagenet
    file = tmp_path / "r.csv"
    status, _, printed, said = go(
        model, root, "--sets", "c", "--limit", "10", "--results-file", file, "--results-format", "csv", results=False
    )
    assert status == 0
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    errors = {
        name: [float(row["error"]) / 100 for row in rows if row["corruption"] == name and row["severity"] != "mean"]
        for name in CORRUPTIONS
    }
    ces = []
    for name, five in errors.items():  # by the paper's formula, AlexNet's five errors having this mean
        (ce,) = [float(row["ce"]) for row in rows if row["corruption"] == name and row["severity"] == "mean"]
        assert ce == pytest.approx(100 * sum(five) / (5 * ALEXNET[name]))
        ces.append(ce)
    assert float(rows[-1]["mce"]) == pytest.approx(sum(ces) / 15)
    assert f"mCE {sum(ces) / 15:.2f}" in printed
    assert "50,000" in said  # what the published figure is of


def test_mce_by_hand() -> None:
    errors = {name: [0.1, 0.2, 0.3, 0.4, 0.5] for name in ALEXNET}
    errors["fog"] = [0.5, 0.6, 0.7, 0.8, 0.9]
    by_hand = (
        *(30 / 0.886428, 30 / 0.894468, 30 / 0.922640, 30 / 0.819880, 30 / 0.826268, 30 / 0.785948, 30 / 0.798360),
        *(30 / 0.866816, 30 / 0.826572, 70 / 0.819324, 30 / 0.564592, 30 / 0.853204, 30 / 0.646056),
        *(30 / 0.717840, 30 / 0.606500),
    )
    assert mean_corruption_error(errors) == pytest.approx(sum(by_hand) / 15, abs=1e-9)
    assert mean_corruption_error({name: [value] * 5 for name, value in ALEXNET.items()}) == pytest.approx(100)
    with pytest.raises(ValueError, match="fog"):
        mean_corruption_error({name: five for name, five in errors.items() if name != "fog"})
    with pytest.raises(ValueError):
        mean_corruption_error({**errors, "fog": [0.5]})


def test_intervals_of_means_are_by_pictures() -> None:
    right = np.random.default_rng(0).random((5, 40)) < 0.6
    zeros = np.zeros(200)
    outcomes = Outcomes(np.arange(200), zeros, zeros, zeros, zeros, right.reshape(-1), zeros == 0, zeros == 0)
    mean = corruption_rows("fog", outcomes, SEVERITIES, 80.0, True)[-1]
    of_picture = right.mean(0)
    share = of_picture.mean()
    # Wilson's ends are where the share found is 1.96 standard deviations away; here of as many independent answers
    equal = 40 * share * (1 - share) / of_picture.var()
    assert equal > 40
    for end in (mean["top1_low"] / 100, mean["top1_high"] / 100):
        assert abs(share - end) == pytest.approx(1.959963985 * np.sqrt(end * (1 - end) / equal))
    for sure in (np.ones(40), np.zeros(40)):
        assert interval_of_shares(sure) == pytest.approx(wilson(sure.sum(), 40))
    assert interval_of_shares(np.ones(0)) == (0, 1)
    total = mean_row(dict.fromkeys(ALEXNET, ~right), 80.0, SEVERITIES, True)
    assert total["mce_low"] < total["mce"] < total["mce_high"]
    assert "mce" not in mean_row(dict.fromkeys(list(ALEXNET)[1:], ~right), 80.0, SEVERITIES, True)
    assert "mce" not in mean_row(dict.fromkeys(ALEXNET, ~right[:3]), 80.0, (1, 2, 3), True)


def test_a_picture_is_corrupted_the_same_whatever_is_beside_it(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.pth", 3)
    plant(tmp_path / "val", model, draw(6), 4, str)
    dataset = open_dataset(tmp_path, "val", transform=READ)
    whole = CorruptedDataset(dataset, range(6), "snow", (2, 4), seed=1)
    part = CorruptedDataset(dataset, [3], "snow", (4,), seed=1)
    other = CorruptedDataset(dataset, [3], "snow", (4,), seed=2)
    assert len(whole) == 12 and [whole[i][1] for i in range(12)] == [dataset[i % 6][1] for i in range(12)]
    assert torch.equal(whole[9][0], part[0][0])
    assert not torch.equal(other[0][0], part[0][0])
    assert not torch.equal(whole[3][0], whole[9][0])
    state = np.random.get_state()[1].tolist()
    part[0]
    assert np.random.get_state()[1].tolist() == state
    assert spread(7, None) == spread(7, 9) == list(range(7)) and spread(9, 3) == [0, 3, 6]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nowhere.pth"], ["nowhere.pth"]),
        (["--sets", "c", "--leave-out", "c"], ["--sets", "--leave-out"]),
        (["--sets", "everything"], ["everything", "sketch"]),
        (["--corruptions", "rain"], ["rain", "snow"]),
        (["--severities", "6"], ["6", "5"]),
        (["--severities", "2", "1"], ["--severities"]),
        (["--limit", "0"], ["--limit"]),
        (["--sets", "r"], ["imagenet-r"]),
        (["--sets", "real"], ["real.json"]),
        (["--results-file", "nowhere/x.csv"], ["--results-file"]),
        (["--samples", "nowhere/x.png"], ["--samples"]),
    ],
)
def test_mistakes_are_named_and_end_with_status_2(go: Any, tmp_path: Path, words: list[str], named: list[str]) -> None:
    model = save_model(tmp_path / "m.pth", 3, class_names=["0", "1", "2"])
    plant(tmp_path / "root/val", model, draw(4), 2, str)
    source = words.pop(0) if not words[0].startswith("-") else tmp_path / "m.pth"
    status, _, _, said = go(source, tmp_path / "root", *words, results=False)
    assert status == 2
    assert all(word in said for word in named)


def test_a_root_without_anything_says_what_is_looked_for(go: Any, tmp_path: Path) -> None:
    save_model(tmp_path / "m.pth", 3)
    (tmp_path / "root").mkdir()
    assert go(tmp_path / "m.pth", tmp_path / "root")[0] == 2
    assert go(tmp_path / "m.pth", tmp_path / "nowhere")[0] == 2
    save_model(tmp_path / "m.pth", 10)
    plant(
        tmp_path / "root/imagenet-a",
        save_model(tmp_path / "x.pth", 5),
        draw(3),
        1,
        lambda i: synsets_of("imagenet_a")[i],
    )
    status, _, _, said = go(tmp_path / "m.pth", tmp_path / "root")
    assert status == 2 and "imagenet-a" in said


def test_two_processes_find_what_one_does(go: Any, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.pth", 5, class_names=list("abcde"))
    plant(tmp_path / "root/val", model, draw(17), 9, lambda i: "abcde"[i])
    (tmp_path / "root/val/a/bad.png").write_bytes(b"not an image")
    words = [
        str(tmp_path / "m.pth"),
        str(tmp_path / "root"),
        "--corruptions",
        "glass_blur",
        "fog",
        "--severities",
        "2",
        "5",
    ]
    words.append("--skip-bad-images")
    _, one, _, said = go(*words)
    assert "bad.png" in said and rows_of(one)["val"]["count"] == 17
    two = tmp_path / "two.json"
    runs = run_two([*words, "--results-file", str(two), "-b", "3"], tmp_path, main)
    assert [status for status, _, _ in runs] == [0, 0], runs
    assert json.loads(two.read_text())["results"] == one["results"]
    assert "glass blur" in runs[0][1] and runs[1][1:] == ("", "")


def test_real_labels_that_do_not_fit_are_a_row_and_timms_copy_is_taken_where_there_are_none(
    go: Any, imagenet: tuple[Path, Path], tmp_path: Path
) -> None:
    model, root = imagenet
    (tmp_path / "root").mkdir()
    (tmp_path / "root/val").symlink_to(root / "val")
    status, found, _, said = go(model, tmp_path / "root", "--leave-out", "c")
    row = rows_of(found)["real"]
    known = real_labels("timm", open_dataset(tmp_path / "root", "val"), Labels()).real
    assert status == 0 and row["count"] == sum(bool(classes) for classes in known) and "timm" in said

    (tmp_path / "root/real.json").write_text("[[1], [2]]")  # of two images
    status, found, _, said = go(model, tmp_path / "root", "--leave-out", "c")
    assert status == 1 and "ILSVRC2012_val_" in rows_of(found)["real"]["failed"]
    assert rows_of(found)["val"]["correct"] == 24
    assert go(model, tmp_path / "root", "--sets", "real")[0] == 2


def test_validation_pictures_of_classes_that_the_model_lacks(go: Any, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.pth", 5, class_names=list("abcde"))
    plant(tmp_path / "root/val", model, draw(9), 4, lambda i: "abcde"[i])
    draw(1)[0].save(tmp_path / "root/val/a/also.png")
    (tmp_path / "root/val/z").mkdir()
    draw(1)[0].save(tmp_path / "root/val/z/x.png")
    status, _, _, said = go(tmp_path / "m.pth", tmp_path / "root")
    assert status == 2 and "z" in said
    other = save_model(tmp_path / "n.pth", 5, class_names=list("ABCDE"))  # other names, as many: in their order
    plant(tmp_path / "other/val", other, draw(40), 25, lambda i: f"{i} kind")
    assert len(list((tmp_path / "other/val").iterdir())) == 5
    status, found, _, said = go(tmp_path / "n.pth", tmp_path / "other", "--leave-out", "c")
    assert status == 0 and rows_of(found)["val"]["correct"] == 25 and "0 kind" in said


def test_a_broken_picture_stops_its_set_and_no_other(go: Any, imagenet: tuple[Path, Path], tmp_path: Path) -> None:
    model, root = imagenet
    shutil.copytree(root / "imagenet-r", tmp_path / "root/imagenet-r")
    (tmp_path / "root/sketch").symlink_to(root / "sketch")
    broken = next((tmp_path / "root/imagenet-r").glob("*/*.png"))
    broken.write_bytes(b"not an image")
    status, found, _, _ = go(model, tmp_path / "root")
    assert status == 1 and broken.name in rows_of(found)["r"]["failed"]
    assert rows_of(found)["sketch"]["correct"] == 3
    status, found, _, said = go(model, tmp_path / "root", "--skip-bad-images")
    assert status == 0 and rows_of(found)["r"]["count"] == 24 and broken.name in said
