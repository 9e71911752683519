"""Predictions from Python: equal to the model's own outputs, for every kind of picture."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davit
from davit.data import BadImageError
from davit.engine import precision
from davit.kernels import why_plain
from davit.model import DualAttentionBlock, PatchEmbed
from davit.predict import Failure, Prediction, predictor
from tests.predict.conftest import CLASSES, MODEL_KWARGS, noise, png

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def expected(model: torch.nn.Module, picture: Image.Image) -> torch.Tensor:
    """The softmax of a 16 x 16 picture that is neither resized nor cropped."""
    x_HWC = (torch.from_numpy(np.array(picture)).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        return model(x_HWC.permute(2, 0, 1)[None]).softmax(1)[0]


def test_a_prediction_is_the_softmax_of_the_model(checkpoint: Path, model: torch.nn.Module, tmp_path: Path) -> None:
    noise(5).save(tmp_path / "five.png")
    result = davit.load(checkpoint).predict(tmp_path / "five.png")
    probabilities = expected(model, noise(5))
    torch.testing.assert_close(result.probabilities, probabilities)
    order = probabilities.argsort(descending=True).tolist()
    assert [guess.index for guess in result.guesses] == order
    assert [guess.name for guess in result.guesses] == [CLASSES[index] for index in order]
    assert [guess.probability for guess in result.guesses] == pytest.approx([probabilities[i].item() for i in order])
    assert (result.index, result.name) == (order[0], CLASSES[order[0]])
    assert result.probability == pytest.approx(probabilities.max().item())
    assert result.file == str(tmp_path / "five.png")


def test_a_predictor_is_accelerated_unless_told_otherwise(checkpoint: Path) -> None:
    assert why_plain(davit.load(checkpoint, device="cpu").model) == {}
    plain = davit.load(checkpoint, device="cpu", model_kwargs={"accelerate": False}).model
    assert len(why_plain(plain)) == len([m for m in plain.modules() if isinstance(m, DualAttentionBlock | PatchEmbed)])


def test_every_kind_of_picture(checkpoint: Path, tmp_path: Path) -> None:
    picture = noise(7)
    picture.save(tmp_path / "seven.png")
    kinds: list[Any] = [
        *(tmp_path / "seven.png", str(tmp_path / "seven.png"), picture, png(picture), np.asarray(picture)),
        *(bytearray(png(picture)), picture.convert("RGBA"), np.asarray(picture.convert("RGBA"))),
    ]
    loaded = davit.load(checkpoint)
    together = loaded.predict(kinds)
    assert [type(one) for one in together] == [Prediction] * len(kinds)
    for one in together:
        torch.testing.assert_close(one.probabilities, together[0].probabilities)
    torch.testing.assert_close(loaded.predict(kinds[2]).probabilities, together[0].probabilities)
    assert [one.file for one in together[2:4]] == ["picture 2", "picture 3"]
    assert loaded.predict([]) == []


def test_load_is_imported_when_it_is_asked_for() -> None:
    """Whoever only builds a model gets neither the data sets nor the engine."""
    code = (
        "import sys, davit; parts = {'data', 'engine', 'predict'}\n"
        "before = {part for part in parts if f'davit.{part}' in sys.modules}\n"
        "assert not before and 'load' in dir(davit) and not hasattr(davit, 'lode'), before\n"
        "from davit import load\n"
        "assert load is davit.load is davit.predict.load"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_grey_arrays(checkpoint: Path) -> None:
    loaded = davit.load(checkpoint)
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    of_three = loaded.predict(np.stack([grey] * 3, axis=2))
    torch.testing.assert_close(loaded.predict(grey).probabilities, of_three.probabilities)


@pytest.mark.parametrize(
    "wrong, why",
    [
        (np.zeros((16, 16, 3), np.float32), "float32"),
        (np.zeros((3, 16, 16), np.uint8), r"\(3, 16, 16\)"),
        (np.zeros((0, 16, 3), np.uint8), r"\(0, 16, 3\)"),
        (None, "NoneType"),
        (torch.zeros(3, 16, 16), "Tensor"),
    ],
)
def test_what_is_no_picture_is_refused(checkpoint: Path, wrong: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        davit.load(checkpoint).predict(wrong)


def test_a_broken_picture_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    loaded = davit.load(checkpoint)
    with pytest.raises(BadImageError, match=r"broken\.jpg: not a picture"):
        loaded.predict([noise(0), tmp_path / "broken.jpg"])
    with pytest.raises(BadImageError, match="picture 1"):
        loaded.predict([noise(0), png(noise(1))[:90]])


def test_topk(checkpoint: Path) -> None:
    loaded = davit.load(checkpoint)
    assert len(loaded.predict(noise(0), topk=2).guesses) == 2
    assert len(loaded.predict(noise(0), topk=99).guesses) == 3
    with pytest.raises(ValueError, match="topk=0"):
        loaded.predict(noise(0), topk=0)


def test_a_list_longer_than_a_batch(checkpoint: Path, model: torch.nn.Module) -> None:
    pictures = [noise(seed) for seed in range(70)]
    results = davit.load(checkpoint).predict(pictures)
    for picture, result in zip(pictures, results, strict=True):
        torch.testing.assert_close(result.probabilities, expected(model, picture), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_in_order_with_bad_ones_between(
    checkpoint: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "_WORKERS_FROM", 4)
    files = [str(tmp_path / f"{number}.png") for number in range(12)]
    bad = {0, 3, 4, 5, 6, 11}
    for number, file in enumerate(files):
        if number in bad:
            Path(file).write_bytes(b"" if number == 4 else b"broken")
        else:
            noise(number).save(file)
    loaded = davit.load(checkpoint)
    results = list(loaded.predict_each(files, batch_size=3, workers=workers))
    assert [result.file for result in results] == files
    assert {number for number, result in enumerate(results) if isinstance(result, Failure)} == bad
    assert "0 bytes" in results[4].reason  # type: ignore[union-attr]
    for number in sorted(set(range(12)) - bad):
        same = loaded.predict(files[number])
        torch.testing.assert_close(results[number].probabilities, same.probabilities)  # type: ignore[union-attr]


def test_nothing_readable_is_all_failures(checkpoint: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.png")
    results = list(davit.load(checkpoint).predict_each([missing, missing]))
    assert [type(result) for result in results] == [Failure, Failure]
    assert "no such file" in results[0].reason  # type: ignore[union-attr]


def test_outputs_that_are_not_finite_are_no_prediction(save: Callable[..., Path], model: torch.nn.Module) -> None:
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["head.bias"][1] = torch.nan
    loaded = davit.load(save(state_dict=weights))
    with pytest.raises(ValueError, match="not finite"):
        loaded.predict(noise(0))
    (result,) = loaded.predict_each([noise(0)])
    assert isinstance(result, Failure)


def test_short_memory_halves_the_batch(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = davit.load(checkpoint)
    pictures = [noise(seed) for seed in range(7)]
    whole = loaded.predict(pictures)
    forward = loaded._classifier.forward
    sizes = []

    def starved(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise MemoryError("no room")
        return forward(images)

    monkeypatch.setattr(loaded._classifier, "forward", starved)
    for one, other in zip(loaded.predict(pictures), whole, strict=True):
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-5)
    assert max(sizes) == 7 and sizes.count(2) >= 2
    monkeypatch.setattr(loaded._classifier, "forward", lambda images: (_ for _ in ()).throw(MemoryError("none")))
    with pytest.raises(MemoryError):
        loaded.predict(pictures[0])


# --- load ---


def test_flags_change_what_is_loaded(save: Callable[..., Path], model: torch.nn.Module) -> None:
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    file = save(state_dict_ema=weights)
    averaged, plain = davit.load(file), davit.load(file, ema="never")
    assert not torch.equal(averaged.model.head.bias, plain.model.head.bias)
    assert davit.load(file, img_size=32).config["input_size"][-2:] == (32, 32)
    assert davit.load(file, crop_pct=0.5).config["crop_pct"] == 0.5
    assert davit.load(file, device="cpu").device.type == "cpu"


def test_larger_pictures_are_pooled_as_in_evaluation(checkpoint: Path) -> None:
    pooled = davit.load(checkpoint, img_size=32).predict(noise(1, (32, 32)))
    whole = davit.load(checkpoint, img_size=32, no_test_pool=True, crop_pct=1.0).predict(noise(1, (32, 32)))
    assert not torch.allclose(pooled.probabilities, whole.probabilities, atol=1e-4)


def test_amp(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    exact = davit.load(checkpoint).predict(noise(1)).probabilities
    rounded = davit.load(checkpoint, amp=True).predict(noise(1)).probabilities
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.2, atol=0.1)


@pytest.mark.parametrize(
    "arguments, why",
    [
        ({"no_such_flag": 1}, "no_such_flag"),
        ({"device": "abacus"}, "abacus"),
        ({"model": "resnet18"}, "resnet18 does not take"),
        ({"names": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_mistakes_of_load(checkpoint: Path, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        davit.load(checkpoint, **arguments)


def test_nothing_to_load() -> None:
    with pytest.raises(ValueError, match="needs a checkpoint"):
        davit.load()


def test_bare_weights_of_a_variant(tmp_path: Path, model: torch.nn.Module) -> None:
    """No names, no size, nothing but tensors."""
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="--model"):  # shapes of no variant
        davit.load(tmp_path / "bare.pth")
    loaded = davit.load(tmp_path / "bare.pth", "DaViT_nano", model_kwargs=MODEL_KWARGS, img_size=16)
    assert loaded.class_names == ("class 0", "class 1", "class 2")


def test_a_predictor_says_what_it_is(checkpoint: Path) -> None:
    assert repr(davit.load(checkpoint, device="cpu")) == "Predictor(DaViT_nano, 3 classes, 16x16, cpu)"


def test_a_prediction_prints_as_a_table(checkpoint: Path) -> None:
    result = davit.load(checkpoint).predict(noise(2))
    lines = str(result).splitlines()
    assert lines[0] == "picture 0" and len(lines) == 4
    assert lines[1].split()[-1] == result.name and f"{result.probability:.2%}" in lines[1]
