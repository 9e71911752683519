"""Pictures in, batches out: image folders and named data sets, exact resume, honest errors."""

from .dataset import PictureDataset, Sample, SeededDataset, check_classes, open_dataset
from .decode import load_rgb
from .device import prefetch, save_images, to_device
from .digits import digits_root, write_digits
from .errors import BadImageError, DataError, LoaderError
from .loader import Batch, EvalLoader, TrainLoader
from .sampler import EpochSampler
from .scenes import scenes_root, write_scenes
from .transforms import eval_transform, train_transform

__all__ = [
    "BadImageError",
    "Batch",
    "DataError",
    "EpochSampler",
    "EvalLoader",
    "LoaderError",
    "PictureDataset",
    "Sample",
    "SeededDataset",
    "TrainLoader",
    "check_classes",
    "digits_root",
    "eval_transform",
    "load_rgb",
    "open_dataset",
    "prefetch",
    "save_images",
    "scenes_root",
    "to_device",
    "train_transform",
    "write_digits",
    "write_scenes",
]
