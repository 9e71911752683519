"""Load batches of images from folders, tables, shards and named data sets, resumable at any step."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .classes import check_classes, check_labels, in_other_order, labels_numbered
    from .dataset import PictureDataset, Sample, SeededDataset, open_dataset
    from .decode import Decoding, load_picture, load_rgb
    from .device import prefetch, save_images, to_device
    from .digits import write_digits
    from .errors import BadImageError, DataError, LoaderError
    from .loader import Batch, EvalLoader, TrainLoader
    from .sampler import EpochSampler, TooFewSamplesError, balanced_weights
    from .scenes import write_scenes
    from .sizes import SizeSchedule, round_to
    from .transforms import eval_transform, train_transform
else:
    from ..text import lazily

    __getattr__ = lazily(
        __name__,
        classes=("check_classes", "check_labels", "in_other_order", "labels_numbered"),
        dataset=("PictureDataset", "Sample", "SeededDataset", "open_dataset"),
        decode=("Decoding", "load_picture", "load_rgb"),
        device=("prefetch", "save_images", "to_device"),
        digits=("write_digits",),
        errors=("BadImageError", "DataError", "LoaderError"),
        loader=("Batch", "EvalLoader", "TrainLoader"),
        sampler=("EpochSampler", "TooFewSamplesError", "balanced_weights"),
        scenes=("write_scenes",),
        sizes=("SizeSchedule", "round_to"),
        transforms=("eval_transform", "train_transform"),
    )

__all__ = [
    "BadImageError",
    "Batch",
    "DataError",
    "Decoding",
    "EpochSampler",
    "EvalLoader",
    "LoaderError",
    "PictureDataset",
    "Sample",
    "SeededDataset",
    "SizeSchedule",
    "TooFewSamplesError",
    "TrainLoader",
    "balanced_weights",
    "check_classes",
    "check_labels",
    "eval_transform",
    "in_other_order",
    "labels_numbered",
    "load_picture",
    "load_rgb",
    "open_dataset",
    "prefetch",
    "round_to",
    "save_images",
    "to_device",
    "train_transform",
    "write_digits",
    "write_scenes",
]
