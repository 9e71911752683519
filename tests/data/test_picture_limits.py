"""Check what becomes of images that are far longer than wide, and of files that are no regular ones."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from davit import create_model
from davit.data import BadImageError, EvalLoader, PictureDataset, eval_transform, load_rgb, train_transform
from davit.data import decode as decoding
from davit.data.limits import MOST_PIXELS
from davit.files import open_regular
from davit.predict.pictures import PictureSource


def strip(folder: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    file = folder / f"{size[0]}x{size[1]}.png"
    Image.new(mode, size).save(file)
    return file


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (5000, 1), (100000, 1), (7, 7000)], ids=str)
@pytest.mark.parametrize(
    "make, options",
    [
        (eval_transform, {}),
        (eval_transform, {"img_size": (224, 192)}),
        (eval_transform, {"img_size": (5, 224, 224), "mean": [0.5] * 5, "std": [0.5] * 5}),
        (train_transform, {"no_aug": True}),
    ],
    ids=["center", "not square", "bands", "no_aug"],
)
def test_a_long_strip_is_refused_by_its_shape(size: tuple[int, int], make: Any, options: dict[str, Any]) -> None:
    transform = make(**{"img_size": 224, **options})
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]}.*{MOST_PIXELS:,}"):
        transform.check(*size, False)
    bands = 5 if "mean" in options else 3
    values = np.zeros((size[1], size[0], bands), np.uint8)
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}"):
        transform(values if bands == 5 else Image.fromarray(values))


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
def test_modes_that_shrink_the_longer_side(crop_mode: str) -> None:
    transform = eval_transform(img_size=64, crop_mode=crop_mode)
    assert transform(Image.new("RGB", (3000, 100), "red")).shape == (3, 64, 64)
    if crop_mode == "border":  # nothing would be left of the shorter side
        with pytest.raises(ValueError, match="20000 x 1"):
            transform(Image.new("RGB", (20000, 1)))
    else:
        assert transform(Image.new("RGB", (20000, 1))).shape == (3, 64, 64)


def test_what_is_asked_for_may_be_large() -> None:
    """Panoramas pass, and so does any image of the shape that is asked for."""
    assert eval_transform(img_size=224).check(30000, 300, False) == 1
    assert eval_transform(img_size=20000, crop_pct=1.0).check(100, 100, False) == 1


def test_the_sizes_checked_are_those_made() -> None:
    for options in ({}, {"crop_mode": "border"}, {"crop_mode": "squash"}, {"img_size": (48, 32)}):
        transform: Any = eval_transform(**{"img_size": 40, "crop_pct": 0.9, **options})
        resize = transform.transforms[0]
        for size in ((100, 37), (37, 100), (64, 64), (41, 500), (3, 2)):
            assert resize.size(*size) == resize(Image.new("RGB", size)).size


def test_a_strip_is_not_even_decoded_and_the_batch_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, long = strip(tmp_path, (30, 30)), strip(tmp_path, (200_000, 2), "1")
    decoded = []
    to_rgb = decoding.to_rgb
    monkeypatch.setattr(decoding, "to_rgb", lambda image: decoded.append(image.size) or to_rgb(image))
    source = PictureSource([str(whole), str(long), str(whole)])
    loader = EvalLoader(PictureDataset(source, eval_transform(img_size=32)), batch_size=3, skip_bad_images=True)
    (batch,) = loader.batches()
    assert batch.indices.tolist() == [0, 2] and decoded == [(30, 30)] * 2
    assert "200000 x 2" in loader.bad_images[str(long)]
    np.save(tmp_path / "long.npy", np.zeros((2, 100_000, 3), np.uint8))
    with pytest.raises(BadImageError, match=r"long\.npy.*100000 x 2"):
        PictureDataset(PictureSource([tmp_path / "long.npy"]), eval_transform(img_size=32))[0]


def test_want_of_memory_is_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = strip(tmp_path, (8, 8))

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "to_rgb", fail)
    with pytest.raises(BadImageError, match="memory"):
        load_rgb(file)


def test_values_are_scaled_in_parts_as_they_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (13, 7, 3), dtype=np.uint16)
    for bands in (1, 3):
        for pixels in (values, values[..., 0]):
            scaled = [decoding.load_picture(pixels, decoding=decoding.Decoding(bands))]
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "_AT_ONCE", 30)
                scaled.append(decoding.load_picture(pixels, decoding=decoding.Decoding(bands)))
            assert (np.asarray(scaled[0]) == np.asarray(scaled[1])).all()


# --- files that are none ---


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    whole = strip(tmp_path, (8, 8))
    os.mkfifo("fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        Path("link.png").symlink_to("fifo.png")
        Path("device.png").symlink_to("/dev/zero")
        Path("good.png").symlink_to(whole)
        kinds = {"fifo.png": "pipe", "socket.png": "socket", "link.png": "pipe", "device.png": "device"}
        for name, kind in kinds.items():
            with pytest.raises(BadImageError, match=rf"{name}.*{kind}"):
                load_rgb(name)
        source = PictureSource([*kinds, "good.png"])
        loader = EvalLoader(PictureDataset(source, eval_transform(img_size=8)), batch_size=5, skip_bad_images=True)
        assert [batch.indices.tolist() for batch in loader.batches()] == [[4]]
    with open_regular(whole) as stream:
        assert stream.read() == whole.read_bytes() and stream.name == str(whole)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_a_pipe_that_takes_the_files_place_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pipe = strip(tmp_path, (8, 8)), tmp_path / "pipe.png"
    os.mkfifo(pipe)
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: stat(whole if path == pipe else path, **more))
    with pytest.raises(OSError, match="pipe"):
        open_regular(pipe)


@pytest.mark.long
@pytest.mark.parametrize("size, mode", [((20000, 1), "RGB"), ((80_000_000, 1), "1")], ids=str)
def test_peak_memory(size: tuple[int, int], mode: str, tmp_path: Path) -> None:
    """Predicting a strip takes less than 300 MB more than predicting a small square."""
    words = (
        "import sys, resource, davit\n"
        "predictor = davit.load(sys.argv[1], device='cpu')\n"
        "list(predictor.predict_each(sys.argv[2:]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    kwargs = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    model = create_model("DaViT_nano", num_classes=3, **kwargs)
    args = {"model": "DaViT_nano", "img_size": 224, "model_kwargs": kwargs}
    torch.save({"state_dict": model.state_dict(), "args": args}, tmp_path / "c.pth")
    peaks = []
    for file in (strip(tmp_path, (30, 30)), strip(tmp_path, size, mode)):
        done = subprocess.run(
            [sys.executable, "-c", words, tmp_path / "c.pth", file], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 300
