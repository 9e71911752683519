"""Which kind of data set a folder is: one of each kind, in the arrangements that people have, and odd ones."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from davit.data import DataError, open_dataset
from davit.data.layouts import KINDS, TASKS, find_layout, split_of

Pictures = Callable[..., Path]


def coco(file: Path, *names: str, **changes: Any) -> None:
    """Write a COCO json of images with one cat on the first."""
    box = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
    contents = {
        "info": {"images": ["not", "these"], "description": 'a "quoted" [text] with {signs}'},
        "images": [{"id": n, "file_name": name, "width": 24, "height": 20} for n, name in enumerate(names, 1)],
        "annotations": [box],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    write(file, json.dumps({**contents, **changes}))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def places(root: Path, task: str | None = None) -> dict[str, tuple[str, str]]:
    """For each split the folder of its images and its labels, below the root."""
    splits = find_layout(root, task).splits
    below = {name: (split.pictures, split.labels or split.pictures) for name, split in splits.items()}
    return {name: tuple(str(path.relative_to(root)) for path in pair) for name, pair in below.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("instances_train2017", "train"), ("instances_val2017", "val"), ("valid", "val"), ("Validation", "val")),
        *(("image_info_test-dev2017", "test"), ("train_images", "train"), ("images", None), ("interval", None)),
        *(("_annotations.coco", None), ("trainval", "train"), ("latest", None), ("", None)),
    ],
)
def test_splits_by_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


# --- COCO's form ---


def test_coco_as_it_is_published(pictures: Pictures) -> None:
    root = pictures("train2017/1.jpg", "val2017/1.jpg")
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}2017.json"
        coco(file, "1.jpg")
        coco(file.with_name(f"person_keypoints_{split}2017.json"), "1.jpg")
        coco(file.with_name(f"captions_{split}2017.json"), "1.jpg", annotations=[{"image_id": 1, "caption": "a cat"}])
        coco(file.with_name(f"panoptic_{split}2017.json"), "1.jpg", annotations=[{"segments_info": []}])
    coco(root / "annotations" / "image_info_test-dev2017.json", "9.jpg", annotations=[])  # its images are not there
    layout = find_layout(root)
    assert (layout.task, layout.kind, layout.classes) == ("detection", "COCO", ("cat", "dog"))
    assert places(root) == {
        split: (f"{split}2017", f"annotations/instances_{split}2017.json") for split in ("train", "val")
    }
    assert (layout.splits["val"].count, layout.notes, layout.others) == (1, (), ())
    pictures("test2017/9.jpg")
    assert find_layout(root).splits["test"].labelled is False and find_layout(root).splits["val"].labelled


@pytest.mark.parametrize(
    ("files", "jsons", "found"),
    [
        (  # README
            ["images/a.png", "images/b.png"],
            {"train.json": "a.png", "val.json": "b.png"},
            {"train": ("images", "train.json"), "val": ("images", "val.json")},
        ),
        (
            ["train/a.png", "val/a.png"],
            {"annotations/train.json": "a.png", "annotations/val.json": "a.png"},
            {"train": ("train", "annotations/train.json"), "val": ("val", "annotations/val.json")},
        ),
        (  # the names hold the folder
            ["images/train/a.png", "images/val/a.png"],
            {"train.json": "images/train/a.png", "val.json": "images\\val\\a.png"},
            {"train": (".", "train.json"), "val": (".", "val.json")},
        ),
        (
            ["images/train/a.png", "images/val/b.png"],
            {"annotations/instances_train.json": "a.png", "annotations/instances_val.json": "b.png"},
            {
                "train": ("images/train", "annotations/instances_train.json"),
                "val": ("images/val", "annotations/instances_val.json"),
            },
        ),
        (  # CVAT
            ["images/default/a.png"],
            {"annotations/instances_default.json": "a.png"},
            {"train": ("images/default", "annotations/instances_default.json")},
        ),
        (  # FiftyOne
            ["train/data/a.png", "validation/data/a.png"],
            {"train/labels.json": "a.png", "validation/labels.json": "a.png"},
            {"train": ("train/data", "train/labels.json"), "val": ("validation/data", "validation/labels.json")},
        ),
        (["photos of mine/a.png"], {"result.json": "a.png"}, {"train": ("photos of mine", "result.json")}),
        (["a.png"], {"TRAIN.JSON": "a.png"}, {"train": (".", "TRAIN.JSON")}),
    ],
)
def test_a_json_is_known_by_its_content(
    pictures: Pictures, files: list[str], jsons: dict[str, str], found: dict[str, tuple[str, str]]
) -> None:
    root = pictures(*files)
    for name, picture in jsons.items():
        coco(root / name, picture)
    write(root / "package.json", '{"name": "images", "categories": {"images": []}}')
    write(root / "shapes.json", '{"images": [], "shapes": [], "annotations": []}')
    assert places(root) == found
    assert find_layout(root).kind == "COCO"


def test_roboflow(pictures: Pictures) -> None:
    folders = {"train": "train", "val": "valid", "test": "test"}
    root = pictures(*(f"{folder}/a.jpg" for folder in folders.values()))
    for folder in folders.values():
        coco(root / folder / "_annotations.coco.json", "a.jpg")
    assert find_layout(root).kind == "Roboflow"
    assert places(root) == {name: (one, f"{one}/_annotations.coco.json") for name, one in folders.items()}


def test_a_large_json_is_not_read_whole(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, categories and splits come from parts of it, whatever the order of its lists."""
    root = pictures("train2017/1.jpg", "val2017/1.jpg")
    for split, keys in (("train", ("images", "annotations", "categories")), ("val", ("categories", "annotations"))):
        file = root / "annotations" / f"instances_{split}2017.json"
        coco(file, "1.jpg")
        contents = json.loads(file.read_text())
        contents["annotations"] *= 300
        write(file, json.dumps({key: contents[key] for key in (*keys, *contents)}))
    monkeypatch.setattr("davit.data.layouts._WHOLE", 0)
    monkeypatch.setattr("davit.data.layouts._HEAD", 2000)
    monkeypatch.setattr("davit.data.layouts._TAIL", 500)
    layout = find_layout(root)
    assert layout.classes == ("cat", "dog") and layout.splits["train"].count is None
    assert {name: split.pictures.name for name, split in layout.splits.items()} == {
        "train": "train2017",
        "val": "val2017",
    }


