"""Build the C++ example of docs/deploy where a compiler and ONNX Runtime's headers exist, and compare its answers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

import davit
from tests.conftest import randomise

SOURCE = Path(__file__).parents[2] / "docs/deploy/classify.cpp"


@pytest.mark.long
def test_example_names_the_predictors_classes(tmp_path: Path) -> None:
    compiler, root = shutil.which("c++"), os.environ.get("ONNXRUNTIME_DIR")
    if compiler is None or root is None or not next(Path(root).rglob("onnxruntime_cxx_api.h"), None):
        pytest.skip("needs a C++ compiler, and ONNX Runtime's release in ONNXRUNTIME_DIR: its wheel has no headers")
    from davit.export import ExportOptions, export

    kwargs = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    model = randomise(davit.create_model("DaViT_nano", num_classes=3, **kwargs), 0)
    noted = {"model": "DaViT_nano", "img_size": 16, "model_kwargs": kwargs, "crop_pct": 1.0}
    names = ["ant", 'a "bee"', "chat é"]
    torch.save({"state_dict": model.state_dict(), "args": noted, "class_names": names}, tmp_path / "m.pth")
    path = export(tmp_path / "m.pth", tmp_path / "m.onnx", ExportOptions(check=False, preprocess="uint8")).path
    picture = Image.effect_noise((16, 16), 90).convert("RGB")
    picture.save(tmp_path / "a.ppm")
    headers = next(Path(root).rglob("onnxruntime_cxx_api.h")).parent
    library = Path(root, "lib")
    flags = [
        "-std=c++17",
        "-Wall",
        "-Werror",
        f"-I{headers}",
        f"-L{library}",
        "-lonnxruntime",
        f"-Wl,-rpath,{library}",
    ]
    subprocess.run([compiler, str(SOURCE), *flags, "-o", str(tmp_path / "classify")], check=True)
    done = subprocess.run(
        [str(tmp_path / "classify"), str(path), str(tmp_path / "a.ppm")], check=True, capture_output=True, text=True
    )
    wanted = [guess.name for guess in davit.load(path).predict(picture).guesses]
    assert [line.split("  ", 1)[1] for line in done.stdout.splitlines()] == wanted
