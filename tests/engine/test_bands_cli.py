"""Training, evaluation, prediction and drawings of images of four bands and 12 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import davit
from davit.data import Decoding
from davit.engine.run_folder import read_state
from davit.engine.validate import main as validate
from davit.predict.cli import main as predict
from davit.visualize.__main__ import main as visualize
from tests.engine.runs import SMALL_MODEL, run_here

SHORT = [
    *("--epochs", "1", "--warmup-epochs", "0", "--cooldown-epochs", "0", "--batch-size", "4", "--workers", "0"),
    *("--output", "runs", "--experiment", "a"),
]


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, of which only the fourth of four bands tells; 12 bits in 16."""
    root = tmp_path_factory.mktemp("bands")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(("low", "high")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                values = draw.integers(0, 4096, (20, 24, 4), dtype=np.uint16)
                values[..., 3] = 600 + 2800 * number
                np.save(root / split / name / f"{i}.npy", values)
    return root


def checkpoint_of(folder: Path) -> Path:
    return folder / "runs" / "a" / "model_best.pth.tar"


@pytest.fixture(scope="module")
def trained(bands: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    flags = [
        "--input-size",
        "4",
        "16",
        "16",
        "--bit-depth",
        "12",
        "--mean",
        "0.5",
        "--std",
        "0.1",
        "0.2",
        "0.3",
        "0.4",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_here(bands, *SHORT, *flags, cwd=folder)
    return checkpoint_of(folder)


def test_the_checkpoint_notes_how_pictures_are_read(trained: Path):
    args = read_state(trained)["args"]
    assert (args["bit_depth"], args["percentiles"], tuple(args["input_size"])) == (12, None, (4, 16, 16))
    assert list(args["mean"]) == [0.5] * 4 and list(args["std"]) == [0.1, 0.2, 0.3, 0.4]


def test_evaluation_and_prediction_read_as_training_did(
    trained: Path, bands: Path, capsys: pytest.CaptureFixture[str]
):
    predictor = davit.load(trained, device="cpu")
    assert predictor.decoding == Decoding(4, bit_depth=12)
    seen: list[torch.Tensor] = []
    predictor.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    file = bands / "val" / "high" / "0.npy"
    found = predictor.predict(file)
    assert predictor.predict(np.load(file)).probabilities.equal(found.probabilities)
    assert predictor.predict(file.read_bytes()).probabilities.equal(found.probabilities)
    torch.testing.assert_close(seen[0][0, 3], torch.full((16, 16), (3400 / 4095 - 0.5) / 0.4))
    assert davit.load(trained, bit_depth=16).decoding == Decoding(4, bit_depth=16)
    assert davit.load(trained, percentiles=(1, 99)).decoding == Decoding(4, percentiles=(1, 99))
    assert validate([str(bands), "--checkpoint", str(trained), "-j", "0", "-b", "2", "--json"]) == 0
    assert '"count": 6' in capsys.readouterr().out
    assert predict([str(bands / "val"), "--checkpoint", str(trained), "--workers", "0", "--format", "csv"]) == 0
    assert str(file) in capsys.readouterr().out


def test_what_four_bands_show_is_drawn(trained: Path, bands: Path, tmp_path: Path):
    words = [str(bands / "val" / "low" / "0.npy"), "--checkpoint", str(trained), "--out", str(tmp_path / "a.png")]
    assert visualize(words) == 0
    assert Image.open(tmp_path / "a.png").width > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--input-size", "3", "16", "16"], "--input-size"),
        (["--in-chans", "2"], "--in-chans"),
        (["--in-chans", "4", "--input-size", "3", "16", "16"], "--in-chans"),
        (["--bit-depth", "12", "--percentiles", "1", "99"], "--bit-depth"),
        (["--mean", "0.1", "0.2", "0.3"], "0.3"),
    ],
)
def test_contradictions(trained: Path, bands: Path, words: list[str], said: str, caplog: pytest.LogCaptureFixture):
    assert validate([str(bands), "--checkpoint", str(trained), "--workers", "0", *words]) == 2
    assert said in caplog.text and "Traceback" not in caplog.text


def test_in_chans_alone_with_what_is_not_known_said(bands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of four bands no mean is known: 0.5 is taken and said; a second run without that word differs in nothing."""
    monkeypatch.chdir(tmp_path)
    said = run_here(bands, *SHORT, "--in-chans", "4", "--percentiles", "1", "99", cwd=tmp_path).stderr
    assert "--mean" in said and "--std" in said
    state = read_state(checkpoint_of(tmp_path))
    assert list(state["args"]["mean"]) == [0.5] * 4 and tuple(state["args"]["input_size"]) == (4, 16, 16)
    assert davit.load(checkpoint_of(tmp_path)).decoding == Decoding(4, percentiles=(1, 99))
    more = ["--overwrite", "--mean", "0.5", "--std", "0.5", "--percentiles", "1", "99"]
    run_here(bands, *SHORT, "--input-size", "4", "16", "16", *more, cwd=tmp_path)
    again = read_state(checkpoint_of(tmp_path))
    for name, tensor in state["state_dict"].items():
        assert torch.equal(tensor, again["state_dict"][name])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--in-chans", "4", "--aa", "augmix-m5-w4"], "--aa"),
        (["--in-chans", "4", "--color-jitter", "0.3"], "--color-jitter"),
        (["--in-chans", "4", "--input-size", "2", "16", "16"], "--in-chans"),
        (["--in-chans", "4", "--mean", "0.1", "0.2"], "--mean"),
        (["--in-chans", "0"], "--in-chans"),
        (["--bit-depth", "40"], "--bit-depth"),
        (["--in-chans", "2"], "(20, 24, 4)"),
    ],
)
def test_mistakes(bands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str):
    monkeypatch.chdir(tmp_path)
    done = run_here(bands, *SHORT, *flags, cwd=tmp_path, status=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_of_three_bands_start_a_training_of_four(bands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first convolution is spread over the bands, as timm does it."""
    monkeypatch.chdir(tmp_path)
    model = davit.create_model("DaViT_nano", num_classes=2, **_kwargs())
    torch.save(model.state_dict(), "three.pth")
    flags = ["--initial-checkpoint", "three.pth", "--in-chans", "4", "--dry-run"]
    assert "from 3 to 4 input channels" in run_here(bands, *SHORT, *flags, cwd=tmp_path).stderr


def _kwargs() -> dict[str, object]:
    words = SMALL_MODEL[SMALL_MODEL.index("--model-kwargs") + 1 :]
    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}
