"""Check predict.py as its users call it, those of the original among them."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from davit.predict import Predictor
from davit.predict.report import write_results
from davit.predict.result import bar
from tests.predict.conftest import CLASSES, Outcome, noise, png

Predict = Callable[..., Outcome]
NATURAL = ["deep/deeper/8.png", "deep/deeper/9.png", *(f"near/{number}.png" for number in range(1, 8))]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_originals_command_line(predict: Predict, loaded: Predictor, folder: Path, tmp_path: Path) -> None:
    words = [
        *(folder, "--model", "DaViT_nano", "--output_dir", tmp_path / "out"),
        *("-j", 2, "-b", 4, "--img-size", 16, "--num-classes", 3, "--log-freq", 10, "--num-gpu", 2, "--topk", 2),
        *("--model-kwargs", "embed_dims=[8,16]", "depths=[1,1]", "num_heads=[1,2]", "window_size=2"),
    ]
    done = predict(*words)
    assert done.status == 0, done.err
    assert done.err.count("--num-gpu") == 1
    written = list(csv.reader((tmp_path / "out" / "topk_ids.csv").open()))
    assert [row[0] for row in written] == [Path(name).name for name in NATURAL]
    for row, name in zip(written, NATURAL, strict=True):
        assert row[1:] == [str(guess.index) for guess in loaded.predict(folder / name, topk=2).guesses]
    assert predict(folder).status == 0
    assert not (tmp_path / "topk_ids.csv").exists()  # only when asked for
    assert predict(folder, "--output_dir", "./").status == 0
    assert len((tmp_path / "topk_ids.csv").read_text().splitlines()) == 9


# --- what is printed ---


def test_the_formats_agree(predict: Predict, loaded: Predictor, folder: Path) -> None:
    text = {form: predict(folder, "--format", form, "--topk", 2).out for form in ("csv", "json", "jsonl")}
    as_csv, as_json, lines = rows(text["csv"]), json.loads(text["json"]), text["jsonl"].splitlines()
    assert [json.loads(line) for line in lines] == as_json
    assert len(as_json) == len(as_csv) == 9
    for entry, row in zip(as_json, as_csv, strict=True):
        assert entry["file"] == row["file"] and row["error"] == ""
        for rank, guess in enumerate(entry["predictions"], start=1):
            assert (str(guess["index"]), guess["name"]) == (row[f"index_{rank}"], row[f"name_{rank}"])
            assert float(row[f"probability_{rank}"]) == pytest.approx(guess["probability"], rel=1e-5)
        truth = loaded.predict(entry["file"], topk=2)
        assert [guess["index"] for guess in entry["predictions"]] == [guess.index for guess in truth.guesses]


def test_the_table_has_a_bar_for_each_share(predict: Predict, folder: Path) -> None:
    done = predict(folder / "near" / "1.png", folder / "near" / "2.png")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [str(folder / f"near/{n}.png") for n in (1, 2)]
    shares = [float(line.split("%")[0]) for line in lines if line.startswith(" ")]
    assert sum(shares[:3]) == pytest.approx(100, abs=0.02) and shares[:3] == sorted(shares[:3], reverse=True)
    assert {line.split()[-1] for line in lines[1:4]} == set(CLASSES)
    assert [line.count("█") for line in lines[1:4]] == [int(share / 5) for share in shares[:3]]
    done = predict(folder, "--topk", 1)  # one guess is one line
    assert [line.split()[-1] for line in done.out.splitlines()] == [str(folder / name) for name in NATURAL]
    assert bar(0.5 + 1 / 64, 8) == "████▏   "


def test_a_terminal_without_unicode(loaded: Predictor) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_results([loaded.predict(noise(1))], "table", stream, topk=5)
    text = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "#" in text and "ant" in text


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl"])
def test_bad_pictures_do_not_end_the_batch(predict: Predict, folder: Path, form: str) -> None:
    (folder / "near" / "5.png").write_bytes(b"no picture at all")
    done = predict(folder, folder / "nowhere.png", "--format", form, "--output_dir", "out")
    assert done.status == 1
    for text in (done.err, done.out):
        assert "near/5.png" in text and "nowhere.png" in text
    assert "near/6.png" in done.out and "2 of 10" in done.err
    assert len(Path("out/topk_ids.csv").read_text().splitlines()) == 8


def test_standard_input(predict: Predict, loaded: Predictor, folder: Path) -> None:
    (entry,) = json.loads(predict("-", "--format", "json", stdin=png(noise(4))).out)
    assert entry["file"] == "-"
    assert entry["predictions"][0]["name"] == loaded.predict(noise(4)).name

    (folder / "near" / "1.png").rename(folder / "near" / "mit Leer ß.png")
    paths = [str(folder / "near" / "mit Leer ß.png"), str(folder / "deep")]
    for separator in ("\n", "\0", "\r\n"):
        done = predict("-", "--format", "csv", stdin=separator.join([*paths, ""]).encode())
        assert [row["file"] for row in rows(done.out)] == [paths[0], *(str(folder / name) for name in NATURAL[:2])]

    for rubbish in (png(noise(4))[:100], b"\xff\xfe\x00\x01garbage"):
        done = predict("-", stdin=rubbish)
        assert done.status == 1 and "- " in done.err


@pytest.mark.parametrize(
    "words, why",
    [
        *((["--topk", 0], "'0'"), (["--num-classes", 5], "5"), (["--mean", 0.5, 0.5], "0.5")),
        *((["--pretrained"], "--pretrained"), (["--device", "abacus"], "abacus")),
        *((["--class-map", "nowhere.txt"], "nowhere.txt"), (["--checkpoint", "nowhere.pth"], "nowhere.pth")),
        (["--output_dir", "pictures/near/1.png"], "near/1.png"),
    ],
)
def test_mistakes(predict: Predict, folder: Path, words: list[object], why: str) -> None:
    done = predict(folder / "near" / "1.png", *words)
    assert (done.status, done.out) == (2, "")
    assert why in done.err


def test_no_picture(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = predict(tmp_path / "empty")
    assert done.status == 2 and str(tmp_path / "empty") in done.err
    for stdin in (b"", b"\n"):
        assert predict("-", stdin=stdin)[:2] == (2, "")


FRESH = """
import runpy, sys, davit
loaded = {part for part in ("data", "engine", "predict") if f"davit.{part}" in sys.modules}
assert not loaded and "load" in dir(davit) and not hasattr(davit, "lode"), loaded
from davit import load
assert load is davit.load is davit.predict.load
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_as_a_process_and_a_reader_that_leaves(checkpoint: Path, folder: Path, repository: Path) -> None:
    """And who only builds a model imports neither the data sets nor the engine: `davit.load` does, when asked for."""
    words = [sys.executable, "-c", FRESH, str(repository / "predict.py"), "--checkpoint", str(checkpoint)]
    env = {**os.environ, "PYTHONPATH": str(repository)}
    many = ["-j", "0", "--format", "jsonl", *[str(folder)] * 40]
    with subprocess.Popen([*words, *many], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert b"predictions" in process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 0, err
    assert "Traceback" not in err and "Broken" not in err