def test_a_broken_json_still_is_coco(pictures: Pictures) -> None:
    """What is wrong with it is for the check of annotations to say."""
    root = pictures("images/a.png")
    coco(root / "train.json", "a.png", annotations=None)
    assert places(root) == {"train": ("images", "train.json")}
    text = (root / "train.json").read_text()
    write(root / "train.json", text[: text.index('"annotations"') + 20])  # cut off
    assert places(root) == {"train": ("images", "train.json")}
    (root / "train.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert places(root) == {"train": ("images", "train.json")}


def test_of_several_files_the_others_are_named(pictures: Pictures) -> None:
    root = pictures("images/a.png")
    for name in ("train.json", "train_2.json", "annotations/instances_train.json"):
        coco(root / name, "a.png")
    layout = find_layout(root)
    assert places(root) == {"train": ("images", "annotations/instances_train.json")}
    assert all(name in layout.notes[0] for name in ("train.json", "train_2.json"))
    assert find_layout(root / "train_2.json").splits["train"].labels == root / "train_2.json"


# --- YOLO ---


@pytest.mark.parametrize("form", ["images/{}", "{}/images"])
def test_yolo(pictures: Pictures, form: str) -> None:
    root = pictures(form.format("train") + "/a.png", form.format("val") + "/a.png")
    labels = {split: form.format(split).replace("images", "labels") for split in ("train", "val")}
    for folder in labels.values():
        write(root / folder / "a.txt", "0 .5 .5 .1 .1\n")
    splits = "".join(f"{split}: {form.format(split)}\n" for split in labels)
    write(root / "data.yaml", f"{splits}names: [cat, dog]\n")
    layout = find_layout(root)
    assert (layout.kind, layout.classes, layout.chosen_by) == ("YOLO", ("cat", "dog"), str(root / "data.yaml"))
    assert places(root) == {split: (form.format(split), folder) for split, folder in labels.items()}
    assert places(root) == {
        name: tuple(str(path.relative_to(root)) for path in (split.pictures, split.labels or root))
        for name, split in find_layout(root / "data.yaml").splits.items()
    }
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"data\.yaml"):
        find_layout(root)
    write(root / "classes.txt", "cat\ndog\n\n")
    assert find_layout(root).classes == ("cat", "dog") and len(find_layout(root).splits) == 2


def test_darknet(pictures: Pictures) -> None:
    """Labels beside their images, and names of the classes in a file, as Roboflow and LabelImg write them."""
    root = pictures("train/a.png", "valid/a.png")
    for folder in ("train", "valid"):
        write(root / folder / "a.txt", "1 .5 .5 .1 .1\n")
        write(root / folder / "_darknet.labels", "cat\ndog\n")
    layout = find_layout(root)
    assert (layout.kind, layout.classes) == ("YOLO", ("cat", "dog"))
    assert places(root) == {"train": ("train", "train"), "val": ("valid", "valid")}


