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

from davit.engine.flags import given_flags
from davit.predict import Failure, Predictor
from davit.predict.flags import load_asked_for, predict_parser
from davit.predict.report import write_results
from davit.predict.result import bar
from davit.text import original
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
    (folder / "near" / "5.png").write_bytes(b"no image at all")
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


ODD = [
    b"caf\xe9.png",
    b'new\nline".png',
    b"tab\t,.png",
    b"cr\r.png",
    b"esc\x1b[31m.png",
    "\u202e.png".encode(),
    b"\\x.png",
]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Images whose names are hard to write, and one of them that is none."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ODD:
        (folder / os.fsdecode(name)).write_bytes(png(noise(1)))
    (folder / os.fsdecode(b"bad\xe9.png")).write_bytes(b"no image")
    return folder


def test_any_name_has_a_row_in_every_format(predict: Predict, odd: Path) -> None:
    """Case 27. Each row gives the file back; no control character reaches a table or the log."""
    names = {os.fsencode(odd) + b"/" + name for name in (*ODD, b"bad\xe9.png")}
    for form in ("csv", "json", "jsonl"):
        done = predict(odd, "--format", form, "--output_dir", "out")
        assert done.status == 1 and "\x1b" not in done.err
        entries = rows(done.out) if form == "csv" else json.loads(done.out) if form == "json" else None
        entries = [json.loads(line) for line in done.out.splitlines()] if entries is None else entries
        found = [original(entry["file"]) if form == "csv" else entry["file"] for entry in entries]
        assert set(map(os.fsencode, found)) == names and len(found) == 8
    done = predict(odd, "--topk", 1)
    lines = done.out.splitlines()
    assert len(lines) == 9 and "\x1b" not in done.out and "\u202e" not in done.out
    listed = {original(line.partition("odd/")[2]) for line in lines if "odd/" in line}
    assert {os.fsencode(odd / name) for name in listed} == names
    with Path("out/topk_ids.csv").open(newline="", encoding="utf-8") as stream:
        assert {os.fsencode(original(row[0])) for row in csv.reader(stream)} == set(ODD)


def test_a_list_of_any_names(predict: Predict, folder: Path, odd: Path) -> None:
    """`find FOLDER -print0` names folders and what is in them: an image has one row."""
    (odd / "empty").mkdir()
    everything = [os.fsencode(path) for path in (odd, *odd.rglob("*"))]
    done = predict("-", "--format", "json", stdin=b"\0".join(everything) + b"\0")
    found = [os.fsencode(entry["file"]) for entry in json.loads(done.out)]
    assert sorted(found) == sorted(path for path in everything if path.endswith(b".png"))
    lines = b"\xef\xbb\xbf" + os.fsencode(odd) + b"/caf\xe9.png\r\n  " + os.fsencode(folder / "near/1.png") + b" \n\n"
    done = predict("-", "--format", "csv", stdin=lines)
    assert [original(row["file"]).rpartition("/")[2] for row in rows(done.out)] == ["caf\udce9.png", "1.png"]


def test_a_terminal_and_a_stream_of_another_encoding(loaded: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [Failure("日\x1b.png", "é")]
    for form in ("table", "csv"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        monkeypatch.setattr(stream, "isatty", lambda: True)
        write_results(results, form, stream, topk=1)
        text = stream.buffer.getvalue().decode("latin-1")  # type: ignore[attr-defined]
        assert r"\xe6\x97\xa5\x1b.png" in text and "é" in text


def test_what_a_folder_holds_beside_pictures_is_said(predict: Predict, folder: Path) -> None:
    done = predict(folder)
    assert done.status == 0 and "1 .txt" in done.err
    (folder / "near" / "1.png").rename(folder / "near" / "1")
    assert len(predict(folder, "--topk", 1).out.splitlines()) == 9


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
assert load is davit.load is davit.loading.load
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


@pytest.mark.parametrize("words", [[], ["--pretrained"], ["--checkpoint", ""]])
def test_no_model_is_taken_that_nobody_named(words: list[str], tmp_path: Path) -> None:
    flags = predict_parser()
    argv = [str(tmp_path), *words]
    with pytest.raises(ValueError):
        load_asked_for(flags.parse_args(argv), given_flags(predict_parser, argv), {})
