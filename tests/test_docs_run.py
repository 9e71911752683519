"""Run the commands of the documents as they stand: in a folder where every word of theirs is a file.

What is too large for a test is made smaller by flags at its end (`SMALLER`); what is not run is in `NOT_RUN`, with
the reason. Every command of a shell block is one or the other.
"""

import functools
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from davit import create_model
from davit.hub.export import export
from tests.forms import write_tar
from tests.test_docs import DOCUMENTS, LINES, Line, blocks, examples, name_of

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = ("train.py", "validate.py", "predict.py", "davit", "configs", "tools", "figures", "requirements.txt")
CLASSES = ("1", "2", "3")
CHECKPOINTS = (
    *("FILE", "CHECKPOINT", "TRAINED_MODEL_PATH", "FOLDER_OF_CHECKPOINTS/one.pth.tar"),
    *("TEACHER.pth.tar", "FILE_OR_FOLDER", "output/train/mine/model_best.pth.tar"),
    *("OUTPUT_DIR/NAME/model_best.pth.tar", "output/demo/model_best.pth.tar"),
)
_TINY = "--img-size 32 --epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --batch-size 2 --workers 0"

# the first that is found in a command counts
NOT_RUN = {
    r"^(make|pip|pytest|python -m pytest|source) ": "it sets a place up, or runs for minutes what tests run in parts",
    r"^cd mm": "the commands below it are run from anywhere",
    r"dist_(train|test)\.sh|torchrun .* --head": "it needs two processes; tests/openmmlab/test_cli.py, "
    "tests/openmmlab/test_seg_processes.py and tests/detect/test_det_train.py start them",
    r"CamVid|cityscapes": "it needs data in these layouts; tests/openmmlab/test_readmes.py runs it on some",
    r"--head|det (test|demo) .*output/|^docs/detection\.md": "it needs data with boxes; "
    "tests/detect/test_det_docs.py runs it on a few scenes",
    r"^davit (det|seg) |mm(det|seg)/|tools/(train|test)|^docs/(detect|segment)\.md|work_dirs/mine|--config CONFIG": (
        "it needs data with boxes or masks; tests/openmmlab/test_openmmlab_docs.py runs it on a few scenes"
    ),
    r"export .*--pretrained": "it needs minutes; tests/export/test_export_run.py runs it, with random weights",
    r"--model 'DaViT_\*'": "it fetches all published weights; tests/engine/test_validate_cli.py runs it without",
    r"robustness DaViT_tiny|probe .*--pretrained": "it fetches weights of other networks, or needs ImageNet's sets; "
    "tests/robustness/test_robustness.py and tests/probe/test_probe_cli.py have small ones",
    r"davit\.app|^davit app": "it serves until it is ended; tests/app/test_page_in_a_browser.py runs it",
    r"davit\.serve|^davit serve|^curl ": "it runs until it is ended, or asks the service; test_a_service_answers",
    r"tools/launch\.sh": "it needs two machines; tests/distributed/test_two_machines.py starts it twice on one",
    r"^export |^srun ": "a job of Slurm; tests/test_docs.py runs the whole file with stand-ins",
    r"davit\.engine\.nonfinite": "it needs the batch of a failed step; tests/engine/test_nonfinite.py makes one",
    r"configs/davit_(small|base)_224\.yaml$": "as the one for tiny; tests/engine/test_train_cli.py reads every recipe",
    r"hub push (?!.*--dry-run)": "it uploads; tests/hub/test_push.py pushes to a stand-in",
    r"--teacher (convnext|transformers:)": "it fetches the teacher; tests/engine/test_distill.py and "
    "tests/engine/test_teachers.py have some",
    r"openvino\.__path__|^c\+\+ |^\./classify": "it needs a compiler; tests/export/test_cpp_example.py runs it",
    r"^trtexec|tiny\.engine": "it needs TensorRT and a GPU",
    r"^benchmarks/gpu": "it fetches wheels, or needs a GPU; tests/benchmarks/test_bench_gpu.py rehearses run.sh",
    r"benchmarks/": "it measures for minutes; tests/benchmarks runs the parts that measure",
}
# weights of few numbers, which lie in the folder for those fetched by hand; only DaViT_base's are taken unchecked
_PUBLISHED = "--model DaViT_base --model-kwargs embed_dims=[8,16,24,32] depths=[1,1,1,1] num_heads=[1,2,2,2]"
SMALLER = {
    r"davit\.hub": "",
    r"train\S* .*--pretrained.*--dry-run": f"{_TINY} {_PUBLISHED}",
    r"train\S* .*--model hf-hub": _TINY,
    r"train\S* .*--pretrained": f"{_TINY} {_PUBLISHED} --overwrite",
    r"predict.* --pretrained": _PUBLISHED,
    r"validate.* --pretrained": f"{_PUBLISHED} --workers 0 --batch-size 4",
    r"(train\.py|davit train)$|hfds/": f"{_TINY} --batch-size 64",
    r"davit(\.| )export": "--overwrite",
    r"train\.py data/digits-tar": f"{_TINY} --batch-size 64",
    r"--batch-size auto": f"{_TINY.partition(' --batch')[0]} --workers 0 --global-batch 4",
    r"--global-batch": f"{_TINY} --global-batch 4",
    r"--size-schedule": f"{_TINY} --img-size 32,64",
    r"torch\.distributed\.launch": f"{_TINY} --experiment launched",
    r"torchrun .*train\.py": f"{_TINY} --dry-run",
    r"--dry-run|--throughput": _TINY,
    r"--experiment many": f"{_TINY} --overwrite",
    r"train\.py .*--output OUTPUT_DIR": f"{_TINY} --experiment trained",
    r"train\.py .*--resume ": f"{_TINY} --epochs 41",
    r"BANDS_DIR --model": f"{_TINY.removeprefix('--img-size 32')} --input-size 4 32 32",
    r"(train|focal|cosine|arrays)\.py": _TINY,
    r"(validate\.py|davit validate)": "--workers 0 --batch-size 4",
    r"davit\.robustness .*--limit": "--workers 0",
    r"davit\.robustness": "--workers 0 --limit 2",
    r"davit\.probe": "--workers 0",
}
# programs of Python: what a block holds, or its document, and why it is not run here
PROGRAMS_NOT_RUN = {
    r"^docs/other_libraries\.md": "tests/transformers_room/test_other_libraries.py runs them",
    r"^docs/detection\.md": "tests/detect/test_det_train.py runs them on a trained detector",
    r"^docs/(detect|segment)\.md|score_threshold": "tests/openmmlab/test_openmmlab_docs.py runs it on a trained one",
    r"_base_ = ": "a config: tests/test_docs.py reads it",
    r"train\.main\(\)": "a file that the command below it runs",
    r"urlopen": "it asks a service that runs; test_a_service_answers",
}
# files that a program reads, and the command that writes them
WRITTEN = {
    "OUT.npz": "python -m davit.embed CHECKPOINT FOLDER OUT.npz",
    "OUT.parquet": "python -m davit.embed CHECKPOINT FOLDER OUT.parquet",
    "model.onnx": "python -m davit.export CHECKPOINT model.onnx",
    "output/train/lora/merged.safetensors": "davit train DATASET_DIR -c finetune --pretrained --lora 8 "
    "--experiment lora",
    "local-dir:EXPORT": "python -m davit.hub export output/demo EXPORT --license mit",
}


