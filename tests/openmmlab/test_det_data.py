"""Detection data as people have them, read by test.py and train.py: the same scores, or a paragraph that says why."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from davit.openmmlab import cli
from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from tests.conftest import REPOSITORY
from tests.openmmlab.conftest import DET, DET_TOOLS, Go, scores_of, shell

DIGITS = tuple("0123456789")

_ORACLE = """
_base_ = {base!r}
custom_imports = dict(imports=["davit.openmmlab", "tests.openmmlab.oracle"])
model = dict(_delete_=True, type="Oracle", file={file!r}, classes={classes!r}, backbone=dict())
model["data_preprocessor"] = dict(type="DetDataPreprocessor")
"""


@pytest.fixture
def scenes(few_scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes whose annotations a test may change; the images are shared."""
    root = tmp_path / "scenes"
    shutil.copytree(few_scenes / "annotations", root / "annotations")
    for split in ("train2017", "val2017"):
        (root / split).symlink_to(few_scenes / split)
    return root


Edit = Callable[[dict[str, Any]], Any]
Run = Callable[..., tuple[str, dict[str, float]]]


def write(scenes: Path, edit: Edit, name: str = "x", split: str = "val") -> dict[str, Any]:
    """Write annotations/x.json, the annotations of a split after an edit."""
    contents = json.loads((scenes / f"annotations/instances_{split}2017.json").read_text())
    edit(contents)
    (scenes / f"annotations/{name}.json").write_text(json.dumps(contents))
    return contents


@pytest.fixture
def run(go: Go, detector: Path, few_scenes: Path, scenes: Path, tmp_path: Path) -> Run:
    """``run(*words, classes, names, ann, status)``: test.py with a detector that predicts what the truth is.

    classes: the order of its labels; names: what the checkpoint says of it; ann: the file to test on.
    """
    count = 0

    def go_on(
        *words: Any, classes: tuple[str, ...] = DIGITS, names: Any = ..., ann: str = "x", status: int = 0
    ) -> tuple[str, dict[str, float]]:
        nonlocal count
        count += 1
        truth = str(few_scenes / "annotations/instances_val2017.json")
        Path("oracle.py").write_text(_ORACLE.format(base=str(detector), file=truth, classes=classes))
        meta = {} if names is None else {"dataset_meta": {"classes": classes if names is ... else names}}
        torch.save({"state_dict": {"scale": torch.ones(())}, "meta": meta}, "oracle.pth")
        options = f"val_dataloader.dataset.ann_file=annotations/{ann}.json"
        folder = tmp_path / f"run{count}"
        named = [*words, "--cfg-options", options] if "--cfg-options" not in words else [*words, options]
        said = go(
            evaluate, "oracle.py", "oracle.pth", "--data-root", scenes, "--work-dir", folder, *named, status=status
        )
        return said, scores_of(folder) if status == 0 else {}

    return go_on


def map_of(scores: dict[str, float]) -> tuple[float, float]:
    return scores["coco/bbox_mAP"], scores["coco/segm_mAP"]


# -- the order of categories


def test_the_order_of_categories_never_matters(run: Run, scenes: Path) -> None:
    untouched = map_of(run(ann="instances_val2017")[1])
    assert untouched == (1.0, 1.0)
    write(scenes, lambda contents: contents["categories"].reverse())
    for words in ([], ["--classes", "auto"], ["--classes", *DIGITS]):
        assert map_of(run(*words)[1]) == untouched
    said, scores = run("--classes", *DIGITS[::-1])  # as the file has them: the checkpoint knows better
    assert map_of(scores) == untouched and "another order" in said
    assert map_of(run("--classes", *DIGITS, names=None)[1]) == untouched


def test_a_checkpoint_of_another_order_or_of_other_names(run: Run, scenes: Path) -> None:
    write(scenes, lambda contents: None)
    shuffled = tuple("7182306495")
    said, scores = run(classes=shuffled)
    assert map_of(scores) == (1.0, 1.0) and "another order" in said
    said, _ = run(names=[*"012345678", "nine"], status=2)
    assert "nine" in said and "--classes" in said and "oracle.pth" in said
    write(scenes, lambda contents: contents["categories"][9].update(name="nine"))
    said, _ = run(status=2)
    assert "nine" in said and "x.json" in said


