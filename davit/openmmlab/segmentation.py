"""Add to MMSegmentation: masks as people have them, test-time augmentation in little memory, predictions drawn.

Configs name this module in ``custom_imports``, after ``davit.openmmlab``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import DATASETS, HOOKS, MODELS, TRANSFORMS

from ..data import DataError
from ..data.coco import check_annotations
from ..data.masks import IGNORED, Coding, as_trained
from ..data.pairs import Pairs, pair_masks
from .drawn import names_of
from .loading import loader_of
from .predictor import draw_segments
from .regions import Regions, read_regions

log = logging.getLogger(__name__)

_CODING = Coding()


@DATASETS.register_module(force=True)
class MaskFolders(BaseSegDataset):
    """Images in one folder, and for each a mask of the same name in another, or in the same one.

    Names are paired as `davit.data.pairs.pair_masks` says, whatever the suffixes. With ``reduce_zero_label`` the
    values below are those after reducing.

    Args:
        img_suffix, seg_map_suffix: what names of images and masks end with, as ``_leftImg8bit.png``; None for all
            kinds of images.
        ignored_labels: values of the masks that are no class, such as CamVid's 11 for "void", or colours; neither
            trained on nor counted. 255 is such a value unless ``label_map`` has it.
        label_map: value in the masks -> class, such as {255: 1}; other values stay as they are.
        colours: (R, G, B) of each class, where the masks are coloured. Other colours are an error unless ignored.
        palette_is_labels: in palette images the indices are the labels.
        kwargs: those of mmseg's ``BaseSegDataset``: data_root, data_prefix, ann_file, metainfo, reduce_zero_label ...

    Raises:
        DataError: values that are no labels, or colours for another number of classes.
    """

    def __init__(
        self,
        img_suffix: str | None = None,
        seg_map_suffix: str | None = None,
        ignored_labels: Sequence[Any] = (),
        label_map: Mapping[Any, int] | None = None,
        colours: Sequence[Sequence[int]] = (),
        palette_is_labels: bool = False,
        **kwargs: Any,
    ):
        self._mapped = {int(old): int(new) for old, new in (label_map or {}).items()}
        ignored = [ignored_labels] if isinstance(ignored_labels, int) else list(ignored_labels)
        ignored_colours = tuple(_colour(one) for one in ignored if not isinstance(one, int))
        self._mapped |= {one: IGNORED for one in ignored if isinstance(one, int)}
        self.coding = Coding(tuple(map(_colour, colours)), ignored_colours, palette_is_labels)
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
        self._check_values()

    def _check_values(self) -> None:
        classes = self.metainfo.get("classes") or ()
        wrong = [value for value in (*self._mapped, *self._mapped.values()) if not 0 <= value <= IGNORED]
        past = [new for new in self._mapped.values() if classes and len(classes) <= new < IGNORED]
        if wrong or past:
            raise DataError(
                f"label_map={self._mapped}: {(wrong + past)[0]} is no label; masks hold 0 to 255, and the classes are "
                f"0 to {len(classes) - 1}."
            )
        if self.reduce_zero_label and IGNORED in self._mapped:
            raise DataError(
                "label_map of 255 and reduce_zero_label=True contradict one another: with the latter 0 becomes 255. "
                "Set reduce_zero_label=False, and give every value its class."
            )
        if self.coding.colours and classes and len(self.coding.colours) != len(classes):
            raise DataError(
                f"colours has {len(self.coding.colours)} colours for {len(classes)} classes: give each class its own, "
                "in the same order, and list colours that are no class in ignored_labels."
            )

    @cached_property
    def pairs(self) -> Pairs:
        """The images and their masks; without a folder of masks, as a server's test set is, the images alone."""
        folders = [self.data_prefix.get(name) for name in ("img_path", "seg_map_path")]
        pictures = Path(folders[0] or self.data_root or ".")
        masks = Path(folders[1]) if folders[1] is not None and Path(folders[1]).is_dir() else None
        names = None
        if self.ann_file and Path(self.ann_file).is_file():
            lines = Path(self.ann_file).read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
            names = [line.strip() for line in lines if line.strip()]
        return pair_masks(pictures, masks, self.img_suffix, self.seg_map_suffix, names)

    def masks_found(self, infos: Sequence[dict[str, Any]]) -> list[bool]:
        """Tell of which of the listed images there are masks."""
        without = set(map(str, self.pairs.without_mask))
        return [info["img_path"] not in without for info in infos]

    def load_data_list(self) -> list[dict[str, Any]]:
        """List images and masks, sorted by the images' paths, or in the order of ``ann_file``.

        A missing mask is listed where it should be, so that opening it says so.
        """
        pairs = self.pairs
        infos: list[dict[str, Any]] = []
        for picture, mask in zip(pairs.pictures, pairs.masks, strict=True):
            info: dict[str, Any] = {"img_path": str(picture), "seg_fields": []}
            if self.data_prefix.get("seg_map_path") is not None:
                info["seg_map_path"] = str(mask or self._expected_mask(picture))
            info |= {"label_map": self._mapped or None, "reduce_zero_label": self.reduce_zero_label}
            if self.coding != _CODING:
                info["coding"] = self.coding
            infos.append(info)
        return infos if self.ann_file else sorted(infos, key=lambda info: info["img_path"])

    def _expected_mask(self, picture: Path) -> Path:
        inside = picture.relative_to(self.data_prefix.get("img_path") or self.data_root or ".")
        ending = self.img_suffix if self.img_suffix and "." in self.img_suffix else picture.suffix
        before, after = self.pairs.form
        stem = f"{before}{inside.name.removesuffix(ending)}{after}"
        suffix = self.seg_map_suffix if self.seg_map_suffix and "." in self.seg_map_suffix else ".png"
        return Path(self.data_prefix["seg_map_path"]) / inside.with_name(stem + suffix)


