"""What each corruption does to an image, and that the same random state gives the same image."""

import numpy as np
import pytest
from PIL import Image

from davit.robustness import corruptions
from davit.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """Smooth colours with edges, 96 x 96."""
    y, x = np.mgrid[:96, :96] / 95
    bands = [x, y, (x + y) / 2]
    pixels = np.stack([0.2 + 0.6 * band for band in bands], axis=2)
    pixels[30:60, 40:70] = (0.9, 0.2, 0.1)
    pixels[10:20, 10:90] = (0.05, 0.1, 0.6)
    return Image.fromarray((255 * pixels).round().astype(np.uint8))


def changed(image: Image.Image, name: str, severity: int, seed: int = 0) -> np.ndarray:
    return np.asarray(corrupt(image, name, severity, np.random.default_rng(seed)), dtype=np.float64)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(96, 96), (16, 16), (40, 25), (3, 2)])
def test_every_corruption_at_every_size(scene: Image.Image, name: str, size: tuple[int, int]) -> None:
    image = scene.resize(size)
    for severity in SEVERITIES:
        one = corrupt(image, name, severity, np.random.default_rng(3))
        again = corrupt(image, name, severity, np.random.default_rng(3))
        assert one.size == size and one.mode == "RGB"
        assert one.tobytes() == again.tobytes()
    assert image.tobytes() == scene.resize(size).tobytes()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_more(scene: Image.Image, name: str) -> None:
    clean = np.asarray(scene, dtype=np.float64)
    off = [
        np.mean([np.abs(changed(scene, name, one, seed) - clean).mean() for seed in range(4)]) for one in SEVERITIES
    ]
    assert off[0] > 0.3
    if name not in ("elastic_transform", "glass_blur", "frost", "snow", "pixelate"):  # several numbers, or grids
        assert off == sorted(off)
    assert off[-1] > 1.15 * off[0] or name in ("elastic_transform", "frost")


def test_noise_is_as_strong_as_it_says(scene: Image.Image) -> None:
    grey = Image.new("RGB", (224, 224), (128, 128, 128))
    for severity, deviation in zip(SEVERITIES[:3], (0.08, 0.12, 0.18), strict=True):
        assert changed(grey, "gaussian_noise", severity).std() / 255 == pytest.approx(deviation, rel=0.03)
    for severity, photons in zip(SEVERITIES[:3], (60, 25, 12), strict=True):
        noise = changed(grey, "shot_noise", severity) / 255
        assert noise.mean() == pytest.approx(128 / 255, abs=0.01)
        assert noise.var() == pytest.approx(128 / 255 / photons, rel=0.1)
    for severity, share in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        values = changed(grey, "impulse_noise", severity)
        assert (values == 0).mean() == pytest.approx(share / 2, rel=0.05)
        assert (values == 255).mean() == pytest.approx(share / 2, rel=0.05)


def test_exact_values_of_what_is_not_random() -> None:
    image = Image.new("RGB", (8, 8), (51, 102, 0))
    assert changed(image, "brightness", 2)[0, 0].tolist() == [76.5 // 1, 153, 0]  # value 0.4 to 0.6, by one factor
    assert changed(Image.new("RGB", (4, 4)), "brightness", 5)[0, 0].tolist() == [128, 128, 128]
    half = Image.new("RGB", (8, 8), (0, 0, 0))
    half.paste((200, 200, 200), (0, 0, 4, 8))
    assert sorted({*changed(half, "contrast", 1)[..., 0].ravel()}) == [60, 140]  # 100 +- 0.4 * 100
    board = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert {*changed(board, "pixelate", 2).ravel()} == {128.0}
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "glass_blur"):  # one colour has nothing to blur
        assert changed(image, name, 3)[4, 4].tolist() == [51, 102, 0]


def test_a_blur_keeps_the_light_and_takes_the_size_into_account() -> None:
    point = Image.new("RGB", (225, 225))
    point.paste((255, 255, 255), (80, 80, 140, 140))
    total = 3 * 60 * 60 * 255
    for name in ("defocus_blur", "motion_blur"):
        assert changed(point, name, 2).sum() == pytest.approx(total, rel=0.01)

    def width(side: int) -> float:
        image = Image.new("RGB", (side, side))
        image.paste((255, 255, 255), (side // 2, 0, side, side))
        row = changed(image, "defocus_blur", 5)[side // 2, :, 0]
        return float(((row > 5) & (row < 250)).mean())

    assert width(64) == pytest.approx(width(256), abs=2 / 64)


def test_glass_only_moves_pixels_a_little() -> None:
    image = Image.new("RGB", (224, 224))
    image.paste((255, 255, 255), (112, 0, 224, 224))
    columns = changed(image, "glass_blur", 1)[..., 0].mean(0)
    assert (columns[:100] == 0).all() and (columns[124:] == 255).all()


def test_clouds_fill_the_range_and_are_coarse_where_they_should_be() -> None:
    for side in (5, 64, 224):
        clouds = corruptions._plasma(side, side, 4.0, np.random.default_rng(0))
        assert clouds.shape == (side, side) and clouds.min() >= 0 and clouds.max() <= 1
    fine = corruptions._plasma(64, 64, 1.4, np.random.default_rng(0))
    coarse = corruptions._plasma(64, 64, 4.0, np.random.default_rng(0))
    assert np.abs(np.diff(fine)).mean() > 3 * np.abs(np.diff(coarse)).mean()


@pytest.mark.parametrize(("name", "severity"), [("rain", 1), ("fog", 0), ("fog", 6)])
def test_unknown_corruptions_and_severities(name: str, severity: int) -> None:
    with pytest.raises(ValueError, match=name if name == "rain" else str(severity)):
        corrupt(Image.new("RGB", (4, 4)), name, severity, np.random.default_rng(0))