def test_results_have_the_ids_of_the_file(run: Run, scenes: Path) -> None:
    def renumber(contents: dict[str, Any]) -> None:
        contents["categories"].reverse()
        for category in contents["categories"]:
            category["id"] += 100
        for entry in contents["annotations"]:
            entry["category_id"] += 100
            entry["id"] -= 1  # from 0, which evaluation takes for no match

    contents = write(scenes, renumber)
    _, scores = run("--out", "found.json")
    assert map_of(scores) == (1.0, 1.0)
    found = json.loads(Path("found.bbox.json").read_text())
    assert {(one["image_id"], one["category_id"]) for one in found} == {
        (one["image_id"], one["category_id"]) for one in contents["annotations"]
    }


def test_training_and_validation_of_different_orders(
    go: Go, detector: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are given the order of the classes, whichever that is; the files stay as they are."""
    write(scenes, lambda contents: None, "train", "train")
    write(scenes, lambda contents: contents["categories"].reverse(), "val")
    seen: list[Any] = []
    monkeypatch.setattr(cli.DaViTRunner, "from_cfg", lambda cfg: seen.append(cfg) or Silent())
    options = [f"{split}_dataloader.dataset.ann_file=annotations/{split}.json" for split in ("train", "val")]
    words = [detector, "--data-root", scenes, "--work-dir", tmp_path / "out"]
    for classes, expected in ((["auto"], DIGITS), (["3", "1"], ("3", "1")), ([], DIGITS)):
        go(train, *words, *(["--classes", *classes] if classes else []), "--cfg-options", *options)
        cfg = seen.pop()
        datasets = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
        for file in (*(dataset.ann_file for dataset in datasets), cfg.val_evaluator.ann_file):
            coco = COCO(scenes / file)
            ids = coco.getCatIds(catNms=list(expected))
            assert [coco.cats[number]["name"] for number in ids] == list(expected)
            assert ids == [int(name) + 1 for name in expected]
        assert cfg.val_evaluator.ann_file == str(scenes / cfg.val_dataloader.dataset.ann_file)
        assert cfg.train_dataloader.dataset.metainfo.classes == expected


class Silent:
    """A runner that does nothing."""

    def train(self) -> None: ...


def test_a_start_from_a_detector_of_another_order(
    go: Go, detector: Path, few_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(cli.DaViTRunner, "from_cfg", lambda cfg: seen.append(cfg) or Silent())
    words = [detector, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    for names, expected in ((DIGITS[::-1], DIGITS[::-1]), (("a", "b"), DIGITS), (None, DIGITS)):
        torch.save(
            {"state_dict": {"scale": torch.ones(())}, "meta": {"dataset_meta": {"classes": names}}}, "start.pth"
        )
        go(train, *words, "--load-from", "start.pth")
        assert seen.pop().train_dataloader.dataset.metainfo.classes == expected
    torch.save(
        {"state_dict": {"scale": torch.ones(())}, "meta": {"CLASSES": "ab"}}, "start.pth"
    )  # one class, as mmdet 2 wrote it
    assert "ab" in go(train, *words, "--resume", "start.pth", status=2)


# -- faults and what is mended


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda contents: contents["annotations"][1].update(id=contents["annotations"][0]["id"]), ["id 1", "unique"]),
        (lambda contents: contents["annotations"][2].pop("id"), ["annotations[2]", "no id"]),
        (lambda contents: contents["images"][0].update(width=None), ["images[0]", "id 1", "width None"]),
        (lambda contents: contents["annotations"][0].update(area=None), ["annotations[0]", "id 1", "area None"]),
        (lambda contents: contents["annotations"][0].update(bbox=["1", "1", "29", "29"]), ["id 1", "bbox", "'29'"]),
        (lambda contents: contents["annotations"][0].update(bbox=[None] * 4), ["annotations[0]", "id 1", "[None"]),
        (lambda contents: contents.pop("annotations"), ["annotations", "--format-only"]),
        (lambda contents: contents.update(annotations=[]), ["no object", "--format-only"]),
    ],
)
def test_faults_are_named_before_anything_is_built(run: Run, scenes: Path, edit: Edit, named: list[str]) -> None:
    write(scenes, edit)
    said, _ = run(status=2)
    assert all(word in said for word in (*named, "x.json")) and "Traceback" not in said
    assert not list(Path("run1").glob("*"))


@pytest.mark.parametrize("useless", [[[]], [[1, 1, 30, 30]], {"size": [3, 3], "counts": "garbage"}])
def test_useless_masks_are_left_out(run: Run, scenes: Path, useless: Any) -> None:
    write(scenes, lambda contents: contents["annotations"][0].update(segmentation=useless))
    said, scores = run()
    assert "left out" in said and "id 1)" in said
    assert scores["coco/segm_mAP"] > 0.8  # what is predicted for it counts as false


def test_training_on_what_was_mended(go: Go, detector: Path, scenes: Path, tmp_path: Path) -> None:
    """Mended and left-out objects, names of another platform and parents, to the end of an epoch."""

    def spoil(contents: dict[str, Any]) -> None:
        first, second, third, *_ = contents["annotations"]
        first["segmentation"] = [[]]
        del second["area"], second["iscrowd"]
        third["id"] = 0
        for image in contents["images"]:
            image["file_name"] = f".\\{image['file_name']}"
        contents["categories"] = [{"id": 0, "name": "digits"}, *contents["categories"][::-1]]
        for category in contents["categories"][1:]:
            category["supercategory"] = "digits"

    for split in ("train", "val"):
        write(scenes, spoil, split, split)
    options = [f"{split}_dataloader.dataset.ann_file=annotations/{split}.json" for split in ("train", "val")]
    words = [detector, "--data-root", scenes, "--work-dir", tmp_path / "out", "--classes", "auto"]
    said = go(train, *words, "--cfg-options", *options, "train_cfg.max_epochs=1", "train_cfg.val_interval=1")
    assert "left out" in said and "digits" in said
    state = torch.load(tmp_path / "out/epoch_1.pth", weights_only=True)
    assert state["meta"]["dataset_meta"]["classes"] == [*DIGITS[::-1]]


def test_pictures_that_training_would_leave_out(go: Go, detector: Path, scenes: Path, tmp_path: Path) -> None:
    def shrink(contents: dict[str, Any]) -> None:
        for image in contents["images"]:
            image.update(width=28, height=28)
            image["file_name"] = f"small{image['id']}.png"
            Image.new("RGB", (28, 28)).save(tmp_path / image["file_name"])
        for entry in contents["annotations"]:
            entry.update(bbox=[1, 1, 9, 9], segmentation=[[1, 1, 9, 1, 9, 9]])

    write(scenes, shrink)
    dataset = "train_dataloader.dataset"
    options = [f"{dataset}.ann_file=annotations/x.json", f"{dataset}.data_prefix.img={tmp_path}"]
    words = [detector, "--data-root", scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    said = go(train, *words, "--cfg-options", *options, status=2)
    assert "min_size=1" in said and "all 4" in said


# -- data without labels


def test_predictions_for_a_server(run: Run, scenes: Path) -> None:
    for edit in (lambda contents: contents.pop("annotations"), lambda contents: contents.update(annotations=[])):
        write(scenes, edit)
        run("--format-only", "--out", "td")
        found = json.loads(Path("td.bbox.json").read_text())
        assert {one["image_id"] for one in found} == {1, 2, 3, 4}
        assert len(json.loads(Path("td.segm.json").read_text())) == len(found)
        said, _ = run("--show-dir", "drawn", status=2)
        assert "--format-only" in said
    run("--format-only", "--out", "td", "--show-dir", "drawn")
    assert len(list(Path("drawn").rglob("*.png"))) == 4


# -- evaluators, wrappers, flags


def test_several_evaluators_and_files_of_their_own(go: Go, run: Run, scenes: Path) -> None:
    write(scenes, lambda contents: contents["categories"].reverse())
    write(scenes, lambda contents: contents["categories"].reverse(), "y")
    detector_of_several = Path("several.py")
    metric = {"type": "CocoMetric", "metric": "bbox", "ann_file": str(scenes / "annotations/y.json")}
    several = [{**metric, "prefix": "a"}, {**metric, "prefix": "b", "ann_file": "unset"}]
    detector_of_several.write_text(f"_base_ = 'oracle.py'\ntest_evaluator = {several!r}\n")
    run()  # writes oracle.py
    words = [detector_of_several, "oracle.pth", "--data-root", scenes, "--work-dir", "several", "--out", "both"]
    options = [f"{split}_dataloader.dataset.ann_file=annotations/x.json" for split in ("val", "test")]
    go(evaluate, *words, "--cfg-options", *options)
    scores = scores_of(Path("several"))
    assert (scores["a/bbox_mAP"], scores["b/bbox_mAP"]) == (1.0, 1.0)


def test_bad_pictures_stop_a_run_or_are_skipped(go: Go, run: Run, scenes: Path) -> None:
    (scenes / "val2017").unlink()
    shutil.copytree((scenes / "train2017").resolve().parent / "val2017", scenes / "val2017")
    picture = sorted((scenes / "val2017").iterdir())[1]
    picture.write_bytes(picture.read_bytes()[:300])
    contents = write(scenes, lambda contents: None)
    said, _ = run(status=2)
    assert picture.name in said and "--skip-bad-images" in said
    said, scores = run("--skip-bad-images", "--out", "found")
    assert "left out: 1 of 4 images" in said and map_of(scores) == (1.0, 1.0)
    assert {one["image_id"] for one in json.loads(Path("found.bbox.json").read_text())} == {1, 3, 4}
    contents["images"][0]["width"] = 64
    (scenes / "annotations/x.json").write_text(json.dumps(contents))
    said, _ = run(status=2)
    assert "width 64" in said
    picture.write_bytes((scenes / "val2017/000000.png").read_bytes())
    assert "--no-data-check" in run("--no-data-check")[0]


def test_flags_of_detection_alone(go: Go) -> None:
    seg = DET.parents[1] / "mmseg/configs/upernet_davit_folders.py"
    said = go(train, seg, "--skip-bad-images", "--classes", "a", "b", status=2)
    assert "--skip-bad-images" in said


def test_wrapped_data_sets(
    go: Go, detector: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(scenes, lambda contents: contents["categories"].reverse(), "x", "train")
    seen: list[Any] = []
    monkeypatch.setattr(cli.DaViTRunner, "from_cfg", lambda cfg: seen.append(cfg) or Silent())
    Path("wrapped.py").write_text(
        f"_base_ = {str(detector)!r}\n"
        "one = dict(type='CocoDataset', ann_file='annotations/x.json', data_prefix=dict(img='train2017/'), "
        "metainfo=dict(classes=tuple('0123456789')), pipeline=[])\n"
        "other = dict(one, ann_file='annotations/instances_train2017.json')\n"
        "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, "
        "dataset=dict(type='ConcatDataset', datasets=[one, other])))\n"
    )
    go(train, "wrapped.py", "--data-root", scenes, "--work-dir", tmp_path / "out", "--no-validate")
    one, other = seen.pop().train_dataloader.dataset.dataset.datasets
    assert COCO(one.ann_file).getCatIds(catNms=list(DIGITS)) == list(range(1, 11))
    assert other.ann_file == "annotations/instances_train2017.json"


@pytest.mark.long
def test_two_processes_use_what_one_of_them_checked(run: Run, scenes: Path, tmp_path: Path) -> None:
    write(scenes, lambda contents: contents["categories"].reverse())
    run("--format-only")  # writes oracle.py
    words = [DET_TOOLS / "dist_test.sh", "oracle.py", "oracle.pth", 2, "--data-root", scenes, "--work-dir", "two"]
    words += ["--cfg-options", "val_dataloader.dataset.ann_file=annotations/x.json"]
    shell(*words, cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert map_of(scores_of(Path("two"))) == (1.0, 1.0)
    write(scenes, lambda contents: contents["annotations"][0].update(id=2))
    said = shell(*words, cwd=tmp_path, PYTHONPATH=str(REPOSITORY), status=1)  # torchrun's; each process ends with 2
    assert "unique" in said and "exitcode  : 2" in said


def test_a_run_is_resumed_with_its_classes(
    go: Go, detector: Path, few_scenes: Path, trained: Path, scenes: Path, tmp_path: Path
) -> None:
    write(scenes, lambda contents: contents["categories"].reverse(), "x", "train")
    (tmp_path / "out").mkdir()
    shutil.copy(trained / "epoch_2.pth", tmp_path / "out/epoch_2.pth")
    words = [detector, "--data-root", scenes, "--work-dir", tmp_path / "out", "--no-validate", "--resume"]
    options = ["train_dataloader.dataset.ann_file=annotations/x.json", "train_cfg.max_epochs=2"]
    said = go(train, *words, "--classes", "auto", "--cfg-options", *options, status=2)
    assert "--classes" in said and "epoch_2.pth" in said
    go(train, *words, "--cfg-options", *options)


def test_what_is_not_checked_is_said(caplog: pytest.LogCaptureFixture, few_scenes: Path) -> None:
    from mmengine.registry import init_default_scope

    from davit.openmmlab.datasets import check_dataset

    init_default_scope("mmdet")
    away = {"type": "CocoDataset", "data_root": "s3://there", "ann_file": "a.json"}
    for dataset in (away, {"type": "CocoPanopticDataset", "data_root": str(few_scenes)}, {"type": "Unknown"}):
        before = copy.deepcopy(dataset)
        check_dataset(dataset, "train", {})
        assert dataset == before and "not checked" in caplog.records[-1].getMessage()
