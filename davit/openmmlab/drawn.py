"""Write what is predicted of test images under names that no two images share, for `--show-dir` and `--out`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..predict.pictures import distinct_names
from .loading import LoadImageFromFile, loader_of
from .predictor import Detections


def names_of(dataset: Any, root: Path | None = None) -> dict[Path, str]:
    """Name what is written of each image of a data set, as `distinct_names` does; keys are absolute paths."""
    paths = (dataset.get_data_info(index)["img_path"] for index in range(len(dataset)))
    return distinct_names((Path(path).absolute() for path in paths), root)


@HOOKS.register_module(force=True)
class DrawnDetections(Hook):
    """Write every test image with the objects found in it to ``out_dir``, as PNG, in every process.

    Args:
        score_thr: objects of a lower score are left out.
    """

    def __init__(self, out_dir: str, score_thr: float = 0.3):
        self._out = Path(out_dir)
        self._least = score_thr
        self._names: dict[Path, str] = {}
        self._classes: tuple[str, ...] = ()
        self._loader = LoadImageFromFile()

    def before_test(self, runner: Any) -> None:
        """Name the images and the classes of the test set."""
        dataset = runner.test_dataloader.dataset
        self._names = names_of(dataset)
        self._classes = tuple(dataset.metainfo["classes"])
        self._loader = loader_of(dataset)
        self._out.mkdir(parents=True, exist_ok=True)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        """Draw the predictions of a batch."""
        for sample in outputs:
            picture = np.asarray(self._loader.shown(sample.img_path))
            found = Detections.of(picture, sample.pred_instances, self._least, self._classes)
            found.draw().save(self._out / f"{self._names[Path(sample.img_path).absolute()]}.png")

    def after_test(self, runner: Any) -> None:
        """Say where the drawn images are."""
        runner.logger.info(f"The {len(self._names)} images with their predictions are in {self._out}.")


@HOOKS.register_module(force=True)
class DistinctMaskNames(Hook):
    """Have mmseg's metrics write each mask under a name of its own; they take the image's alone, without folder."""

    def before_test(self, runner: Any) -> None:
        """Tell the metrics the names."""
        names: dict[Path, str] | None = None
        for metric in runner.test_evaluator.metrics:
            if getattr(metric, "output_dir", None):
                names = names_of(runner.test_dataloader.dataset) if names is None else names
                metric.process = partial(_process, metric.process, names)


def _process(
    process: Callable[[Any, Any], None],
    names: dict[Path, str],
    data_batch: Any,
    data_samples: Sequence[dict[str, Any]],
) -> None:
    def renamed(sample: dict[str, Any]) -> dict[str, Any]:
        name = names.get(Path(sample["img_path"]).absolute())
        return sample if name is None else {**sample, "img_path": f"{name}.png"}

    process(data_batch, list(map(renamed, data_samples)))