def test_several_layouts_in_one_folder(pictures: Pictures) -> None:
    """COCO's needs no conversion; the other is named, and taken where it is asked for."""
    root = pictures("images/train/a.png", "images/val/b.png", "masks/train/a.png", "masks/val/b.png")
    for split, name in (("train", "a.png"), ("val", "b.png")):
        coco(root / "annotations" / f"{split}.json", name)
    write(root / "coco.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    layout = find_layout(root)
    assert [layout.kind, *(other.kind for other in layout.others)] == ["COCO", "YOLO", "mask folders"]
    for one in (layout, *layout.others[:1]):
        assert find_layout(one.chosen_by).kind == one.kind
    assert find_layout(root, "segmentation").kind == "mask folders"
    write(root / "coco.yaml", "train: images/train\nval: images/val\nnames: []\n")
    assert find_layout(root).kind == "COCO" and any("coco.yaml" in note for note in find_layout(root).notes)


# --- segmentation ---


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("images/train/a.jpg", "masks/train/a.png"), ("images/val/a.jpg", "masks/val/a.png")),
        (("train/images/a.jpg", "train/labels/a.png"), ("valid/images/a.jpg", "valid/labels/a.png")),
        (("train/a.png", "trainannot/a.png"), ("val/a.png", "valannot/a.png")),
        (("train/a.png", "train_masks/a.png"), ("test/a.png", "test_masks/a.png")),
        (("train2017/a.jpg", "masks/train2017/a.png"), ("val2017/a.jpg", "masks/val2017/a.png")),
        (
            ("leftImg8bit/train/aachen/a_leftImg8bit.png", "gtFine/train/aachen/a_gtFine_labelTrainIds.png"),
            ("leftImg8bit/val/ulm/a_leftImg8bit.png", "gtFine/val/ulm/a_gtFine_labelTrainIds.png"),
        ),
        (("img/a.jpg", "mask/a.png"), None),
        (("Images/train/a.JPG", "Annotations/training/a.png"), ("Images/val/a.JPEG", "Annotations/val/a.png")),
    ],
)
def test_folders_of_masks(pictures: Pictures, train: tuple[str, str], val: tuple[str, str] | None) -> None:
    root = pictures(*train, *(val or ()))
    found = places(root)
    assert find_layout(root).task == "segmentation"
    for (picture, mask), (folder, labels) in zip(filter(None, (train, val)), found.values(), strict=True):
        assert picture.startswith(f"{folder}/") and mask.startswith(f"{labels}/")
    assert len(found) == (2 if val else 1)


def test_ade20k_and_pascal_voc(pictures: Pictures) -> None:
    root = pictures(*(f"ade/{a}/{b}/a.png" for a in ("images", "annotations") for b in ("training", "validation")))
    assert find_layout(root / "ade").kind == "ADE20K"
    assert places(root / "ade")["val"] == ("images/validation", "annotations/validation")
    pictures("voc/JPEGImages/1.jpg", "voc/SegmentationClass/1.png")
    write(root / "voc/ImageSets/Segmentation/train.txt", "1\n")
    write(root / "voc/ImageSets/Segmentation/val.txt", "1\n")
    layout = find_layout(root / "voc")
    assert layout.kind == "mask folders" and [*layout.splits] == ["train", "val"]
    assert layout.splits["val"].listed == root / "voc/ImageSets/Segmentation/val.txt"


# --- classification ---


def test_class_folders(pictures: Pictures) -> None:
    root = pictures("a/train/bee/1.png", "a/train/ant/sub/1.png", "a/valid/ant/1.png", "a/valid/bee/1.png")
    layout = find_layout(root / "a")
    assert (layout.kind, layout.classes) == ("class folders", ("ant", "bee"))
    assert places(root / "a") == {"train": ("train", "train"), "val": ("valid", "valid")}
    pictures("b/ant/1.png", "b/bee/1.png")  # without splits, which open_dataset says
    assert (find_layout(root / "b").kind, find_layout(root / "b").splits) == ("class folders", {})
    (root / "c/train/ant").mkdir(parents=True)
    (root / "a/train/ant/sub/1.png").rename(root / "c/train/ant/IMG1")  # known by its content
    assert find_layout(root / "c").kind == "class folders"


