"""Check predictions from Python: equal to the model's own outputs, for every kind of image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davit
from davit.data import BadImageError
from davit.kernels import why_plain
from davit.model import DaViT, DualAttentionBlock, PatchEmbed
from davit.predict import Failure, Prediction, Predictor, predictor
from tests.predict.conftest import CLASSES, MODEL_KWARGS, noise, png

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def expected(model: torch.nn.Module, picture: Image.Image) -> torch.Tensor:
    """The softmax of a 16 x 16 image that is neither resized nor cropped."""
    x_HWC = (torch.from_numpy(np.array(picture)).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        return model(x_HWC.permute(2, 0, 1)[None]).softmax(1)[0]


def test_a_prediction_is_the_softmax_of_the_model(loaded: Predictor, model: torch.nn.Module, tmp_path: Path) -> None:
    noise(5).save(tmp_path / "five.png")
    result = loaded.predict(tmp_path / "five.png")
    probabilities = expected(model, noise(5))
    torch.testing.assert_close(result.probabilities, probabilities)
    order = probabilities.argsort(descending=True).tolist()
    assert [guess.index for guess in result.guesses] == order
    assert [guess.name for guess in result.guesses] == [CLASSES[index] for index in order]
    assert [guess.probability for guess in result.guesses] == pytest.approx([probabilities[i].item() for i in order])
    assert (result.index, result.name) == (order[0], CLASSES[order[0]])
    assert result.probability == pytest.approx(probabilities.max().item())
    assert result.file == str(tmp_path / "five.png")
    lines = str(result).splitlines()
    assert len(lines) == 4 and result.file in lines[0]
    assert lines[1].split()[-1] == result.name and f"{result.probability:.2%}" in lines[1]


def test_a_predictor_is_accelerated_unless_told_otherwise(loaded: Predictor, checkpoint: Path) -> None:
    assert why_plain(loaded.model) == {}
    plain = davit.load(checkpoint, device="cpu", model_kwargs={"accelerate": False}).model
    assert len(why_plain(plain)) == len([m for m in plain.modules() if isinstance(m, DualAttentionBlock | PatchEmbed)])


def test_every_kind_of_picture(loaded: Predictor, tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([grey] * 3, axis=2))
    picture.save(tmp_path / "seven.png")
    kinds: list[Any] = [
        *(tmp_path / "seven.png", str(tmp_path / "seven.png"), picture, png(picture), np.asarray(picture), grey),
        *(bytearray(png(picture)), picture.convert("RGBA"), np.asarray(picture.convert("RGBA"))),
    ]
    together = loaded.predict(kinds)
    assert [type(one) for one in together] == [Prediction] * len(kinds)
    for one in (*together, loaded.predict(kinds[2])):
        torch.testing.assert_close(one.probabilities, together[0].probabilities)
    assert [one.file for one in together[2:4]] == ["image 2", "image 3"]
    assert loaded.predict([]) == []
    assert [len(loaded.predict(picture, topk).guesses) for topk in (2, 99)] == [2, 3]
    with pytest.raises(ValueError, match="topk=0"):
        loaded.predict(picture, topk=0)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        *((np.zeros((16, 16, 3), np.float32), "float32"), (np.zeros((3, 16, 16), np.uint8), r"\(3, 16, 16\)")),
        *((np.zeros((0, 16, 3), np.uint8), r"\(0, 16, 3\)"), (torch.zeros(3, 16, 16), "Tensor")),
    ],
)
def test_what_is_no_picture_is_refused(loaded: Predictor, wrong: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        loaded.predict(wrong)


def test_a_broken_picture_is_named(loaded: Predictor, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(BadImageError, match=r"broken\.jpg"):
        loaded.predict([noise(0), tmp_path / "broken.jpg"])
    with pytest.raises(BadImageError, match="image 1"):
        loaded.predict([noise(0), png(noise(1))[:90]])


def test_a_list_longer_than_a_batch(loaded: Predictor, model: torch.nn.Module) -> None:
    pictures = [noise(seed) for seed in range(70)]
    for picture, result in zip(pictures, loaded.predict(pictures), strict=True):
        torch.testing.assert_close(result.probabilities, expected(model, picture), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_in_order_with_bad_ones_between(
    loaded: Predictor, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "WORKERS_FROM", 4)
    files = [str(tmp_path / f"{number}.png") for number in range(12)]
    bad = {0, 3, 4, 5, 6, 11}
    for number, file in enumerate(files):
        if number in bad:
            Path(file).write_bytes(b"" if number == 4 else b"broken")
        else:
            noise(number).save(file)
    results = list(loaded.predict_each(files, batch_size=3, workers=workers))
    assert [result.file for result in results] == files
    assert {number for number, result in enumerate(results) if isinstance(result, Failure)} == bad
    for number in sorted(set(range(12)) - bad):
        same = loaded.predict(files[number])
        torch.testing.assert_close(results[number].probabilities, same.probabilities)  # type: ignore[union-attr]


def test_nothing_readable_is_all_failures(loaded: Predictor, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.png")
    assert [type(result) for result in loaded.predict_each([missing, missing])] == [Failure, Failure]


def test_outputs_that_are_not_finite_are_no_prediction(save: Callable[..., Path], model: torch.nn.Module) -> None:
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["head.bias"][1] = torch.nan
    damaged = davit.load(save(state_dict=weights))
    with pytest.raises(ValueError, match="not finite"):
        damaged.predict(noise(0))
    assert [type(result) for result in damaged.predict_each([noise(0)])] == [Failure]


def test_short_memory_halves_the_batch(loaded: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [noise(seed) for seed in range(7)]
    whole = loaded.predict(pictures)
    forward, sizes = DaViT.forward, []

    def starved(self: DaViT, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise MemoryError("no room")
        return forward(self, images)

    monkeypatch.setattr(DaViT, "forward", starved)
    for one, other in zip(loaded.predict(pictures), whole, strict=True):
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-5)
    assert max(sizes) == 7 and sizes.count(2) >= 2
    monkeypatch.setattr(DaViT, "forward", lambda self, images: (_ for _ in ()).throw(MemoryError("none")))
    with pytest.raises(MemoryError):
        loaded.predict(pictures[0])


# --- load ---


def test_options_change_what_is_loaded(save: Callable[..., Path], model: torch.nn.Module) -> None:
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    file = save(state_dict_ema=weights)
    averaged, plain = davit.load(file), davit.load(file, ema="never")
    assert not torch.equal(averaged.model.head.bias, plain.model.head.bias)
    assert davit.load(file, img_size=32).config["input_size"][-2:] == (32, 32)
    assert davit.load(file, crop_pct=0.5).config["crop_pct"] == 0.5
    on_cpu = davit.load(file, device="cpu")
    assert on_cpu.device.type == "cpu"
    assert {"DaViT_nano", "16x16", "cpu"} <= set(repr(on_cpu)[len("Predictor(") : -1].split(", "))


def test_larger_pictures_are_pooled_as_in_evaluation(checkpoint: Path) -> None:
    pooled = davit.load(checkpoint, img_size=32).predict(noise(1, (32, 32)))
    whole = davit.load(checkpoint, img_size=32, no_test_pool=True, crop_pct=1.0).predict(noise(1, (32, 32)))
    assert not torch.allclose(pooled.probabilities, whole.probabilities, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        *(({"no_such_option": 1}, r"no_such_option.*model_kwargs"), ({"names": "nowhere.txt"}, "nowhere.txt")),
        *(({"device": "abacus"}, "abacus"), ({"model": "resnet18"}, "resnet18"), ({"num_classes": 5}, "5")),
        *(({"amp_dtype": "fp8"}, "fp8.*bf16"), ({"ema": "sometimes"}, "sometimes.*never")),
        *(({"input_size": (1, 16, 16)}, "1, 16, 16"), ({"mean": (0.5, 0.5)}, "0.5, 0.5")),
        *(({"interpolation": "cubic"}, "bicubic"), ({"test_time_pool": True}, "16, 16")),
        *(({"test_time_pool": True, "no_test_pool": True}, "no_test_pool"), ({"torchcompile": "x"}, "x.*inductor")),
    ],
)
def test_mistakes_of_load(checkpoint: Path, options: dict[str, Any], value: str) -> None:
    with pytest.raises(ValueError, match=value):
        davit.load(checkpoint, **options)


def test_load_speaks_of_options_and_not_of_flags(checkpoint: Path, tmp_path: Path, model: torch.nn.Module) -> None:
    torch.save(model.state_dict(), tmp_path / "bare.pth")  # shapes of no variant
    for words in ({}, {"checkpoint": tmp_path / "bare.pth"}, {"checkpoint": checkpoint, "test_time_pool": True}):
        with pytest.raises(ValueError) as raised:
            davit.load(**words)
        assert "--" not in str(raised.value)
    named = davit.load(tmp_path / "bare.pth", "DaViT_nano", model_kwargs=MODEL_KWARGS, img_size=16)
    assert named.class_names == ("class 0", "class 1", "class 2")
