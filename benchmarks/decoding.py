"""Check that every reader gives the same pixels for the same file, and time mmcv's loading transform against ours.

    python benchmarks/decoding.py            # writes benchmarks/results/decoding.md

Files of each kind are written, and read by the loaders of training and evaluation, by the predictor and the drawings
of a classifier, by the page, by the loading transform of MMDetection's and MMSegmentation's pipelines, and by the
predictor of image_demo.py. What reaches the model's transform is compared, value by value.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import RESULTS, table, write_report

import davit
from davit.data import Decoding, EpochSampler, EvalLoader, PictureDataset, TrainLoader, load_rgb
from davit.data.folder import FolderSource
from davit.parsing import Parser, RawHelp

HEIGHT, WIDTH = 24, 36
DRAW = np.random.default_rng(0)
DEEP = DRAW.integers(0, 65536, (HEIGHT, WIDTH, 6), dtype=np.uint16)
EIGHT = (DEEP >> 8).astype(np.uint8)
PLANES = {"planarconfig": "separate"}
TURNED = Image.Exif()
TURNED[0x0112] = 6

Writer = Callable[[Path], None]


def saved(values: np.ndarray, mode: str | None = None, **options: Any) -> Writer:
    image = Image.fromarray(values)
    return lambda file: (image if mode is None else image.convert(mode)).save(file, **options)


def palette(file: Path) -> None:
    Image.fromarray(EIGHT[..., :3]).quantize(16).save(file, transparency=bytes(range(0, 256, 16)))


def deep_png(bands: int) -> Writer:
    import cv2

    def write(file: Path) -> None:
        bgr = DEEP[..., [2, 1, 0, 3][:bands]]
        file.write_bytes(cv2.imencode(".png", np.ascontiguousarray(bgr))[1].tobytes())

    return write


def tiff(values: np.ndarray, **options: Any) -> Writer:
    return lambda file: tifffile.imwrite(file, values, **options)


def animation(**options: Any) -> Writer:
    frames = [Image.fromarray(EIGHT[..., first : first + 3]) for first in (0, 3)]
    return lambda file: frames[0].save(file, save_all=True, append_images=frames[1:], **options)


def heic(file: Path) -> None:
    import pillow_heif

    pillow_heif.from_pillow(Image.fromarray(EIGHT[..., :3])).save(file, format="HEIF", exif=TURNED.tobytes())


def misnamed(file: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(EIGHT[..., :4]).save(stream, "PNG")
    file.write_bytes(stream.getvalue())


RGB = EIGHT[..., :3]
# kind -> (suffix, what writes it); three bands are read
KINDS: dict[str, tuple[str, Writer]] = {
    "JPEG, turned by EXIF": ("jpg", saved(RGB, exif=TURNED)),
    "PNG, turned by EXIF": ("png", saved(RGB, exif=TURNED)),
    "WebP, turned by EXIF": ("webp", saved(RGB, exif=TURNED, lossless=True)),
    "TIFF, turned by EXIF": ("tif", saved(RGB, exif=TURNED)),
    "AVIF, turned by EXIF": ("avif", saved(RGB, exif=TURNED)),
    "HEIC, turned by EXIF": ("heic", heic),
    "PNG, RGBA": ("png", saved(EIGHT[..., :4])),
    "PNG, grey and alpha": ("png", saved(EIGHT[..., :2])),
    "PNG, palette with transparency": ("png", palette),
    "GIF, palette": ("gif", saved(RGB, "P")),
    "JPEG, CMYK": ("jpg", saved(RGB, "CMYK")),
    "PNG, 1 bit": ("png", saved(RGB, "1")),
    "PNG, 16-bit grey": ("png", saved(DEEP[..., 0])),
    "PNG, 16-bit RGB": ("png", deep_png(3)),
    "TIFF, 16-bit RGB in planes": ("tif", tiff(DEEP[..., :3].transpose(2, 0, 1), photometric="rgb", **PLANES)),
    "TIFF, int32": ("tif", tiff(DEEP[..., 0].astype(np.int32))),
    "TIFF, float": ("tif", tiff(DEEP[..., 0] / np.float32(65535))),
    "TIFF, float, 3 bands": ("tif", tiff(DEEP[..., :3] / np.float32(65535), photometric="rgb")),
    "NumPy, 16 bits": ("npy", lambda file: np.save(file, DEEP[..., :3])),
    "GIF, animated": ("gif", animation()),
    "WebP, animated": ("webp", animation(lossless=True)),
    "PNG, named .jpg": ("jpg", misnamed),
}  # fmt: skip

# kind -> (suffix, what writes it, bands)
BANDS: dict[str, tuple[str, Writer, int]] = {
    "JPEG, grey": ("jpg", saved(EIGHT[..., 0]), 1),
    "PNG, 16-bit grey": ("png", saved(DEEP[..., 0]), 1),
    "PNG, grey and alpha": ("png", saved(EIGHT[..., :2]), 2),
    "PNG, RGBA": ("png", saved(EIGHT[..., :4]), 4),
    "PNG, RGBA, turned by EXIF": ("png", saved(EIGHT[..., :4], exif=TURNED), 4),
    "PNG, 16-bit RGBA": ("png", deep_png(4), 4),
    "TIFF, 6 bands": ("tif", tiff(EIGHT, photometric="minisblack", planarconfig="contig"), 6),
    "TIFF, 6 bands, 16 bits": ("tif", tiff(DEEP, photometric="minisblack", planarconfig="contig"), 6),
    "TIFF, 6 pages, float": ("tif", tiff((DEEP / np.float32(65535)).transpose(2, 0, 1), photometric="minisblack"), 6),
    "NumPy (H, W, 6), 16 bits": ("npy", lambda file: np.save(file, DEEP), 6),
    "NumPy (6, H, W)": ("npy", lambda file: np.save(file, EIGHT.transpose(2, 0, 1)), 6),
}

READERS = ("training", "evaluation", "predict.py", "page", "visualize", "mmdet", "mmseg", "image_demo", "doctor")


class Readers:
    """Every reader of pictures of so many bands, by a file's pixels as (H, W, C) in units of 0 to 255.

    The models have random weights and are of the least size: only what they are given counts.
    """

    def __init__(self, folder: Path, decoding: Decoding) -> None:
        self.decoding, self.seen = decoding, np.zeros(0)
        bands = decoding.bands
        size = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
        model = davit.create_model("DaViT_nano", num_classes=2, in_chans=bands, **size)
        args = {"model": "DaViT_nano", "num_classes": 2, "input_size": [bands, 16, 16], "model_kwargs": size}
        args |= {"mean": [0.5] * bands, "std": [0.5] * bands, "bit_depth": decoding.bit_depth}
        contents = {"arch": "DaViT_nano", "state_dict": model.state_dict(), "args": args, "class_names": ["a", "b"]}
        torch.save(contents, folder / f"classifier{bands}.pth.tar")
        self.predictor = davit.load(folder / f"classifier{bands}.pth.tar", device="cpu")
        self.predictor.transform = self._watched(self.predictor.transform)
        self.finder = _segmentor(folder, decoding)
        self.finder.pipeline = self._watched(self.finder.pipeline)

    def _watched(self, transform: Any) -> Any:
        def watch(picture: Any) -> Any:
            pixels = np.asarray(picture["img"] if isinstance(picture, dict) else picture)
            self.seen = _in_our_order(pixels) if isinstance(picture, dict) else pixels
            return transform(picture)

        return watch

    def read(self, name: str, file: Path) -> np.ndarray:
        return getattr(self, f"_{name.removesuffix('.py')}")(file)

    def _dataset(self, file: Path) -> PictureDataset:
        dataset = PictureDataset(FolderSource(file.parents[1]), decoding=self.decoding)
        dataset.transform = lambda picture: torch.from_numpy(np.array(picture))
        return dataset

    def _training(self, file: Path) -> np.ndarray:
        dataset = self._dataset(file)
        loader = TrainLoader(dataset, EpochSampler(len(dataset), batch_size=1, seed=0))
        return next(iter(loader.batches(0))).images[0].numpy()

    def _evaluation(self, file: Path) -> np.ndarray:
        return next(iter(EvalLoader(self._dataset(file), batch_size=1).batches())).images[0].numpy()

    def _predict(self, file: Path) -> np.ndarray:
        list(self.predictor.predict_each([file]))
        return self.seen

    def _page(self, file: Path) -> np.ndarray:
        from davit.app.page import answer_file
        from davit.app.readers import Answer, DrawnReader

        answer = answer_file(DrawnReader("", self.finder), str(file))
        assert isinstance(answer, Answer), answer
        return self.seen

    def _visualize(self, file: Path) -> np.ndarray:
        from davit.visualize.figure import look

        look(self.predictor, file)
        return self.seen

    def _mmdet(self, file: Path) -> np.ndarray:
        return self._pipeline("mmdet", file)

    def _mmseg(self, file: Path) -> np.ndarray:
        return self._pipeline("mmseg", file)

    def _pipeline(self, scope: str, file: Path) -> np.ndarray:
        from mmengine.registry import TRANSFORMS, init_default_scope

        init_default_scope(scope)
        step = {"type": "LoadImageFromFile", "bands": self.decoding.bands, "bit_depth": self.decoding.bit_depth}
        return _in_our_order(TRANSFORMS.build(step)({"img_path": str(file)})["img"])

    def _image_demo(self, file: Path) -> np.ndarray:
        self.finder.predict(file)
        return self.seen

    def _doctor(self, file: Path) -> np.ndarray:
        """Read as davit.doctor does, which looks whether it can be read, in colours."""
        return np.asarray(load_rgb(file))


def _in_our_order(img: np.ndarray) -> np.ndarray:
    """Undo what OpenMMLab's pipelines have otherwise: BGR, and one band without an axis."""
    return img[..., None] if img.ndim == 2 else img[..., ::-1] if img.shape[2] == 3 else img