def is_left_out(pattern: str, line: Line) -> bool:
    """Whether a pattern is in the command, without the variables in front of it, or in the document's path."""
    bare = re.sub(r"^([A-Z_]+=\S+\s+)+", "", line.text)
    return re.search(pattern, bare) is not None or re.match(pattern, line.document) is not None


def reason(line: Line) -> str:
    """Say why a command is not run here; empty for one that is."""
    return next((why for pattern, why in NOT_RUN.items() if is_left_out(pattern, line)), "")


RUN = [line for line in LINES if not reason(line)]
PROGRAMS = [(name_of(path), text) for path in DOCUMENTS for text in blocks(name_of(path))]


def why_not(document: str, program: str) -> str:
    """Say why a program of Python is not run here; empty for one that is."""
    reasons = (
        why for pattern, why in PROGRAMS_NOT_RUN.items() if re.search(pattern, program) or re.match(pattern, document)
    )
    return next(reasons, "")


def as_run(line: Line) -> str:
    """The command with the flags that make it small, and no more than two processes."""
    text = re.sub(r"--nproc_per_node=\d+", "--nproc_per_node=2", line.text)
    text = text.replace("--model MODEL", "--model DaViT_tiny").replace("IMAGES DATASET_DIR", "IMAGES SPLIT_DIR")
    text = re.sub(r"^davit ", "python -m davit ", text)  # the one of this checkout
    if "hfds//data/flowers" in text:
        text = f"python -m davit.data digits flowers --as parquet; {text.replace('/data', '$PWD')}"
    extra = next((flags for pattern, flags in SMALLER.items() if re.search(pattern, text)), "")
    return f"{text} {extra}".strip()


