"""Embed folders: features equal to the model's own, names in order, and the nearest images."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davit
from davit.data import BadImageError
from davit.embed import read_embeddings, weights_sha256
from davit.predict import Predictor
from davit.visualize import sheet
from tests.predict.conftest import MODEL_KWARGS, Outcome, noise, png

Embed = Callable[..., Outcome]
IN_ORDER = ["deep/deeper/8.png", "deep/deeper/9.png", *(f"near/{number}.png" for number in range(1, 8))]


def features_of(network: Any, pictures: list[Image.Image]) -> np.ndarray[Any, Any]:
    """By the model itself, one image of 16 x 16 pixels at a time."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    rows = []
    for picture in pictures:
        x_HWC = (torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255 - mean) / std
        with torch.no_grad():
            x_BCHW = x_HWC.permute(2, 0, 1)[None]
            rows.append(network.forward_head(network.forward_features(x_BCHW), pre_logits=True)[0].numpy())
    return np.stack(rows)


def close(found: Any, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_folders_features_in_order(
    embed: Embed, folder: Path, model: torch.nn.Module, checkpoint: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    done = embed(folder, f"e{suffix}", "--batch-size", 4)
    assert (done.status, done.out) == (0, "")
    found = read_embeddings(tmp_path / f"e{suffix}")
    assert list(found.names) == IN_ORDER
    close(found.features_NC, features_of(model, [noise(int(Path(name).stem)) for name in IN_ORDER]))
    about = found.metadata
    assert about["weights_sha256"] == weights_sha256(model)
    assert (about["model"], about["checkpoint"], about["folder"]) == ("DaViT_nano", str(checkpoint), str(folder))
    assert about["preprocessing"]["input_size"] == [3, 16, 16] and about["preprocessing"]["crop_pct"] == 1.0
    assert (about["count"], about["skipped"], about["precision"]) == (9, 0, "float32")


@pytest.mark.parametrize("size", [1, 2, 5, 300])
def test_any_batch_gives_the_same(
    embed: Embed, folder: Path, model: torch.nn.Module, tmp_path: Path, size: int
) -> None:
    embed(folder, "e.npz", "-b", size)
    expected = features_of(model, [noise(int(Path(name).stem)) for name in IN_ORDER])
    close(read_embeddings(tmp_path / "e.npz").features_NC, expected)


def test_names_of_any_bytes_and_pictures_that_cannot_be_read(embed: Embed, tmp_path: Path) -> None:
    names = [b"a.png", b"caf\xe9.png", b"new\nline.png"]
    (tmp_path / "odd").mkdir()
    for number, name in enumerate(names):
        Path(str(tmp_path / "odd").encode().decode(), name.decode("utf-8", "surrogateescape")).write_bytes(
            png(noise(number))
        )
    (tmp_path / "odd" / "b.png").write_bytes(b"\x89PNG")
    for out in ("e.npz", "e.parquet"):
        if out == "e.parquet":
            pytest.importorskip("pyarrow")
        done = embed("odd", out)
        assert done.status == 1 and "b.png" in done.err
        found = read_embeddings(tmp_path / out)
        assert {name.encode("utf-8", "surrogateescape") for name in found.names} == set(names)
        assert found.metadata["skipped"] == 1


def test_grey_sixteen_bits_and_copies(embed: Embed, model: torch.nn.Module, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(grey).save(tmp_path / "in/1.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "in/2.png")
    shutil.copy(tmp_path / "in/1.png", tmp_path / "in/3.png")
    done = embed("in", "e.npz", "--neighbours", "in/1.png", "--neighbours", "in/3.png", "--count", 2)
    found = read_embeddings(tmp_path / "e.npz")
    close(found.features_NC, features_of(model, [Image.fromarray(grey)] * 3))
    lines = [line.split() for line in done.out.splitlines()]
    assert lines == [
        ["in/1.png"],
        ["1.0000", "2.png"],
        ["1.0000", "3.png"],
        ["in/3.png"],
        ["1.0000", "1.png"],
        ["1.0000", "2.png"],
    ]


def test_neighbours_are_printed_and_drawn(
    embed: Embed, folder: Path, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(99).save(tmp_path / "asked.png")
    drawn: list[Any] = []
    render = sheet.render_sheet
    monkeypatch.setattr(sheet, "render_sheet", lambda rows, title: drawn.append(rows) or render(rows, title))
    done = embed(folder, "e.npz", "--neighbours", "asked.png", "--count", 20)
    assert done.status == 0
    unit = features_of(model, [noise(99), *(noise(int(Path(name).stem)) for name in IN_ORDER)])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit[1:] @ unit[0]
    expected = [IN_ORDER[place] for place in np.argsort(-cosine)]
    first, *others = done.out.splitlines()
    assert first == "asked.png" and [line.split()[1] for line in others] == expected
    assert [float(line.split()[0]) for line in others] == pytest.approx(sorted(cosine, reverse=True), abs=6e-5)
    ((asked, near),) = drawn[0]
    assert asked.picture == "asked.png" and [shown.picture for shown in near] == [
        str(folder / name) for name in expected
    ]
    with Image.open(tmp_path / "e-neighbours.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height
    assert embed(folder, "e.npz", "--neighbours", folder / "near/1.png", "--sheet", "near.svg").status == 0
    assert (tmp_path / "near.svg").read_bytes().startswith(b"<?xml")


def test_a_list_on_standard_input_and_a_single_picture(embed: Embed, folder: Path, tmp_path: Path) -> None:
    assert embed("-", "e.npz", stdin=f"{folder}/near/2.png\n{folder}/near/1.png\n".encode()).status == 0
    assert read_embeddings(tmp_path / "e.npz").names == (f"{folder}/near/2.png", f"{folder}/near/1.png")
    assert embed(folder / "near/3.png", "e.npz").status == 0
    assert read_embeddings(tmp_path / "e.npz").names == (f"{folder}/near/3.png",)


@pytest.mark.parametrize(
    "words",
    [
        ("FOLDER", "e.csv"),
        ("FOLDER", "nowhere/e.npz"),
        ("FOLDER", "FOLDER"),
        ("EMPTY", "e.npz"),
        ("FOLDER", "e.npz", "--count", "0"),
        ("FOLDER", "e.npz", "--neighbours", "nothing.png"),
        ("FOLDER", "e.npz", "--neighbours", "FOLDER/near/1.png", "--sheet", "nowhere/a.png"),
        ("FOLDER", "e.npz", "--neighbours", "FOLDER/near/1.png", "--sheet", "a.doc"),
        ("FOLDER", "e.npz", "--model", "resnet18"),
        ("FOLDER",),
    ],
)
def test_a_mistake_ends_with_status_2(embed: Embed, folder: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": str(folder), "EMPTY": "empty", "FOLDER/near/1.png": str(folder / "near/1.png")}
    done = embed(*(places.get(word, word) for word in words))
    assert (done.status, done.out if "a.doc" not in words else "") == (2, "")
    assert "Traceback" not in done.err


def test_nothing_that_can_be_read(embed: Embed, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"\x89PNG")
    assert embed("bad", "e.npz").status == 2
    assert not (tmp_path / "e.npz").exists()


# --- from Python ---


def test_a_predictor_embeds(loaded: Predictor, model: torch.nn.Module, tmp_path: Path) -> None:
    pictures = [noise(number) for number in range(40)]
    found = loaded.embed(pictures)
    assert found.shape == (40, 16) and found.dtype == torch.float32 and found.device.type == "cpu"
    close(found.numpy(), features_of(model, pictures))
    close(loaded.embed(pictures[3]).numpy(), features_of(model, pictures[3:4]))
    assert loaded.embed([]).shape == (0, 16)
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(BadImageError):
        loaded.embed([pictures[0], tmp_path / "broken.png"])


def test_a_model_without_a_classifier_embeds_and_names_no_classes(
    save: Callable[..., Path], model: torch.nn.Module
) -> None:
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    predictor = davit.load(save(state_dict=state, class_names=None), device="cpu")
    assert predictor.class_names == ()
    close(predictor.embed(noise(1)).numpy(), features_of(model, [noise(1)]))
    for use in (predictor.predict, lambda picture: next(predictor.predict_each([picture]))):
        with pytest.raises(ValueError, match="no classes"):
            use(noise(1))


def test_features_that_are_not_finite(save: Callable[..., Path], embed: Embed, folder: Path) -> None:
    network = davit.create_model("DaViT_nano", num_classes=3, **MODEL_KWARGS)
    state = {name: torch.full_like(value, torch.nan) for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="finite"):
        davit.load(save(state_dict=state)).embed(noise(1))
