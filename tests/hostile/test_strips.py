"""An image of 138 bytes, 20000 x 1 pixels, costs no command 300 MB more than an ordinary one does."""

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from davit.commands import run_cli
from davit.data import BadImageError
from davit.data.limits import MOST_PIXELS, require_room
from davit.data.samples import UnfitPictureError
from tests.hostile import trials
from tests.hostile.attack import REPOSITORY, Trial, attempt
from tests.hostile.commands import _openmmlab_files

MOST = 300  # MB
LONG = 20_000


def strip(file: Path, upright: bool = False) -> Path:
    Image.new("RGB", (1, LONG) if upright else (LONG, 1)).save(file)
    return file


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lab = trials.build_lab(tmp_path_factory.mktemp("lab"))
    assert strip(lab / "strip.png").stat().st_size < 200
    strip(lab / "upright.png", upright=True)
    return lab


def costs(work: Callable[[str], int | None], folder: Path) -> dict[str, float]:
    """The megabytes that a command takes for each strip above those for an ordinary image."""
    found = {}
    for name in ("good.png", "strip.png", "upright.png"):
        trial = Trial(name, lambda name=name: work(name), (0, 1, 2), megabytes=10_000)
        failure, _, _, found[name] = attempt(trial, folder / "scratch")
        assert failure is None
    base = found.pop("good.png")
    return {name: megabytes - base for name, megabytes in found.items()}


def test_predict(lab: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", str(lab / "model.pth.tar"), "--workers=0", "--img-size", "224"]
    assert max(costs(lambda name: trials.predict([str(lab / name), *words]), tmp_path).values()) < MOST


def test_training(lab: Path, tmp_path: Path) -> None:
    def work(name: str) -> int:
        for split, label in itertools.product(("train", "val"), "ab"):
            folder = Path("data", split, label)
            folder.mkdir(parents=True)
            for number in range(4):
                (folder / f"{number}.png").write_bytes((lab / name if number else lab / "good.png").read_bytes())
        return trials.train(["data", *trials.MODEL, *trials.SHORT, "--img-size", "64", "--skip-bad-images"])

    assert max(costs(work, tmp_path).values()) < MOST


def test_visualize_and_the_page(lab: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", str(lab / "model.pth.tar"), "--img-size", "224"]
    assert max(costs(lambda name: trials.visualize.main([str(lab / name), *words]), tmp_path).values()) < MOST
    pytest.importorskip("gradio", reason="needs Gradio: pip install -r requirements-app.txt")
    import davit
    from davit.app import ClassifierReader
    from davit.app.page import answer_file

    reader = ClassifierReader(davit.load(lab / "model.pth.tar"))
    assert max(costs(lambda name: answer_file(reader, str(lab / name)) and 0, tmp_path).values()) < MOST


@pytest.mark.long
@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_the_demos_of_detectors_and_segmentors(lab: Path, tmp_path: Path, name: str) -> None:
    """In a process that has imported neither, which cannot be forked from one that runs threads of OpenCV."""
    pytest.importorskip("mmdet")
    lines = (
        "import sys; from pathlib import Path; from tests.hostile import commands, test_strips",
        "from davit.openmmlab import demo",
        f"lab, folder, config = Path({str(lab)!r}), Path({str(tmp_path)!r}), Path(sys.argv[1])",
        "commands._openmmlab_files(lab); weights = str(commands._weights(lab, config))",
        "found = test_strips.costs(lambda name: demo.main([str(lab / name), str(config), weights]), folder)",
        "print(max(found.values()))",
    )
    _openmmlab_files(lab)
    command = [sys.executable, "-c", "\n".join(lines), str(lab / "openmmlab" / f"{name}.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < MOST


@pytest.mark.parametrize("shape", [(1, LONG, 3), (LONG, 1, 3)])
def test_the_transforms_of_openmmlab_name_a_strip(shape: tuple[int, int, int]) -> None:
    mmcv = pytest.importorskip("mmcv")
    import davit.openmmlab  # noqa: F401  (before mmcv's transforms)

    step = mmcv.transforms.Resize(scale=(1333, 800), keep_ratio=True)
    results = {"img": np.zeros(shape, np.uint8), "img_path": "a/long.png"}
    with pytest.raises(BadImageError) as refused:
        step(results)
    assert refused.value.file == "a/long.png" and "20000" in refused.value.reason
    whole = step({"img": np.zeros((40, 80, 3), np.uint8), "img_path": "a/good.png"})
    assert whole["img"].shape == (667, 1333, 3)


class _Strips(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise BadImageError.of("a/long.png", "too long and narrow")


def test_an_error_of_a_worker_of_torchs_loader_is_one_paragraph(caplog: pytest.LogCaptureFixture) -> None:
    """As the loaders of mmengine are."""
    with caplog.at_level(logging.ERROR):
        assert run_cli(lambda: list(DataLoader(_Strips(), num_workers=1))) == 2
    assert caplog.messages[-1].startswith("a/long.png: too long and narrow")
    assert "Traceback" not in caplog.text


def test_what_is_asked_for_may_be_large() -> None:
    pytest.importorskip("mmcv")
    from davit.openmmlab.resizing import imrescale, imresize

    small = np.zeros((10, 10), np.uint8)
    assert imresize(small, (30, 20)).shape == (20, 30)
    assert imresize(small, (30, 20), return_scale=True)[1:] == (3.0, 2.0)
    assert imrescale(small, 2.0, return_scale=True)[0].shape == (20, 20)
    side = int(MOST_PIXELS**0.5) + 1
    assert imrescale(small, (side, side)).shape == (side, side)  # as the scale says
    with pytest.raises(UnfitPictureError):
        imrescale(small, float(side))
    with pytest.raises(UnfitPictureError):
        imresize(small, (0, 5))
    require_room((10, 10), (side, side), asked=(side, side))