def test_no_exception_without_a_command_or_of_a_test_that_is_gone() -> None:
    assert {*NOT_RUN.values()} - {reason(line) for line in LINES} == set()
    named = " ".join([*NOT_RUN.values(), *PROGRAMS_NOT_RUN.values()])
    assert [name for name in re.findall(r"tests/[\w/]+(?:\.py)?", named) if not (REPOSITORY / name).exists()] == []
    assert len(RUN) > 20
    held = [(document, program) for document, program in PROGRAMS if why_not(document, program)]
    for pattern in PROGRAMS_NOT_RUN:
        assert any(re.search(pattern, program) or re.match(pattern, document) for document, program in held), pattern
    assert len(PROGRAMS) - len(held) > 8


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """For each document a folder with the repository's files, a data set, images, and a checkpoint."""
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
        rows = (f"MULTI_DIR/train/{number}.png,{';'.join(CLASSES[: number % 4])}" for number in range(8))
        (folder / "all.csv").write_text("\n".join(["path,labels", *rows]))
        (folder / "MULTI_DIR" / "labels.csv").write_text("\n".join(labelled))
        for split, count in (("train", 4), ("val", 2)):
            for name, number in itertools.product(CLASSES, range(count)):
                pixels = np.random.default_rng(number).integers(0, 4096, (32, 32, 4), dtype=np.uint16)
                (folder / "BANDS_DIR" / split / name).mkdir(parents=True, exist_ok=True)
                np.save(folder / "BANDS_DIR" / split / name / f"{number}.npy", pixels)
        for name, number in itertools.product(CLASSES, range(5)):
            picture(folder / "IMAGES" / name / f"{number}.png", number + 10 * int(name))
        (folder / "classes.txt").write_text("\n".join(CLASSES))
        (folder / "slices.csv").write_text("path,camera,light\nval/1/0.png,old,day\nval/1/1.png,new,\n")
        for name in (
            *("FOLDER/a.png", "FOLDER/b.jpg", "IMAGE", "one.jpg", "two.png", "one.png", "cat.jpg", "picture.jpg"),
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
        (folder / "weights").mkdir()
        small = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
        published = create_model("DaViT_base", **small).state_dict()
        safetensors.torch.save_file(published, folder / "weights" / "davit_base.msft_in1k.safetensors")
        if document == "docs/hub.md":
            on_the_hub = folder / "hub" / "models--OWNER--NAME"
            (on_the_hub / "refs").mkdir(parents=True)
            (on_the_hub / "refs" / "main").write_text("0" * 40)
            export(state, on_the_hub / "snapshots" / ("0" * 40))
        for run in ("one", "two"):
            (folder / "RUNS" / run).mkdir(parents=True)
            rows = "epoch,train_loss,eval_top1\n0,2.0,10\n1,1.0,50\n"
            (folder / "RUNS" / run / "summary.csv").write_text(rows)
        return folder

    return furnished


def environment(folder: Path, **more: str) -> dict[str, str]:
    """`python` is this one; nothing is fetched; the hub's files and published weights are those of the folder."""
    found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": found, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder / "hub")}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    places = {"DAVIT_WEIGHTS_DIR": str(folder / "weights"), "DAVIT_DATA_DIR": str(folder / "embedded")}
    return {**kept, **own, **places, **more}


def run_in_a_shell(command: str, folder: Path, **more: str) -> str:
    words = ["bash", "-o", "pipefail", "-c", command]
    env = environment(folder, **more)
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("line", RUN, ids=str)
def test_a_command_runs(line: Line, folder_of: Callable[[str], Path]) -> None:
    """In the order of the document, in one folder, by a shell in which `python` is this one."""
    run_in_a_shell(as_run(line), folder_of(line.document))


@pytest.mark.long
@pytest.mark.parametrize(
    "document, program", [(document, text) for document, text in PROGRAMS if not why_not(document, text)]
)
def test_a_program_runs(document: str, program: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(document)
    for name, command in WRITTEN.items():
        if f'"{name}"' in program and not (folder / name.removeprefix("local-dir:")).exists():
            run_in_a_shell(as_run(Line(document, command)), folder)
    run_in_a_shell(f"python -c {shlex.quote(program)}", folder, PYTHONPATH=str(REPOSITORY))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_service_answers(folder_of: Callable[[str], Path]) -> None:
    """`davit serve` of each document, asked by the commands and the program that ask it."""
    (program,) = (text for document, text in PROGRAMS if document == "docs/serve.md" and "urlopen" in text)
    for start in (line for line in LINES if re.search(r"davit(\.| )serve", line.text)):
        folder = folder_of(start.document)
        words = [sys.executable, *shlex.split(as_run(start))[1:], "--port", "0"]
        asked = [line.text for line in LINES if line.document == start.document and line.text.startswith("curl ")]
        env = environment(folder, PYTHONPATH=str(REPOSITORY))
        with subprocess.Popen(words, cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as service:
            try:
                assert service.stderr is not None
                said = ""
                while "ready after" not in said:
                    line = service.stderr.readline()
                    assert line, said
                    said += line
                (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", said)
                for command in asked:
                    answer = run_in_a_shell(f"{command.replace('8000', port)} --fail --silent", folder)
                    assert json.loads(answer), command
                if start.document == "docs/serve.md":
                    ask = f"python -c {shlex.quote(program.replace('8000', port))}"
                    assert run_in_a_shell(ask, folder).strip() in CLASSES
            finally:
                service.terminate()
