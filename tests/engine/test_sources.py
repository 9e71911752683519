"""A run on tables or shards is the run on the folder: the same weights, killed or not; each image counts once."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from davit.data import write_digits
from davit.engine.run_folder import LAST
from tests.engine.runs import REPOSITORY, SMALL_MODEL, run, run_here, train_command, weights_hash
from tests.engine.test_crash import ONE, TWO, ends_as, kill_often
from tests.forms import FORMS, as_csv, as_shards

FLAGS = [
    *("--epochs", "2", "--warmup-epochs", "0", "--cooldown-epochs", "0", "--lr", "1e-3", "--batch-size", "8"),
    *("--workers", "1", "--output", "runs", "--experiment", "a"),
]


@pytest.fixture(scope="module")
def on_the_folder(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    cwd = tmp_path_factory.mktemp("folder")
    run_here(pictures, *FLAGS, cwd=cwd)
    return cwd / "runs/a"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_pictures_trains_the_same_weights(
    form: str, tmp_path: Path, pictures: Path, on_the_folder: Path
) -> None:
    run_here(FORMS[form](pictures, tmp_path / form), *FLAGS, cwd=tmp_path)
    assert ends_as(tmp_path / "runs/a", on_the_folder)


@pytest.mark.long
def test_the_digits_in_every_form_train_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    hashes = set()
    for form in ("folder", "csv", "parquet", "tar"):
        cwd = tmp_path / form
        cwd.mkdir()
        run_here(write_digits(cwd / "digits", form), *FLAGS, "--batch-size", "64", cwd=cwd)
        hashes.add(weights_hash(cwd / "runs/a" / LAST))
    assert len(hashes) == 1


@pytest.mark.long
@pytest.mark.parametrize(("flags", "processes"), [(ONE, 0), (TWO, 2)])
def test_killed_at_random_steps_on_shards(tmp_path: Path, pictures: Path, flags: list[str], processes: int) -> None:
    """As a run on the folder that nothing disturbed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run(train_command(pictures, *flags, processes=processes), whole)
    command = train_command(as_shards(pictures, tmp_path / "wds"), *flags, processes=processes)
    kill_often(command, killed, kills=5, seed=4)
    run([*command, "--auto-resume"], killed)
    assert ends_as(killed / "runs/a", whole / "runs/a")


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_each_picture_of_the_shards_once(tmp_path: Path, processes: int) -> None:
    shards = write_digits(tmp_path / "digits", "tar")
    arguments = [*("--model", "DaViT_nano", "--img-size", "16"), *SMALL_MODEL[4:]]
    run_here(shards, *FLAGS[:-4], *("--output", "runs", "--experiment", "a", "--epochs", "1"), cwd=tmp_path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(REPOSITORY / "validate.py"), str(shards), "--checkpoint", "runs/a/last.pth.tar"]
    done = run([*command, *arguments, "-b", "16", "-j", "1", "--json"], tmp_path)
    results = json.loads(done.stdout.splitlines()[-1])
    assert (results["count"], results["skipped"], results["processes"]) == (360, 0, processes)


def test_a_truncated_shard_stops_the_run_or_is_counted(tmp_path: Path, pictures: Path) -> None:
    shards = as_shards(pictures, tmp_path / "wds", shards=2)
    with (shards / "train-000001.tar").open("r+b") as stream:
        stream.truncate(40_000 - 40_000 % 512 + 700)
    stopped = run_here(shards, *FLAGS, cwd=tmp_path, status=2)
    named = re.search(r"train-000001\.tar/(\w+-\d+\.png): cut off", stopped.stderr)
    assert named
    run_here(shards, *FLAGS, "--skip-bad-images", "--overwrite", cwd=tmp_path)
    assert named[1] in (tmp_path / "runs/a/bad_images.csv").read_text()


# Labels that teach nothing


def test_one_class_alone_is_refused(tmp_path: Path, pictures: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "one" / split).mkdir(parents=True)
        (tmp_path / "one" / split / "red").symlink_to(pictures / split / "red")
    refused = run_here(tmp_path / "one", *FLAGS, cwd=tmp_path, status=2)
    assert "red" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_classes_in_another_order_than_the_states(tmp_path: Path, pictures: Path, on_the_folder: Path) -> None:
    """Going on is refused, and so it is under other names until they are accepted; starting is warned of."""
    other = tmp_path / "classes.txt"
    other.write_text("red\nblue\ngreen\n")
    state = str(on_the_folder / LAST)
    mapped = [*FLAGS, "--class-map", str(other)]
    assert "red" in run_here(pictures, *mapped, "--resume", state, cwd=tmp_path, status=2).stderr
    begun = run_here(pictures, *mapped, "--overwrite", "--initial-checkpoint", state, "--dry-run", cwd=tmp_path)
    assert "--class-map" in begun.stderr and "red" in begun.stderr
    table = as_csv(pictures, tmp_path / "csv")
    for file in table.glob("*.csv"):
        file.write_text(file.read_text().replace(",green", ",grass"))
    renamed = [*FLAGS, "--overwrite", "--resume", state]
    assert "grass" in run_here(table, *renamed, cwd=tmp_path, status=2).stderr
    assert "grass" in run_here(table, *renamed, "--accept-changed-data", cwd=tmp_path).stderr


def test_evaluation_goes_by_the_names_of_the_classes(tmp_path: Path, pictures: Path, on_the_folder: Path) -> None:
    """A checkpoint whose head has the classes in another order gets the same number right."""
    from davit.engine.validate import main

    state = torch.load(on_the_folder / LAST, weights_only=True)
    order = [2, 0, 1]
    state["class_names"] = [state["class_names"][index] for index in order]
    for name in ("head.weight", "head.bias"):
        state["state_dict"][name] = state["state_dict"][name][order]
    torch.save({key: state[key] for key in ("state_dict", "args", "class_names", "arch")}, tmp_path / "other.pth.tar")
    results = []
    for number, file in enumerate((on_the_folder / LAST, tmp_path / "other.pth.tar")):
        out = tmp_path / f"{number}.json"
        words = [str(pictures), "--checkpoint", str(file), "-j", "0", "--results-file", str(out)]
        assert main(words) == 0
        (row,) = json.loads(out.read_text())
        results.append((row["correct1"], row["count"], round(row["loss"], 4)))
    assert results[0] == results[1]
