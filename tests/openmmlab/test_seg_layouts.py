"""Folders as labelling tools and data sets lay them out: --data-root finds images, labels and classes by itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image, ImageDraw

from davit.data import DataError
from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from davit.openmmlab.config import datasets_of, load_config, set_classes
from davit.openmmlab.datasets import check_dataset
from davit.openmmlab.mask_layouts import use_mask_layout
from tests.openmmlab.conftest import SEGMENTOR, SIZE, Go, config, save

COLOURS = np.array([[0, 0, 0], [200, 30, 30], [30, 200, 30]])
SPLITS = {"train": ("train", "training", 4), "val": ("valid", "validation", 2)}
NAMES = ("square", "triangle")  # labels 1 and 2


def shapes(number: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """(label, corners) of a scene, which do not touch."""
    draws = np.random.default_rng(number)
    x, y = (int(draws.integers(2, 10)) for _ in range(2))
    return [
        (1, [(x, y), (x + 14, y), (x + 14, y + 14), (x, y + 14)]),
        (2, [(x + 30, y + 24), (x + 38, y + 6), (x + 46, y + 24)]),
    ]


def labels_of(number: int) -> Any:
    from davit.openmmlab.regions import Regions

    objects = tuple((label, False, ([float(c) for p in corners for c in p],)) for label, corners in shapes(number))
    return Regions(SIZE[1], SIZE[0], objects, 0).draw()


def write(kind: str, root: Path) -> Path:
    """Write the same scenes in a layout."""
    first = 0
    for split, (short, long, count) in SPLITS.items():
        images, annotations = [], []
        for number in range(first, first + count):
            labels = labels_of(number)
            name, pixels = f"p{number}", COLOURS[labels] / 2 + 60
            match kind:
                case "split above":
                    save(pixels, root / short / "images" / f"{name}.png")
                    save(labels, root / short / "labels" / f"{name}_mask.png")
                case "beside":
                    save(pixels, root / split / f"{name}.png")
                    save(labels, root / f"{split}annot" / f"{name}.png")
                case "ADE20K":
                    save(pixels, root / "images" / long / f"{name}.png")
                    save(labels, root / "annotations" / long / f"{name}.png")
                case "together":
                    save(pixels, root / short / f"{name}.png")
                    save(labels, root / short / f"{name}_mask.png")
                    (root / short / "_classes.csv").write_text(
                        "Pixel Value, Class\n0, background\n1, square\n2, triangle\n"
                    )
                case "colours":
                    save(pixels, root / "images" / split / f"{name}.png")
                    save(COLOURS[labels], root / "masks" / split / f"{name}.png")
                    rows = [
                        f"{name},{','.join(map(str, one))}" for name, one in zip(("bg", *NAMES), COLOURS, strict=True)
                    ]
                    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows]))
                case "VOC":
                    save(pixels, root / "JPEGImages" / f"{name}.png")
                    palette = Image.fromarray(labels, "P")
                    palette.putpalette(COLOURS.ravel().tolist())
                    (root / "SegmentationClass").mkdir(exist_ok=True)
                    palette.save(root / "SegmentationClass" / f"{name}.png")
                    lists = root / "ImageSets/Segmentation"
                    lists.mkdir(parents=True, exist_ok=True)
                    with (lists / f"{split}.txt").open("a") as stream:
                        stream.write(f"{name}\n")
                case "YOLO":
                    save(pixels, root / "images" / split / f"{name}.png")
                    lines = [
                        f"{label - 1} " + " ".join(f"{x / SIZE[0]} {y / SIZE[1]}" for x, y in corners)
                        for label, corners in shapes(number)
                    ]
                    (root / "labels" / split).mkdir(parents=True, exist_ok=True)
                    (root / "labels" / split / f"{name}.txt").write_text("\n".join(lines))
                    (root / "data.yaml").write_text(
                        "path: .\ntrain: images/train\nval: images/val\nnames: [square, triangle]\n"
                    )
                case _:
                    save(pixels, root / f"{split}2017" / f"{name}.png")
                    images.append({"id": number, "file_name": f"{name}.png", "width": SIZE[0], "height": SIZE[1]})
                    annotations += [_annotation(number, label, corners) for label, corners in shapes(number)]
        if images:
            categories = [
                {"id": 5 * label, "name": NAMES[label - 1]} for label in ((1, 2) if split == "train" else (2, 1))
            ]
            for index, one in enumerate(annotations):
                one["id"] = index + 1
            (root / "annotations").mkdir(exist_ok=True)
            contents = {"images": images, "annotations": annotations, "categories": categories}
            (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(contents))
        first += count
    return root


def _annotation(image: int, label: int, corners: list[tuple[int, int]]) -> dict[str, Any]:
    x, y = (sorted(values) for values in zip(*corners, strict=True))
    box = [x[0], y[0], x[-1] - x[0], y[-1] - y[0]]
    polygon = [float(value) for corner in corners for value in corner]
    common = {"image_id": image, "category_id": 5 * label, "iscrowd": 0, "bbox": box, "area": box[2] * box[3]}
    return {**common, "segmentation": [polygon]}


def found_by(segmentor: Path, root: Path, classes: list[str] | None = None) -> tuple[Any, dict[str, list[Any]]]:
    """Read a folder as train.py does: the config, and each split's labels (N, H, W) as training sees them."""
    from argparse import Namespace

    init_default_scope("mmseg")
    from mmseg.registry import DATASETS

    import davit.openmmlab.segmentation  # noqa: F401

    cfg = load_config(Namespace(config=segmentor, cfg_options={}, data_root=str(root), classes=classes))
    if classes:
        set_classes(cfg, tuple(classes))
    read = {}
    for split in ("train", "val"):
        (dataset,) = datasets_of(cfg[f"{split}_dataloader"])
        check_dataset(dataset, split, cfg.model)
        read[split] = [item["data_samples"].gt_sem_seg.data[0].numpy() for item in DATASETS.build(dataset)]
    return cfg, read


