"""What a wheel and a source distribution hold, and that an installed wheel works where there is no checkout."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import davit

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = {"configs": "davit/configs", "mmdet/configs": "davit/configs/mmdet", "mmseg/configs": "davit/configs/mmseg"}


def run(*words: object, at: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))} | environment
    done = subprocess.run(list(map(str, words)), cwd=at, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a clone has, as far as a build reads it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("davit", "configs", "mmdet", "mmseg", "tools", "tests"):
        written = ("data", "work_dirs") if name.startswith("mm") else ()
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "vectors", *written)
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for file in REPOSITORY.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, folder)
    return folder


def built(sources: Path, kind: str, **environment: str) -> Path:
    """Build a wheel or a source distribution without a network, by this environment's setuptools."""
    out = sources.parent / f"{sources.name}-{kind}-{len(environment)}"
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    out.mkdir()
    run(sys.executable, "-c", code, at=sources, **environment)
    (file,) = out.iterdir()
    shutil.rmtree(sources / "build", ignore_errors=True)
    return file


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    """Build the wheel of a machine that has no compiler."""
    return built(sources, "wheel", PATH=os.defpath.replace("/bin:/usr/bin", "/nowhere"), CC="no-cc", CXX="no-cxx")


def test_a_wheel_without_a_compiler_is_for_every_platform_and_holds_what_is_needed(wheel: Path) -> None:
    assert wheel.name == f"davit_torch-{davit.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    about = f"davit_torch-{davit.__version__}.dist-info/"
    wanted = {"davit_command.py", "davit/py.typed", f"{about}licenses/LICENSE", f"{about}entry_points.txt"}
    wanted |= {
        f"{target}/{file.relative_to(REPOSITORY / source)}"
        for source, target in CONFIGS.items()
        for suffix in ("*.py", "*.yaml")
        for file in (REPOSITORY / source).rglob(suffix)
    }
    modules = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "davit").rglob("*.py")}
    wanted |= {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "davit").rglob("*.css")}
    assert names >= wanted | modules
    others = names - wanted - modules
    assert all(name.startswith(about) for name in others), others  # no tests, no C++, no data


def test_its_metadata_are_true(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    about = f"davit_torch-{davit.__version__}.dist-info/"
    text = archive.read(about + "METADATA").decode()
    lines = text.partition("\n\n")[0].splitlines()
    assert "Name: davit-torch" in lines and f"Version: {davit.__version__}" in lines
    extras = {line.partition(": ")[2] for line in lines if line.startswith("Provides-Extra: ")}
    assert extras >= {
        "openmmlab",
        "app",
        "serve",
        "export",
        "openvino",
        "executorch",
        "coreml",
        "transformers",
        "detect",
        "parquet",
        "heif",
        "bands",
        "all",
    }
    assert "davit = davit_command:main" in archive.read(about + "entry_points.txt").decode()


def test_a_source_distribution_has_the_cpp_and_the_configs(sources: Path) -> None:
    with tarfile.open(built(sources, "sdist", DAVIT_NO_NATIVE="1")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    patterns = ("davit/**/*.py", "davit/kernels/cpu/cpp/*", "configs/*.yaml", "mm*/configs/**/*.py", "mm*/tools/*.py")
    wanted = {str(file.relative_to(REPOSITORY)) for pattern in patterns for file in REPOSITORY.glob(pattern)}
    assert names >= wanted | {"setup.py", "pyproject.toml", "LICENSE", "davit_command.py", "train.py", "tools/dist.sh"}
    assert not [name for name in names if name.startswith(("tests", "shared")) or name.endswith((".so", ".pyc"))]


def test_functions_are_compiled_where_there_is_a_compiler_unless_that_is_turned_off(sources: Path) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("g++") is None:
        pytest.skip("needs g++ on x86 Linux")
    code = "import runpy, setuptools; setuptools.setup = lambda **words: print('modules', len(words['ext_modules'])); "
    code += "runpy.run_path('setup.py')"
    for switch, least, most in (("0", 1, 3), ("1", 0, 0)):
        shown = run(sys.executable, "-c", code, at=sources, DAVIT_NO_NATIVE=switch).stdout
        assert least <= int(shown.split()[-1]) <= most


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that sees the packages of this one, but not its davit; its folder bin."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    here = sysconfig.get_path("purelib")
    # as text, so that the .pth files there, of an editable davit, are not read
    (site / "others.pth").write_text(f"{here}\n")
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, at=folder)
    return folder / "bin"


@pytest.mark.long
def test_an_installed_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """It trains, also by a recipe's name, and predicts; everything is written where it runs."""
    command, clean = installed / "davit", {"PATH": str(installed), "OMP_NUM_THREADS": "1"}
    where = run(installed / "python", "-c", "import davit; print(davit.__file__)", at=tmp_path, **clean).stdout.strip()
    assert where.startswith(str(installed.parent))
    tiny = "--img-size 16 --epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --workers 0 --experiment one"
    run(command, "train", *tiny.split(), at=tmp_path, **clean)
    checkpoint = tmp_path / "output/train/one/model_best.pth.tar"
    run(command, "predict", "data/digits/val/3/0045.png", "--checkpoint", checkpoint, at=tmp_path, **clean)
    run(command, "train", "data/digits", "-c", "davit_tiny_224", "--dry-run", *tiny.split(), at=tmp_path, **clean)
    assert {entry.name for entry in tmp_path.iterdir()} == {"data", "output"}
    packaged = Path(where).parent
    assert not (packaged / "data" / "digits").exists() and not (packaged.parent / "output").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("group", "name", "smaller"),
    [
        ("det", "davit_nano_maskrcnn_digits", ["train_cfg.max_epochs=1", "train_dataloader.num_workers=0"]),
        ("seg", "upernet_davit_nano_digits.py", ["train_cfg.max_iters=2", "train_dataloader.num_workers=0"]),
    ],
)
def test_an_installed_wheel_finds_its_detectors_and_segmentors(
    installed: Path, tmp_path: Path, group: str, name: str, smaller: list[str]
) -> None:
    pytest.importorskip("mmdet")
    clean = {"PATH": str(installed), "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    few = "from davit.data import scenes; scenes.COUNTS = {'train': 8, 'val': 2}; scenes.write_scenes('data/scenes')"
    run(installed / "python", "-c", few, at=tmp_path, **clean)
    words = [
        installed / "davit",
        group,
        "train",
        name,
        "--no-validate",
        "--work-dir",
        "run",
        "--cfg-options",
        *smaller,
    ]
    run(*words, at=tmp_path, **clean)
    assert list((tmp_path / "run").glob("*.pth"))
    (tmp_path / "mine.py").write_text(f'_base_ = "davit::{name}"\n')
    run(installed / "davit", group, "flops", "mine.py", "--shape", "128", at=tmp_path, **clean)
