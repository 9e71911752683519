"""Check that the figures show what they say, and that the command draws them or says what is wrong."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import davit
from davit import style
from davit.predict import Predictor
from davit.visualize import figure
from davit.visualize.__main__ import main
from tests.visualize.conftest import COLOURS, SIDE, scene


def panels(predictor: Predictor, file: Path) -> dict[str, Any]:
    """The axes of a figure by their titles."""
    return {axes.get_title(): axes for axes in figure.render(predictor, figure.look(predictor, file)).axes}


def test_what_the_panels_hold(predictor: Predictor, scene_file: Path) -> None:
    """Data of the right size that is not one colour, and the windows' borders."""
    found = panels(predictor, scene_file)
    colour = COLOURS[scene(1000).colour]
    assert {"what the model sees", f"evidence for {colour}", "classes", "windows: attention received"} <= set(found)
    shown = found["what the model sees"].images[0].get_array()
    np.testing.assert_allclose(shown, scene(1000).pixels / 255, atol=2e-3)
    for title, axes in found.items():
        for image in axes.images:
            assert np.ptp(np.asarray(image.get_array(), dtype=float)) > 0, title
    assert found[f"evidence for {colour}"].images[1].get_array().shape == (8, 8)
    assert {line.get_xdata()[0] for line in found["windows: attention received"].lines} >= {0, 4}
    longest = max(bar.get_width() for bar in found["classes"].patches)
    assert longest == pytest.approx(100 * predictor.predict(scene_file).probability)


def test_maps_of_a_picture_that_is_not_square(predictor: Predictor, scene_file: Path) -> None:
    """Each lies over the whole image and keeps its shape."""
    seen = figure.look(predictor, scene_file)
    wide = dataclasses.replace(seen, shown_HWC=seen.shown_HWC[:32])
    drawn = figure.render(predictor, wide)
    drawn.draw_without_rendering()
    for axes in drawn.axes:
        if axes.get_title().startswith(("evidence", "windows")):
            place = axes.get_window_extent()
            assert place.width / place.height == pytest.approx(2, abs=0.05)
            assert all(image.get_extent() == axes.images[0].get_extent() for image in axes.images)


def test_the_cross_is_on_the_object_and_the_class_may_be_chosen(predictor: Predictor, scene_file: Path) -> None:
    truth = scene(1000)
    seen = figure.look(predictor, scene_file)
    assert all(abs(share * SIDE - centre) < 16 for share, centre in zip(seen.marked, truth.centre, strict=True))
    drawn = figure.evidence_image(seen)
    assert drawn.size == (320, 320) and len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 500
    row, column = (int(320 * share) for share in seen.marked)
    red, _, blue = np.asarray(drawn)[row, column].astype(int)
    assert red > blue  # orange speaks for the class
    other = (truth.colour + 1) % 3
    seen = figure.look(predictor, scene_file, other)
    assert seen.evidence[0].class_index == other and seen.prediction.index == truth.colour
    assert len({evidence.class_index for evidence in seen.evidence}) == 3


@pytest.mark.parametrize("word", ["blue", "2", "BLU"])
def test_the_class_on_the_command_line(trained: Path, scene_file: Path, tmp_path: Path, word: str) -> None:
    out = tmp_path / "out.svg"
    assert main([str(scene_file), "--checkpoint", str(trained), "--class", word, "--out", str(out)]) == 0
    text = out.read_text()
    assert text.index("evidence for blue") < text.index("evidence for red")


def test_several_pictures_some_of_one_name_and_a_broken_one(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(("1.png", "2.png", "2.bmp", "below/1.png"), start=1):
        Image.fromarray(scene(seed).pixels).save(folder / name)
    (folder / "3.png").write_bytes(b"broken")
    with caplog.at_level(logging.INFO):
        assert main([str(folder), "--checkpoint", str(trained), "--out", str(tmp_path / "figures"), "-b", "2"]) == 1
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert len(drawn) == 4 and all(name.endswith("-seen.png") for name in drawn)
    assert "3.png" in caplog.text and "--batch-size: " in caplog.text
    assert COLOURS[scene(1).colour] in caplog.text


def test_another_model_has_no_attention_to_show(tmp_path: Path, scene_file: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    entries = {"state_dict": model.state_dict(), "args": {"model": "resnet10t", "img_size": 32, "num_classes": 3}}
    torch.save(entries, tmp_path / "resnet.pth")
    found = panels(davit.load(tmp_path / "resnet.pth"), scene_file)
    assert len(found) == 5 and "what the model sees" in found


# --- curves ---


def test_the_curves_of_several_runs(tmp_path: Path) -> None:
    """In a colour for each, without the panels that have no numbers."""
    for name, rate in (("fast", 0.5), ("slow", 0.1)):
        (tmp_path / name).mkdir()
        rows = [f"{epoch},{2 * (1 - rate) ** epoch},{100 - 90 * (1 - rate) ** epoch},nan,0,a" for epoch in range(8)]
        columns = "epoch,train_loss,eval_top1,lr,grad_norm,text"
        (tmp_path / name / "summary.csv").write_text("\n".join([columns, *rows]) + "\n")
    runs, out = [str(tmp_path / "fast"), str(tmp_path / "slow" / "summary.csv")], tmp_path / "curves.svg"
    assert main(["--runs", *runs, "--out", str(out)]) == 0
    drawn = out.read_text()
    assert all(word in drawn for word in ("fast", "slow", "accuracy", "gradient norm", *style.COLOURS[:2]))
    assert style.COLOURS[2] not in drawn and "speed" not in drawn


# --- mistakes ---


@pytest.mark.parametrize(
    "words, why",
    [
        *(("", "--checkpoint"), ("{picture} --runs run", "--runs"), ("--runs .", "summary.csv")),
        *(("{given} --class mauve", "mauve"), ("{given} --class 3", "'3'"), ("{given} --class e", "'e'")),
        *(("{given} --out out.doc", "out.doc"), ("{picture} {given} --out out.png", "2 images")),
        ("{picture} --checkpoint nowhere.pth", "nowhere.pth"),
        ("{given} --pretrained", "--pretrained"),
    ],
)
def test_mistakes(
    trained: Path,
    scene_file: Path,
    tmp_path: Path,
    words: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.format(picture=scene_file, given=f"{scene_file} --checkpoint {trained}").split()) == 2
    assert why in caplog.text
    assert not any(Path().glob("out.*"))


def test_names_are_drawn_as_they_stand(
    predictor: Predictor, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs of formulas are no formula; a name that no font has is the class's index, and no name stops a drawing."""
    names = ["$x{$", "a\x1b[2J\udce9", *predictor.class_names[2:]]
    monkeypatch.setattr(predictor, "class_names", tuple(names))
    odd = tmp_path / "caf\udce9 $1$\n.png"
    odd.write_bytes(scene_file.read_bytes())
    found = figure.draw_picture(predictor, odd, tmp_path / "seen.png", class_index=0)
    assert Image.open(tmp_path / "seen.png").size[0] > 100 and found.file == str(odd)
    drawn = " ".join(text.get_text() for text in panels(predictor, odd)["classes"].texts)
    assert r"a\x1b[2J\xe9" in drawn and "$x{$" in drawn
    monkeypatch.setattr("davit.fonts.font_for", lambda text: None)
    drawn = [text.get_text() for text in panels(predictor, odd)["classes"].texts]
    assert all(text.split()[0].isdigit() for text in drawn)
