"""Build the C++ examples of docs/deploy where a compiler and headers exist, and compare what they print."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

import davit
from tests.conftest import randomise

SOURCES = Path(__file__).parents[2] / "docs/deploy"


def openvino_flags() -> list[str]:
    """Flags for the headers and the library in OpenVINO's wheel."""
    found = importlib.util.find_spec("openvino")
    root = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
    library = next((root / "libs").glob("libopenvino.so*"), None) if root else None
    if root is None or library is None or not (root / "include/openvino/openvino.hpp").is_file():
        pytest.skip("needs OpenVINO's wheel with its headers")
    return [f"-I{root / 'include'}", str(library), f"-Wl,-rpath,{library.parent}"]


def onnxruntime_flags() -> list[str]:
    root = os.environ.get("ONNXRUNTIME_DIR")
    header = next(Path(root).rglob("onnxruntime_cxx_api.h"), None) if root else None
    if root is None or header is None:
        pytest.skip("needs ONNX Runtime's release in ONNXRUNTIME_DIR: its wheel has no headers")
    library = Path(root, "lib")
    return [f"-I{header.parent}", f"-L{library}", "-lonnxruntime", f"-Wl,-rpath,{library}"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "suffix", "flags"),
    [("openvino", ".xml", openvino_flags), ("onnxruntime", ".onnx", onnxruntime_flags)],
)
def test_an_example_prints_what_predict_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str, flags: object
) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    assert callable(flags)
    words = ["-std=c++17", "-Wall", "-Werror", str(SOURCES / f"classify_{name}.cpp"), *flags()]
    program = tmp_path / "classify"
    subprocess.run([compiler, *words, "-o", str(program)], check=True)

    from davit.export import ExportOptions, export
    from davit.predict.cli import main

    kwargs = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    names = ["ant", 'a "bee"', "chat é", "dog", "back\\slash", "fox", "gnu"]
    model = randomise(davit.create_model("DaViT_nano", num_classes=len(names), **kwargs), 0)
    noted = {"model": "DaViT_nano", "input_size": [3, 16, 24], "model_kwargs": kwargs, "crop_pct": 1.0}
    torch.save({"state_dict": model.state_dict(), "args": noted, "class_names": names}, tmp_path / "m.pth")
    options = ExportOptions(check=False, preprocess="uint8", model_options={"temperature": 1.7})
    path = export(tmp_path / "m.pth", tmp_path / f"m{suffix}", options).path
    picture = tmp_path / "a.ppm"
    Image.effect_noise((24, 16), 90).convert("RGB").save(picture)

    done = subprocess.run([str(program), str(path), str(picture)], check=True, capture_output=True, text=True)
    assert main([str(picture), "--checkpoint", str(path)]) == 0
    assert done.stdout == capsys.readouterr().out
    assert len(done.stdout.splitlines()) == 6

    picture.write_bytes(picture.read_bytes()[:-1])
    broken = subprocess.run([str(program), str(path), str(picture)], capture_output=True, text=True, check=False)
    assert broken.returncode == 1 and broken.stderr and not broken.stdout