def _segmentor(folder: Path, decoding: Decoding) -> Any:
    import davit.openmmlab  # noqa: F401
    from davit.openmmlab.config import read_config
    from davit.openmmlab.predictor import Predictor

    cfg = read_config(Path(__file__).resolve().parents[1] / "mmseg" / "configs" / "upernet_davit_nano_digits.py")
    bands = decoding.bands
    cfg.model.backbone.update(in_chans=bands, embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1))
    cfg.model.decode_head.update(in_channels=[8] * 4, channels=8)
    cfg.model.auxiliary_head.update(in_channels=8, channels=8)
    cfg.model.data_preprocessor.update(mean=[127.5] * bands, std=[127.5] * bands)
    cfg.test_dataloader.dataset.pipeline[0].bit_depth = decoding.bit_depth
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope("mmseg")
    file = folder / f"segmentor{bands}.pth"
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, file)
    return Predictor(cfg, file, device="cpu")


def compare(folder: Path, log: Callable[[str], None] = print) -> list[list[str]]:
    """Read each kind with each reader: rows of the kind, the bands, and for each reader "equal" or what differs."""
    readers: dict[int, Readers] = {}
    files = [(kind, suffix, write, 3) for kind, (suffix, write) in KINDS.items()]
    files += [(kind, suffix, write, bands) for kind, (suffix, write, bands) in BANDS.items()]
    rows = []
    for number, (kind, suffix, write, bands) in enumerate(files):
        file = folder / f"{number}" / "a" / f"picture.{suffix}"
        file.parent.mkdir(parents=True)
        try:
            write(file)
        except (ImportError, OSError, KeyError) as error:
            log(f"{kind}: not written here ({error})")
            continue
        if suffix == "heic":  # listed where its package is: the content tells what it is
            file = file.rename(file.with_suffix(".jpg"))
        if bands not in readers:
            readers[bands] = Readers(folder, Decoding(bands))
        row, expected = [kind, str(bands)], None
        for name in READERS:
            if name == "doctor" and bands != 3:
                row.append("")
                continue
            found = readers[bands].read(name, file)
            expected = found if expected is None else expected
            if found.shape != expected.shape:
                row.append(f"{found.shape}, not {expected.shape}")
            else:
                far = float(np.abs(found.astype(float) - expected.astype(float)).max())
                row.append("equal" if far == 0 else f"{far:g}")
        rows.append(row)
    return rows


