"""Run the commands of the documents as they stand: in a folder where every word of theirs is a file.

What is too large for a test is made smaller by flags at its end (`SMALLER`); what is not run is in `NOT_RUN`, with
the reason. Every command of a shell block is one or the other.
"""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davit import create_model
from tests.forms import write_tar
from tests.test_docs import LINES, Line, blocks, examples

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = ("train.py", "validate.py", "predict.py", "davit", "configs", "tools", "figures", "requirements.txt")
CLASSES = ("1", "2", "3")
CHECKPOINTS = (
    *("FILE", "CHECKPOINT", "TRAINED_MODEL_PATH", "FOLDER_OF_CHECKPOINTS/one.pth.tar"),
    *("OUTPUT_DIR/NAME/model_best.pth.tar", "output/demo/model_best.pth.tar"),
)
_TINY = "--img-size 32 --epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --batch-size 2 --workers 0"

# the first that is found in a command counts
NOT_RUN = {
    r"^(make|pip|pytest|python -m pytest|source) ": "sets a place up, or runs tests",
    r"--pretrained|--model 'DaViT_\*'|robustness DaViT_tiny": "fetches published weights",
    r"^davit ": "the same mains as the scripts'; tests/test_packaging.py and tests/test_davit_command.py run it",
    r"davit\.app": "serves until it is ended; tests/app/test_page_in_a_browser.py runs it",
    r"davit\.serve|^curl ": "serves until it is ended, and asks it; tests/serve does both",
    r"tools/launch\.sh": "for two machines; tests/distributed/test_two_machines.py has them",
    r"davit\.engine\.nonfinite": "needs the batch of a failed step; tests/engine/test_nonfinite.py has one",
    r"configs/davit_(small|base)_224\.yaml$": "as tiny's; tests/engine/test_train_cli.py reads every recipe",
    r"^python train\.py$|--img-size 64 --experiment mine": "minutes of training on the digits: make demo is that",
    r"(mmdet|mmseg|tools/(dist_|slurm_|train|test|image_demo|get_flops))": "tests/openmmlab runs the tools",
    r"hfds/": "needs a folder at the root; tests/data/test_tables.py has such tables",
    r"benchmarks/": "measures for minutes; tests/benchmarks has the harness",
}
SMALLER = {
    r"train\.py data/digits-tar": f"{_TINY} --batch-size 64",
    r"torch\.distributed\.launch": f"{_TINY} --experiment launched",
    r"torchrun .*train\.py": f"{_TINY} --dry-run",
    r"--dry-run|--throughput": _TINY,
    r"--experiment many": f"{_TINY} --overwrite",
    r"train\.py .*--output OUTPUT_DIR": f"{_TINY} --experiment trained",
    r"train\.py .*--resume ": f"{_TINY} --epochs 41",
    r"(train|focal|cosine|arrays)\.py": _TINY,
    r"validate\.py": "--workers 0 --batch-size 4",
    r"davit\.robustness .*--limit": "--workers 0",
    r"davit\.robustness": "--workers 0 --limit 2",
}


def is_left_out(pattern: str, line: Line) -> bool:
    """Whether a pattern is in the command, without the variables in front of it, or in the document's path."""
    bare = re.sub(r"^([A-Z_]+=\S+\s+)+", "", line.text)
    return re.search(pattern, bare) is not None or re.match(pattern, line.document) is not None


RUN = [line for line in LINES if not any(is_left_out(pattern, line) for pattern in NOT_RUN)]


def as_run(line: Line) -> str:
    """The command with the flags that make it small, and no more than two processes."""
    text = re.sub(r"--nproc_per_node=\d+", "--nproc_per_node=2", line.text)
    extra = next((flags for pattern, flags in SMALLER.items() if re.search(pattern, text)), "")
    return f"{text} {extra}".strip()


