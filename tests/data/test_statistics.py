"""The mean and the std of bands, as numpy has them over all pixels, and as train.py takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from davit.data import DataError, Decoding, open_dataset
from davit.data.__main__ import main as command
from davit.data.statistics import measure_bands
from davit.engine.flags import parse_with_config, train_parser
from davit.engine.run_folder import read_state
from tests.engine.runs import SHORT, run_here
from tests.forms import as_csv, as_tar

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def bands(tmp_path: Path) -> Path:
    """Two classes of four bands and 12 bits in 16, as TIFF and NPY, of several sizes; the last band is constant."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for name in ("low", "high"):
            (tmp_path / "bands" / split / name).mkdir(parents=True)
            for number in range(count):
                values = draw.integers(0, 4096, (16 + number, 20, 4), dtype=np.uint16)
                values[..., 2] //= 7
                values[..., 3] = 819
                file = tmp_path / "bands" / split / name / str(number)
                if number % 2:
                    np.save(file.with_suffix(".npy"), values)
                else:
                    extra = {"photometric": "minisblack", "extrasamples": [0, 0, 0]}
                    tifffile.imwrite(file.with_suffix(".tif"), values, planarconfig="contig", **extra)
    return tmp_path / "bands"


def pixels_of(folder: Path) -> np.ndarray[Any, Any]:
    """All values below a folder, (N, C)."""
    arrays = []
    for file in sorted(folder.rglob("*.*")):
        array = np.load(file) if file.suffix == ".npy" else tifffile.imread(file) if file.suffix == ".tif" else None
        arrays.append(np.asarray(Image.open(file)) if array is None else array)
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays]).astype(np.float64)


@pytest.mark.parametrize(("depth", "white"), [(12, 4095), (None, 65535)])
def test_bands_equal_numpys(bands: Path, depth: int | None, white: int) -> None:
    shares = pixels_of(bands / "train") / white
    found = [measure_bands(open_dataset(bands, "train"), Decoding(4, depth), workers=workers) for workers in (0, 2)]
    assert found[0] == found[1]
    assert found[0].mean == pytest.approx(shares.mean(0), abs=1e-6)
    assert found[0].std == pytest.approx(shares.std(0), abs=1e-6)
    assert found[0].low == pytest.approx(shares.min(0), abs=1e-6)
    assert found[0].high == pytest.approx(shares.max(0), abs=1e-6)
    for percentage, values in found[0].percentiles.items():
        assert values == pytest.approx(np.percentile(shares, percentage, axis=0), abs=2 / 4095)
    assert (found[0].pictures, found[0].pixels, found[0].constant) == (24, len(shares), [3])
    assert (found[0].smallest, found[0].largest) == ((20, 16), (20, 27))


@pytest.mark.parametrize("form", ["folder", "csv", "tar"])
def test_eight_bits_of_any_source(form: str, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_folder()
    shares = pixels_of(root / "train") / 255
    place = {
        "folder": lambda: root,
        "csv": lambda: as_csv(root, tmp_path / "c"),
        "tar": lambda: as_tar(root, tmp_path / "t"),
    }
    found = measure_bands(open_dataset(place[form](), "train"), Decoding())
    assert found.mean == pytest.approx(shares.mean(0), abs=1e-12)
    assert found.std == pytest.approx(shares.std(0), abs=1e-12)


def test_one_band_and_stretched_percentiles(bands: Path) -> None:
    first = sorted((bands / "train/high").iterdir())[0]
    values = tifffile.imread(first).astype(np.float64)
    for file in [*(bands / "train/high").iterdir()][0:]:
        if file != first:
            file.unlink()
    low, high = np.percentile(values, (10, 90))
    wanted = ((values - low) / (high - low)).clip(0, 1).reshape(-1, 4)
    source = open_dataset(bands / "train", ".", class_map={"high": 0})
    found = measure_bands(source, Decoding(4, None, (10, 90)))
    assert found.mean == pytest.approx(wanted.mean(0), abs=1e-6)
    assert found.recipe()["percentiles"] == [10, 90]


def test_a_sample_follows_from_its_seed(make_folder: Callable[..., Path]) -> None:
    dataset = open_dataset(make_folder(), "train")
    found = {seed: measure_bands(dataset, Decoding(), limit=5, seed=seed) for seed in range(3)}
    assert found[0] == measure_bands(dataset, Decoding(), limit=5, seed=0, workers=1)
    assert len({one.mean for one in found.values()}) == 3
    assert all((one.pictures, one.listed) == (5, 40) for one in found.values())
    everything = measure_bands(dataset, Decoding())
    assert measure_bands(dataset, Decoding(), limit=99) == everything
    assert everything.mean != found[0].mean


def test_bad_pictures_are_counted_and_no_good_one_is_an_error(
    make_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder()
    bad = root / "train/ant/000.png"
    bad.write_bytes(b"none")
    found = measure_bands(open_dataset(root, "train"), Decoding())
    assert list(found.bad) == [str(bad)] and found.pictures == 39
    assert caplog.records[-1].levelname == "WARNING" and "000.png" in caplog.text
    with pytest.raises(DataError):
        measure_bands(open_dataset(root, "train"), Decoding(5))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_the_recipe_trains(bands: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / f"bands{suffix}"
    words = [str(bands), "--in-chans", "4", "--bit-depth", "12", "-j", "0"]
    assert command(["stats", *words, "--output", str(recipe)]) == 0
    printed = capsys.readouterr().out.split()
    by_file = parse_with_config(train_parser(), [str(bands), "-c", str(recipe)])
    by_words = train_parser().parse_args([str(bands), *printed])
    for name in ("in_chans", "bit_depth", "mean", "std"):
        assert getattr(by_file, name) == getattr(by_words, name)
    shares = pixels_of(bands / "train") / 4095
    assert by_file.mean == pytest.approx(shares.mean(0), abs=1e-6)
    assert by_file.std == pytest.approx([*shares.std(0)[:3], 1.0], abs=1e-6)
    run_here(bands, "-c", str(recipe), *SHORT, "--epochs", "1", cwd=tmp_path)
    noted = read_state(tmp_path / "runs/a/last.pth.tar")["args"]
    assert (noted["in_chans"], noted["bit_depth"], len(noted["mean"])) == (4, 12, 4)


def test_json_on_the_output(make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder()
    assert command(["stats", str(root), "--json", "-j", "1", "--split", "val"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text) == yaml.safe_load(text)
    assert json.loads(text)["mean"] == pytest.approx((pixels_of(root / "val") / 255).mean(0), abs=1e-7)


@pytest.mark.parametrize(
    "words", [["--split", "test"], ["--bit-depth", "0"], ["--limit", "0"], ["--output", "/none/a"]]
)
def test_mistakes(words: list[str], make_folder: Callable[..., Path]) -> None:
    try:
        assert command(["stats", str(make_folder()), "-j", "0", *words]) == 2
    except SystemExit as leave:
        assert leave.code == 2


def test_dark_pictures_are_warned_of(bands: Path, caplog: pytest.LogCaptureFixture) -> None:
    measure_bands(open_dataset(bands, "train"), Decoding(4))
    assert any("--bit-depth" in record.message for record in caplog.records)