@pytest.fixture
def segmentor(tmp_path: Path) -> Path:
    """The tiny segmentor's config names .png and its classes; here data sets say neither."""
    file = tmp_path / "tiny.py"
    bare = "dict(img_suffix=None, metainfo=dict(_delete_=True))"
    file.write_text(
        f"_base_ = {str(SEGMENTOR)!r}\ntrain_dataloader = dict(dataset={bare})\n"
        f"val_dataloader = dict(dataset={bare})\ntest_dataloader = val_dataloader\n"
    )
    return file


LAYOUTS = {
    **dict.fromkeys(("split above", "beside", "ADE20K", "VOC"), False),  # whether files name the classes
    **dict.fromkeys(("together", "colours", "YOLO", "COCO"), True),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_layout_gives_the_same_labels(segmentor: Path, tmp_path: Path, kind: str) -> None:
    root = write(kind, tmp_path / "set")
    cfg, read = found_by(segmentor, root, None if LAYOUTS[kind] else ["bg", *NAMES])
    first = 0
    for split, (*_, count) in SPLITS.items():
        expected = [labels_of(number) for number in range(first, first + count)]
        assert len(read[split]) == count
        assert all(np.array_equal(one, other) for one, other in zip(read[split], expected, strict=True))
        first += count
    (dataset,) = datasets_of(cfg.test_dataloader)
    assert tuple(dataset.metainfo.classes[1:]) == NAMES
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 3


@pytest.mark.long
def test_polygons_and_masks_train_to_the_same_losses(go: Go, segmentor: Path, tmp_path: Path) -> None:
    """By YOLO's files, COCO's and masks; categories of COCO's two files are in different orders."""
    losses = {}
    for kind in ("YOLO", "COCO", "beside"):
        root = write(kind, tmp_path / kind)
        classes = [] if LAYOUTS[kind] else ["--classes", "background", *NAMES]
        words = ["--data-root", root, "--work-dir", kind, "--seed", "1", *classes]
        go(train, segmentor, *words, "--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2")
        (file,) = Path(kind).glob("*/vis_data/scalars.json")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        losses[kind] = [(row.get("loss"), row.get("mIoU")) for row in rows]
    assert losses["YOLO"] == losses["COCO"] == losses["beside"]
    assert losses["YOLO"][0][0] > 0
    words = [segmentor, "COCO/iter_2.pth", "--data-root", tmp_path / "COCO", "--work-dir", "test", "--out", "out"]
    go(evaluate, *words, "--show-dir", "shown")
    assert {file.name for file in Path("out").iterdir()} == {"p4.png", "p5.png"}


def test_a_layout_of_the_config_stays(segmentor: Path, tmp_path: Path) -> None:
    """So does one that options name."""
    init_default_scope("mmseg")
    root = write("beside", tmp_path / "set")
    parts = {split: [*datasets_of(config(segmentor)[f"{split}_dataloader"])] for split in ("train", "val", "test")}
    before = json.dumps(parts, default=str)
    assert use_mask_layout(parts, root, ["train_dataloader.dataset.data_prefix.img_path"]) == ()
    assert json.dumps(parts, default=str) == before
    shutil.move(root / "train", root / "images/train")
    shutil.move(root / "val", root / "images/val")
    assert use_mask_layout(parts, root) == ()  # images alone
    for split in ("train", "val"):
        shutil.move(root / f"{split}annot", root / "masks" / split)
    assert use_mask_layout(parts, root) == ()
    assert json.dumps(parts, default=str) == before
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert use_mask_layout(parts, root) == ("a", "b", "c")
    assert use_mask_layout(parts, root, named=True) == ()


@pytest.mark.parametrize("kind", ["beside", "COCO"])
def test_a_test_split_stands_for_validation(segmentor: Path, tmp_path: Path, kind: str) -> None:
    """Where there are both, each of the configs' splits reads its own."""
    root = write(kind, tmp_path / "set")
    for file in [*root.glob("val*"), *root.glob("annotations/*val*")]:
        shutil.copytree(file, root / "kept" / file.name) if file.is_dir() else shutil.copy(file, tmp_path)
        shutil.move(file, file.with_name(file.name.replace("val", "test")))
    cfg, read = found_by(segmentor, root, ["bg", *NAMES])
    assert len(read["val"]) == 2
    for file in (root / "kept").iterdir():
        shutil.move(file, root)
    if kind == "COCO":
        shutil.move(tmp_path / "instances_val2017.json", root / "annotations")
    cfg, read = found_by(segmentor, root, ["bg", *NAMES])
    parts = {name: next(datasets_of(cfg[f"{name}_dataloader"])) for name in ("val", "test")}
    assert all(name in Path(part.data_prefix.img_path).name for name, part in parts.items())


def test_folders_without_labels_are_named(segmentor: Path, tmp_path: Path) -> None:
    root = write("COCO", tmp_path / "set")
    file = root / "annotations/instances_train2017.json"
    contents = json.loads(file.read_text())
    for one in contents["annotations"]:
        one["segmentation"] = []
    file.write_text(json.dumps(contents))
    with pytest.raises(DataError, match="instances_train2017"):
        found_by(segmentor, root)
    with pytest.raises(DataError, match="nowhere"):
        found_by(segmentor, tmp_path / "nowhere")


def test_objects_are_drawn_from_the_largest_to_the_smallest() -> None:
    """Crowds lie below all; what no object covers is the ground."""
    from davit.openmmlab.regions import Regions

    def square(first: int, last: int) -> tuple[list[float], ...]:
        return ([first, first, last, first, last, last, first, last],)

    small, large = (1, False, square(4, 8)), (2, False, square(2, 12))
    canvas = ImageDraw.Image.new("L", (16, 16))
    for label, (first, last) in ((2, (2, 11)), (1, (4, 7))):
        ImageDraw.Draw(canvas).rectangle((first, first, last, last), fill=label)
    for objects in ((small, large), (large, small)):
        assert np.array_equal(Regions(16, 16, objects, 0).draw(), np.asarray(canvas))
    counts = {"size": [16, 16], "counts": [0, 256]}
    crowd = Regions(16, 16, (small, (3, True, counts)), 255).draw()
    assert np.array_equal(np.unique(crowd), [1, 3]) and crowd[5, 5] == 1
    assert np.array_equal(np.unique(Regions(4, 4, (), 255).draw()), [255])


def test_run_lengths_are_drawn_as_the_masks_that_belong_to_them(few_scenes: Path) -> None:
    """Compressed and as lists; of scenes whose objects hide parts of one another."""
    from pycocotools import mask as coco_mask

    from davit.openmmlab.regions import Regions, read_regions

    regions = [*read_regions(few_scenes / "annotations/instances_val2017.json").pictures(few_scenes / "val2017")]
    assert len(regions) == 4
    for name, one in regions:
        expected = np.asarray(Image.open(few_scenes / "masks/val2017" / name))
        assert np.array_equal(one.draw(), expected)
        packed = [(label, coco_mask.frPyObjects(shape, one.height, one.width)) for label, _, shape in one.objects]
        for counts in (bytes, bytes.decode):
            objects = tuple((label, False, {**shape, "counts": counts(shape["counts"])}) for label, shape in packed)
            assert objects and np.array_equal(Regions(one.height, one.width, objects, 0).draw(), expected)


def test_categories_become_classes_by_name(tmp_path: Path) -> None:
    from davit.openmmlab.regions import classes_of_regions, read_regions

    root = write("COCO", tmp_path / "set")
    file = root / "annotations/instances_val2017.json"
    assert classes_of_regions(file) == ("background", "triangle", "square")
    (name, regions), *_ = read_regions(file, ("square", "triangle")).pictures(root / "val2017")
    assert name == "p4.png" and regions.ground == 255
    expected = labels_of(4)
    assert np.array_equal(regions.draw(), np.where(expected == 0, 255, expected - 1))
    with pytest.raises(DataError, match="squares"):
        read_regions(file, ("background", "squares", "triangle"))
    with pytest.raises(DataError, match="one"):
        read_regions(file, ("one", "two", "triangle"))
    assert read_regions(file, ("background", "elephant", "triangle")).classes[1] == "elephant"