def test_no_exception_without_a_command() -> None:
    assert [pattern for pattern in NOT_RUN if not any(is_left_out(pattern, line) for line in LINES)] == []
    assert len(RUN) > 20


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """For each document a folder with the repository's files, a data set, pictures, and a checkpoint."""
    torch.manual_seed(0)
    model = create_model("DaViT_tiny", num_classes=len(CLASSES))
    args = {"model": "DaViT_tiny", "img_size": 32, "num_classes": len(CLASSES)}
    entries = {"state_dict": model.state_dict(), "args": args, "class_names": list(CLASSES), "epoch": 39}
    state = tmp_path_factory.mktemp("checkpoint") / "state.pth.tar"
    torch.save(entries, state)

    @functools.cache
    def furnished(document: str) -> Path:
        folder = tmp_path_factory.mktemp(re.sub(r"\W", "_", document))
        for name in OURS:
            (folder / name).symlink_to(REPOSITORY / name)
        for split, count in (("train", 4), ("val", 2)):
            for number in range(count):
                for name in CLASSES:
                    picture(folder / "DATASET_DIR" / split / name / f"{number}.png", number)
        for split, shards in (("train", 9), ("val", 1)):
            files = sorted((folder / "DATASET_DIR" / split).glob("*/*.png"))
            for number in range(shards):
                members = [(f"{file.parent.name}/{file.name}", file.read_bytes()) for file in files[number::shards]]
                write_tar(folder / "SHARDS" / f"{split}-{number:06d}.tar", members)
            rows = [f"{split}/{file.parent.name}/{file.name},{file.parent.name}\n" for file in files]
            (folder / "DATASET_DIR" / f"{split}.csv").write_text("path,label\n" + "".join(rows))
        labelled = ["path,labels"]
        for split, count in (("train", 8), ("val", 6)):
            for number in range(count):
                picture(folder / "MULTI_DIR" / split / f"{number}.png", number)
                labelled.append(f"{split}/{number}.png,{';'.join(CLASSES[: number % 4])}")
        (folder / "MULTI_DIR" / "labels.csv").write_text("\n".join(labelled))
        (folder / "classes.txt").write_text("\n".join(CLASSES))
        (folder / "slices.csv").write_text("path,camera,light\nval/1/0.png,old,day\nval/1/1.png,new,\n")
        for name in (
            "FOLDER/a.png",
            "FOLDER/b.jpg",
            "IMAGE",
            "one.jpg",
            "two.png",
            "data/digits/val/3/0045.png",
        ):
            picture(folder / name, 3)
        for name, text in examples(document).items():
            (folder / name).write_text(text)
        (folder / "ARRAYS_DIR").mkdir()
        for split, count in (("train", 6), ("validation", 3)):
            images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            np.savez(folder / "ARRAYS_DIR" / f"{split}.npz", images=images, labels=np.arange(count) % 3)
        many = folder / "output" / "train" / "many" / "model_best.pth.tar"
        many.parent.mkdir(parents=True)
        torch.save({**entries, "args": {**args, "task": "multilabel"}}, many)
        for name in CHECKPOINTS:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(state)
        for run in ("one", "two"):
            (folder / "RUNS" / run).mkdir(parents=True)
            rows = "epoch,train_loss,eval_top1\n0,2.0,10\n1,1.0,50\n"
            (folder / "RUNS" / run / "summary.csv").write_text(rows)
        return folder

    return furnished


@pytest.mark.long
@pytest.mark.parametrize("line", RUN, ids=str)
def test_a_command_runs(line: Line, folder_of: Callable[[str], Path]) -> None:
    """In the order of the document, in one folder, by a shell in which `python` is this one."""
    programs = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    words = ["bash", "-o", "pipefail", "-c", as_run(line)]
    folder = folder_of(line.document)
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{as_run(line)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


@pytest.mark.long
@pytest.mark.parametrize("document", ["README.md", "docs/model.md", "docs/predict.md"])
def test_the_first_program_runs(document: str, folder_of: Callable[[str], Path]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", blocks(document)[0]]
    done = subprocess.run(words, cwd=folder_of(document), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