def test_tables_and_shards(pictures: Pictures) -> None:
    root = pictures("csv/pictures/1.png", "csv/pictures/2.png")
    for split, number in (("train", 1), ("val", 2)):
        write(root / f"csv/{split}.csv", f"path,label\npictures/{number}.png,ant\n")
        (root / "tar").mkdir(exist_ok=True)
        with tarfile.open(root / f"tar/{split}-000.tar", "w") as shard:
            shard.add(root / f"csv/pictures/{number}.png", "ant/1.png")
    assert places(root / "csv") == {split: (".", f"{split}.csv") for split in ("train", "val")}
    assert places(root / "tar") == {split: (".", f"{split}-000.tar") for split in ("train", "val")}
    assert [find_layout(root / kind).kind for kind in ("csv", "tar")] == ["csv", "tar shards"]
    assert find_layout(root / "tar" / "train-{000..000}.tar").kind == "tar shards"
    write(root / "csv" / "data.csv", "path,label,split\npictures/1.png,ant,train\n")
    assert [*find_layout(root / "csv" / "data.csv").splits] == ["train", "val"]
    coco(root / "csv" / "train.json", "1.png")  # a table that names no split is not meant where a json is
    for split in ("train", "val"):
        (root / "csv" / f"{split}.csv").unlink()
    assert find_layout(root / "csv").kind == "COCO" and find_layout(root / "csv").others == ()


# --- everything else ---


def test_nothing_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        find_layout(tmp_path / "nowhere")
    write(tmp_path / "Annotations/1.xml", "<annotation/>")
    write(tmp_path / "notes.docx", "")
    with pytest.raises(DataError) as error:
        find_layout(tmp_path)
    assert all(word in str(error.value) for word in (str(tmp_path), "1 .docx", "Annotations", "Pascal VOC", *KINDS))
    with pytest.raises(DataError):
        find_layout(tmp_path / "notes.docx")
    with pytest.raises(ValueError, match="detection"):
        find_layout(tmp_path, "detektion")


def test_another_task_than_asked_for(pictures: Pictures) -> None:
    root = pictures("train/ant/1.png", "val/ant/1.png")
    with pytest.raises(DataError, match="class folders"):
        find_layout(root, "detection")
    assert {task for task, _ in KINDS.values()} == set(TASKS)


def test_classes_are_looked_for_in_data_of_another_task(pictures: Pictures) -> None:
    """train.py names the tool that takes the folder."""
    root = pictures("images/train/1.jpg", "masks/train/1.png", "export/train/1.jpg", "export/valid/1.jpg")
    for split in ("train", "valid"):
        coco(root / "export" / split / "_annotations.coco.json", "1.jpg")
    for folder, tool in ((root, "mmseg"), (root / "export", "mmdet")):
        with pytest.raises(DataError, match=f"{tool}/tools/train.py CONFIG --data-root {folder}"):
            open_dataset(folder, "train")
    with pytest.raises(DataError) as error:
        open_dataset(root / "masks", "train")
    assert "tools" not in str(error.value)


def test_odd_things_in_a_folder(pictures: Pictures) -> None:
    """Pipes, circles, folders named as files, names that are no text, files without end: none stops it or hangs."""
    root = pictures("train/ant/1.png")
    os.mkfifo(root / "pipe.json")
    os.mkfifo(root / "data.yaml")
    (root / "folder.json").mkdir()
    (root / "circle").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone.json").symlink_to(root / "nowhere")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.json")).write_text('{"images": [1], "annotations": [')
    write(root / "new\nline.json", '{"images": [' + '"\\"' * 50_000)
    write(root / "deep.json", '{"images": ' + "[" * 100_000)
    write(root / "deep.yaml", "train: " + "[" * 700)
    write(
        root / "laughs.yaml",
        "a: &a [x]\n" + "".join(f"b{i}: &a [*a, *a]\n" for i in range(60)) + "names: *a\nval: v\n",
    )
    write(root / "numbers.json", '{"images": [{"file_name": 3}, {"file_name": "a\\u0000b"}], "annotations": {}}')
    (root / "binary.json").write_bytes(bytes(range(256)) * 100)
    write(root / "empty.json", "")
    assert find_layout(root, "classification").kind == "class folders"
    find_layout(root)


def test_the_folder_within_an_unpacked_archive_is_named(pictures: Pictures) -> None:
    root = pictures("set/train/1.png")
    coco(root / "set/train/_annotations.coco.json", "1.png")
    with pytest.raises(DataError, match=str(root / "set")):
        find_layout(root, "detection")


def test_what_desktops_leave_is_no_class(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "train/__MACOSX", "train/@eaDir", "val/a", "val/b"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "1.png")
    assert find_layout(tmp_path).classes == ("a", "b")