def _colour(value: Any) -> tuple[int, int, int]:
    if isinstance(value, str):
        value = [int(value.lstrip("#")[place : place + 2], 16) for place in (0, 2, 4)]
    if not isinstance(value, Sequence) or len(value) != 3 or not all(0 <= int(one) <= 255 for one in value):
        raise DataError(f"{value} is no colour: give three numbers from 0 to 255, as [128,0,0].")
    red, green, blue = map(int, value)
    return red, green, blue


@DATASETS.register_module(force=True)
class CocoRegions(BaseSegDataset):
    """Images whose segments are the polygons and masks of a file in COCO's form, drawn when they are loaded.

    The label of a pixel is the class of the smallest object there; crowds lie below all others. A class that is no
    category of the file ("background") is where no object is; where there is no such class, that is ignored.

    Args:
        kwargs: those of mmseg's ``BaseSegDataset``. ``ann_file`` is the file, ``data_prefix.img_path`` the folder of
            its images, and ``metainfo.classes`` the classes; without these: "background" and all categories.
    """

    def __init__(self, metainfo: Mapping[str, Any] | None = None, **kwargs: Any):
        file = Path(kwargs.get("data_root") or ".") / kwargs.get("ann_file", "")
        classes = (metainfo or {}).get("classes")
        self._file = read_regions(file, tuple(classes) if classes else None)
        super().__init__(metainfo={**(metainfo or {}), "classes": self._file.classes}, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """List images with what is to be drawn of each, sorted by their paths."""
        folder = Path(self.data_prefix.get("img_path") or self.data_root or ".")
        infos = []
        for name, regions in self._file.pictures(folder):
            infos.append(
                {
                    "img_path": str(folder / name),
                    "regions": regions,
                    "label_map": None,
                    "reduce_zero_label": self.reduce_zero_label,
                    "seg_fields": [],
                }
            )
        return sorted(infos, key=lambda info: str(info["img_path"]))

    @staticmethod
    def correct(dataset: Any, labelled: bool = True, data_check: bool = True) -> None:
        """Check the file of a config's data set as for detection, and give the config a corrected copy of it.

        Raises:
            DataError: the file has faults, or its images are missing, damaged or of another size.
        """
        root = Path(dataset.get("data_root") or ".")
        folder = root / (dataset.get("data_prefix") or {}).get("img_path", "")
        found = check_annotations(
            root / dataset["ann_file"],
            folder,
            needs_masks=labelled,
            training=False,
            labelled=labelled,
            data_check=data_check,
        )
        for note in found.notes:
            log.warning("%s: %s", found.origin, note)
        if found.is_changed:
            dataset["ann_file"] = str(found.file().absolute())
            log.info("A corrected copy of %s is used, %s.", found.origin, dataset["ann_file"])


@TRANSFORMS.register_module(name="LoadAnnotations", force=True)
class LoadLabels(LoadAnnotations):
    """Load the labels of an image as mmseg's ``LoadAnnotations`` does, also from coloured masks and from polygons.

    It takes that name, so that every config has it. Of `MaskFolders` and `CocoRegions` it adds ``gt_seg_map``
    (H, W), uint8; data sets of mmseg's own are read by mmseg.
    """

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        regions: Regions | None = results.get("regions")
        coding: Coding | None = results.get("coding")
        if regions is not None:
            labels = regions.draw()
        elif coding is not None:
            labels = coding.read(results["seg_map_path"])
        else:
            super()._load_seg_map(results)
            return
        results["gt_seg_map"] = as_trained(labels, results["reduce_zero_label"], results.get("label_map"))
        results["seg_fields"].append("gt_seg_map")


@MODELS.register_module(force=True)
class AveragedTTA(SegTTAModel):
    """Average the softmax maps of all views as mmseg's ``SegTTAModel`` does, but hold only one view at a time.

    mmseg keeps the maps of all views until the end: for ADE20K's 12 views of 150 classes that is 7 GB for an image
    of a million pixels.
    """

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """Predict a batch in which every value is a list of views.

        Returns:
            A ``SegDataSample`` for each image: the label of each pixel, and as ``seg_logits`` the mean
            probabilities (classes, H, W), both at the image's own size.
        """
        if self.module.out_channels == 1:  # a single class is found by a threshold, without softmax
            return list(super().test_step(data))
        views = len(data["inputs"])
        samples: list[Any] = []
        totals: list[Any] = []
        for view in range(views):
            found = self.module.test_step({name: values[view] for name, values in data.items()})
            maps = [sample.seg_logits.data.softmax(dim=0) for sample in found]
            samples = samples or found
            totals = [total.add_(one) for total, one in zip(totals, maps, strict=True)] if totals else maps
        for sample, total in zip(samples, totals, strict=True):
            sample.set_data(
                {
                    "seg_logits": PixelData(data=total.div_(views)),
                    "pred_sem_seg": PixelData(data=total.argmax(dim=0, keepdim=True)),
                }
            )
        return samples


@HOOKS.register_module(force=True)
class DrawnPredictions(SegVisualizationHook):
    """Write every test image with its predicted segments to ``out_dir``, in every process (mmseg: only the first).

    A file is named as its image is below the data set's folder of images (`distinct_names`), and ends with .png.
    """

    def __init__(self, out_dir: str):
        super().__init__(draw=True)
        self.out_dir = Path(out_dir)

    def before_test(self, runner: Any) -> None:
        """Remember the classes of the test set, and how each of its images is to be called."""
        dataset = runner.test_dataloader.dataset
        self._meta = dataset.metainfo
        root = Path(dataset.data_prefix.get("img_path") or dataset.data_root or ".").absolute()
        self._names = names_of(dataset, root)
        self._loader = loader_of(dataset)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        """Draw the predictions of a batch."""
        for sample in outputs:
            picture = Path(sample.img_path).absolute()
            target = self.out_dir / f"{self._names[picture]}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            image = np.asarray(self._loader.shown(sample.img_path))
            labels = sample.pred_sem_seg.data.squeeze().cpu().numpy()
            draw_segments(image, labels, self._meta["classes"], self._meta["palette"]).save(target)

    def after_test(self, runner: Any) -> None:
        """Say where the drawn images are."""
        runner.logger.info(f"The {len(self._names)} images with their predictions are in {self.out_dir}.")