def time_against_mmcv(rounds: int, count: int = 40) -> dict[str, Any]:
    """Load JPEGs of 640 x 480 by mmcv's transform and by ours in turn: milliseconds a picture, medians of rounds."""
    import davit.openmmlab  # noqa: F401
    from davit.openmmlab.loading import LoadImageFromFile

    (theirs,) = (cls for cls in LoadImageFromFile.__mro__ if cls.__module__ == "mmcv.transforms.loading")
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in range(count):
            total = np.zeros((480, 640, 3))
            for octave in range(1, 9):
                small = Image.fromarray(draw.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8))
                total += np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC), float) / octave
            files.append(f"{folder}/{number}.jpg")
            Image.fromarray((total / total.max() * 255).astype(np.uint8)).save(files[-1], quality=90)
        transforms = {"mmcv": theirs(), "ours": LoadImageFromFile()}
        found: dict[str, Any] = {name: [] for name in transforms}
        for number in range(rounds + 1):
            for name, transform in transforms.items():
                begun = time.process_time()
                for file in files:
                    transform({"img_path": file})
                if number:
                    found[name].append(1000 * (time.process_time() - begun) / count)
        images = [[transform({"img_path": file})["img"] for file in files] for transform in transforms.values()]
    far = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(*images, strict=True))
    ratios = [a / b for a, b in zip(found["mmcv"], found["ours"], strict=True)]
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**medians, "ratios": ratios, "ratio": statistics.median(ratios), "farthest": far, "pictures": count}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each case, taken in turns")
    parser.add_argument("--name", default="decoding", help="the results are written into NAME.json and NAME.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write the results into")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        rows = compare(Path(temporary))
    speed = time_against_mmcv(options.rounds)
    low, high = min(speed["ratios"]), max(speed["ratios"])
    text = (
        f"Loading JPEGs of 640 x 480, {speed['pictures']} pictures in {options.rounds} rounds by turns, time of the "
        f"processor: mmcv's transform (OpenCV) {speed['mmcv']:.2f} ms a picture, ours {speed['ours']:.2f} ms; mmcv's "
        f"time over ours {speed['ratio']:.2f} (of the rounds {low:.2f} to {high:.2f}). The largest difference of a "
        f"value is {speed['farthest']}."
    )
    sections = [("Pixels", table(["kind", "bands", *READERS], rows)), ("Speed", text)]
    data = {"pixels": rows, "speed": speed}
    write_report(options.name, "One picture, one decoding", sections, data, options.results)
    return 0 if all(cell in ("equal", "") for row in rows for cell in row[2:]) else 1


if __name__ == "__main__":
    sys.exit(main())
