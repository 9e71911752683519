"""Build the C++ examples of docs/deploy where a compiler and headers exist, and compare what they print."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import davit
from tests.conftest import REPOSITORY, randomise
from tests.test_docs import LINES


def openvino() -> str:
    """The lines of docs/deploy.md, which find the headers and the library in OpenVINO's wheel."""
    found = importlib.util.find_spec("openvino")
    root = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
    if root is None or not (root / "include/openvino/openvino.hpp").is_file():
        pytest.skip("needs OpenVINO's wheel with its headers")
    lines = [line.text for line in LINES if line.document == "docs/deploy.md"]
    return "\n".join(line for line in lines if line.startswith(("OPENVINO=", "c++ ")))


def onnxruntime() -> str:
    root = os.environ.get("ONNXRUNTIME_DIR")
    header = next(Path(root).rglob("onnxruntime_cxx_api.h"), None) if root else None
    if root is None or header is None:
        pytest.skip("needs ONNX Runtime's release in ONNXRUNTIME_DIR: its wheel has no headers")
    library = Path(root, "lib")
    flags = ["-std=c++17", f"-I{header.parent}", f"-L{library}", "-lonnxruntime", f"-Wl,-rpath,{library}"]
    return shlex.join(["c++", "docs/deploy/classify_onnxruntime.cpp", *flags, "-o", "classify"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("suffix", "lines"),
    [(".xml", openvino), (".onnx", onnxruntime)],
)
def test_an_example_prints_what_predict_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, lines: Callable[[], str]
) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    script = lines().replace("-std=c++17", "-std=c++17 -Wall -Werror")
    assert "-Werror" in script
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=env, check=True)
    program = tmp_path / "classify"

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
