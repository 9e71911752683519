"""Measure how long the check of a detection data set takes before a run: headers of images, anew and remembered.

    python benchmarks/data_check.py                 # 5,000 JPEGs and 118,000 links to them, made for the purpose

Headers are read by `davit.data.headers.read_headers`, annotations (10 polygons of 20 points an image) checked by
`davit.data.coco.examine`. The files have just been written, so the disk is not measured.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import RESULTS, table, write_report

from davit.data.coco import examine
from davit.data.headers import read_headers
from davit.parsing import Parser, RawHelp

KINDS = 20  # of pictures that differ; the others are copies
SIZE = (640, 480)


def make_pictures(folder: Path, count: int, many: int) -> tuple[list[Path], list[Path]]:
    """Write JPEGs, every fourth with a turn by EXIF, and a folder of more names for the same files."""
    draws = np.random.default_rng(0)
    contents = []
    for number in range(KINDS):
        pixels = np.kron(draws.integers(0, 255, (48, 64, 3)), np.ones((10, 10, 1)))
        exif = Image.Exif()
        exif[274] = 6 if number % 4 == 0 else 1
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "one.jpg", quality=90, exif=exif)
        contents.append((folder / "one.jpg").read_bytes())
    (folder / "few").mkdir()
    (folder / "many").mkdir()
    files = [folder / "few" / f"{number:06d}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(contents[number % KINDS])
    names = [folder / "many" / f"{number:06d}.jpg" for number in range(many)]
    for number, name in enumerate(names):
        os.link(files[number % count], name)
    return files, names


def seconds(work: Callable[..., object], *arguments: object, **options: object) -> float:
    start = time.perf_counter()
    work(*arguments, **options)
    return time.perf_counter() - start


def annotations(files: list[Path], headers: list) -> dict:
    draws = np.random.default_rng(0)
    images, objects = [], []
    for number, (file, header) in enumerate(zip(files, headers, strict=True), 1):
        images.append({"id": number, "file_name": file.name, "width": header.width, "height": header.height})
        for _ in range(10):
            polygon = draws.uniform(0, 480, 40).tolist()
            box = [min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])]
            box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            other = {"area": 9.0, "iscrowd": 0, "category_id": 1, "segmentation": [polygon]}
            objects.append({"id": len(objects) + 1, "image_id": number, "bbox": box, **other})
    return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--pictures", type=int, default=5000, help="images to write and check")
    parser.add_argument(
        "--many",
        type=int,
        default=118_000,
        help="links to them to check too, by default as many as COCO has training images",
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case, taken in turns")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write the results into")
    args = parser.parse_args(argv)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        few, many = make_pictures(Path(folder), args.pictures, args.many)
        for number in range(args.rounds):
            os.environ["DAVIT_CACHE_DIR"] = f"{folder}/cache{number}"
            for name, files in (("", few), ("all ", many)):
                for state in ("anew", "remembered"):
                    key = f"headers of {name or 'the '}{len(files):,} pictures, {state}"
                    times.setdefault(key, []).append(seconds(read_headers, files))
            contents = annotations(few, read_headers(few))
            key = f"annotations of {len(few):,} pictures with {len(contents['annotations']):,} objects, with headers"
            check = {"needs_masks": True, "filter_cfg": {"filter_empty_gt": True, "min_size": 32}}
            times.setdefault(key, []).append(seconds(examine, contents, Path("a.json"), few[0].parent, **check))
    rows = [[name, f"{min(found):.2f}", f"{sorted(found)[len(found) // 2]:.2f}"] for name, found in times.items()]
    text = table(["check", "best, s", "median, s"], rows)
    report = write_report("data_check", "The check of detection data before a run", [("", text)], times, args.results)
    sys.stdout.write(report.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
