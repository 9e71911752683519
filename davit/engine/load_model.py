"""What an evaluation is of: which models were asked for, and each ready with its weights and preprocessing."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.models import is_model_pretrained
from timm.utils.misc import natural_key
from torch import Tensor, nn

from ..checkpoint import Checkpoint, load_checkpoint, read_checkpoint
from ..checkpoint.names import structure_of
from ..data import PictureDataset, check_classes, eval_transform
from ..data.dataset import Transform
from ..pretrained import PretrainedError
from ..registry import create_model
from .labels import Labels, real_labels, subset_labels

log = logging.getLogger(__name__)

_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin", ".safetensors")
_WILDCARDS = "*?["
_PREPROCESSING = ("img_size", "input_size", "crop_pct", "crop_mode", "mean", "std", "interpolation")


@dataclass(frozen=True)
class Entry:
    """One thing to evaluate: a checkpoint, or published weights where `checkpoint` is None.

    `model` None leaves the architecture to the checkpoint.
    """

    model: str | None
    checkpoint: Path | None = None

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.model, self.checkpoint) if part is not None)


@dataclass(frozen=True)
class Subject:
    """A model ready to be evaluated.

    Attributes:
        model: on its device, in eval mode, with test-time pooling where `pooled`, compiled where asked for.
        weights: "EMA" or "plain" of a checkpoint, else "published".
        params: number of parameters.
        config: how pictures are prepared, as timm's `resolve_data_config` says it.
        labels: None for the data set's own.
    """

    name: str
    model: nn.Module
    weights: str
    num_classes: int
    params: int
    config: Mapping[str, Any]
    pooled: bool
    labels: Labels | None


def find_entries(args: argparse.Namespace, named_model: bool) -> tuple[list[Entry], bool]:
    """What is to be evaluated, in natural order, and whether one model was asked for rather than several.

    Raises:
        ValueError: nothing matches, or a checkpoint is given for several models.
    """
    several = _model_names(args.model) if named_model else None
    model = args.model if named_model else None
    if not args.checkpoint:
        return ([Entry(args.model)], True) if several is None else ([Entry(name) for name in several], False)
    if several is not None:
        raise ValueError(
            f"--model {args.model} stands for {len(several)} models and --checkpoint for the weights of one; "
            "name the model, or leave --checkpoint out to evaluate published weights."
        )
    checkpoint = Path(args.checkpoint)
    if not checkpoint.is_dir():
        return [Entry(model, checkpoint)], True
    files = [
        file
        for file in checkpoint.iterdir()
        if file.name.endswith(_SUFFIXES) and not file.name.startswith(".") and file.is_file()
    ]
    if not files:
        raise ValueError(f"the folder {checkpoint} holds no checkpoint ({', '.join(_SUFFIXES)}).")
    return [Entry(model, file) for file in sorted(files, key=lambda file: natural_key(file.name))], False


def _model_names(model: str) -> list[str] | None:
    """The models that a wildcard, 'all' or a file stands for; None for the name of one model."""
    if model == "all" or any(sign in model for sign in _WILDCARDS):
        names = timm.list_models("" if model == "all" else model, pretrained=True)
        if not names:
            raise ValueError(
                f"--model {model!r} matches no model with published weights; for one without, name it and give "
                "its --checkpoint."
            )
        return list(names)
    if not timm.is_model(model) and Path(model).is_file():
        try:
            lines = Path(model).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--model {model}: a text file with a name a line is expected ({error}).") from error
        names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not names:
            raise ValueError(f"--model {model}: the file names no model.")
        return names
    return None


@dataclass(frozen=True)
class Loaded:
    """A model with its weights and its preprocessing, not yet bound to any data.

    Attributes:
        model: on its device, in eval mode.
        checkpoint: what it was loaded from; None for published weights.
        weights: "EMA" or "plain" of a checkpoint, else "published".
        config: how pictures are prepared, as timm's `resolve_data_config` says it.
        window: the window of test-time pooling, None for none.
    """

    name: str
    model: Any
    checkpoint: Checkpoint | None
    weights: str
    config: Mapping[str, Any]
    window: tuple[int, int] | None

    @property
    def classifier(self) -> nn.Module:
        """The model, with test-time pooling where there is a window for it."""
        return self.model if self.window is None else TestTimePool(self.model, self.window)

    @property
    def class_names(self) -> list[str] | None:
        """The names that the checkpoint's training noted, None where it did not."""
        noted = self.checkpoint.metadata.get("class_names") if self.checkpoint is not None else None
        return noted if isinstance(noted, list) and all(isinstance(name, str) for name in noted) else None

    def transform(self) -> Transform:
        """PIL picture -> normalised tensor, as `config` says."""
        names = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        return eval_transform(img_size=self.config["input_size"], **{name: self.config[name] for name in names})


def load_entry(entry: Entry, args: argparse.Namespace, device: torch.device) -> Loaded:
    """The entry's model with its weights; what a checkpoint does not tell, the flags must.

    A checkpoint of a training says which model it is of and how its pictures were prepared; flags override it.

    Raises:
        ValueError: the checkpoint and the model do not fit one another, or the flags do not fit the model.
        PretrainedError: published weights could not be fetched.
    """
    checkpoint = None if entry.checkpoint is None else read_checkpoint(entry.checkpoint, args.ema)
    saved = _saved_args(checkpoint)
    name = entry.model or _name_of(checkpoint, saved) or args.model
    model = _build(name, args, saved, checkpoint)
    weights = "published"
    if checkpoint is not None:
        weights = "EMA" if load_checkpoint(model, checkpoint, head="require").ema else "plain"
    model = model.to(device).eval()
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    config, trained_size = _preprocessing(args, saved, model)
    window = _pooling(args, model, trained_size, config["input_size"][-2:])
    if window is not None and args.crop_pct is None:
        config["crop_pct"] = 1.0  # as the original: the larger picture is all looked at
    return Loaded(name, model, checkpoint, weights, config, window)


def prepare(entry: Entry, args: argparse.Namespace, dataset: PictureDataset, device: torch.device) -> Subject:
    """The entry's model with its weights, checked against the data, whose transform is set.

    Raises:
        ValueError: the checkpoint, the model and the data do not fit one another.
        PretrainedError: published weights could not be fetched.
    """
    loaded = load_entry(entry, args, device)
    check_classes(None, dataset, None if args.valid_labels else loaded.model.num_classes)
    _compare_class_names(loaded.checkpoint, dataset)
    labels = _labels(args, dataset, loaded.model.num_classes)
    dataset.transform = loaded.transform()
    return Subject(
        name=loaded.name,
        model=_optimised(loaded.classifier, args),
        weights=loaded.weights,
        num_classes=loaded.model.num_classes,
        params=sum(parameter.numel() for parameter in loaded.model.parameters()),
        config=loaded.config,
        pooled=loaded.window is not None,
        labels=labels,
    )


def _saved_args(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The flags of the training that wrote a checkpoint, as far as it tells."""
    saved = checkpoint.metadata.get("args") if checkpoint is not None else None
    return saved if isinstance(saved, dict) else {}


def _name_of(checkpoint: Checkpoint | None, saved: Mapping[str, Any]) -> str | None:
    """The model that a checkpoint is of: as its training noted, else the DaViT that has these shapes."""
    if checkpoint is None:
        return None
    for noted in (saved.get("model"), checkpoint.metadata.get("arch")):
        if isinstance(noted, str) and timm.is_model(noted):
            return noted
    found = checkpoint.davit
    variants = structure_of(found, checkpoint.state_dict).variants() if found else []
    if not variants:
        raise ValueError(f"{checkpoint.origin} does not tell which model it is of; pass --model.")
    if len(variants) > 1:
        log.warning(
            "%s has the shapes of %s; taking %s. Pass --model for another.",
            *(checkpoint.origin, " and ".join(variants), variants[0]),
        )
    return variants[0]


def _build(name: str, args: argparse.Namespace, saved: Mapping[str, Any], checkpoint: Checkpoint | None) -> Any:
    """The model, with published weights where there is no checkpoint."""
    if checkpoint is None and timm.is_model(name) and not is_model_pretrained(name):
        raise ValueError(f"no weights of {name} are published; pass the --checkpoint to evaluate.")
    kwargs = {**(saved.get("model_kwargs") or {}), **args.model_kwargs}
    if pool := args.gp or saved.get("gp"):
        kwargs["global_pool"] = pool
    if checkpoint is not None and (num_classes := args.num_classes or _num_classes(checkpoint, saved)):
        kwargs["num_classes"] = num_classes
    try:
        model = create_model(name, pretrained=checkpoint is None, scriptable=args.torchscript, **kwargs)
    except (ValueError, PretrainedError):
        raise
    except TypeError as error:
        if not kwargs:
            raise
        raise ValueError(f"{name} does not take {kwargs} (--model-kwargs, --gp): {error}") from error
    except Exception as error:
        if checkpoint is not None:
            raise
        # the hub's client lets any error of its transport through
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise PretrainedError(f"the published weights of {name} could not be had ({text[:300]})") from error
    if checkpoint is None and args.num_classes not in (None, model.num_classes):
        raise ValueError(
            f"the published weights of {name} know {model.num_classes} classes, not --num-classes "
            f"{args.num_classes}; pass the --checkpoint of a model trained for these."
        )
    return model


def _num_classes(checkpoint: Checkpoint, saved: Mapping[str, Any]) -> int | None:
    """The classes of a checkpoint: as the biases of a linear head tell, else as its training noted."""
    found = checkpoint.davit
    names = {key.param: name for key, name in found.names.items() if key.slot == "head.fc"} if found else {}
    head = {param: checkpoint.state_dict[name] for param, name in names.items()}
    if head.keys() == {"weight", "bias"}:
        return len(head["bias"])
    return saved.get("num_classes") or (len(head["weight"]) if "weight" in head else None)


def _preprocessing(
    args: argparse.Namespace, saved: Mapping[str, Any], model: nn.Module
) -> tuple[dict[str, Any], tuple[int, int]]:
    """How pictures are prepared, and the size (H, W) that the model was trained for."""
    trained = {name: saved[name] for name in _PREPROCESSING if saved.get(name)}
    asked = {name: getattr(args, name) for name in _PREPROCESSING if getattr(args, name)}
    kept = dict(trained)
    if "img_size" in asked or "input_size" in asked:
        kept = {name: value for name, value in trained.items() if name not in ("img_size", "input_size")}
    try:
        # some of timm's models have a size for testing; a training evaluates without it
        before = resolve_data_config(trained, model=model, use_test_size=not saved)
        config = resolve_data_config({**kept, **asked}, model=model, use_test_size=not saved)
    except AssertionError as error:
        values = ", ".join(f"{name} {value}" for name, value in {**trained, **asked}.items())
        raise ValueError(
            f"pictures cannot be prepared with {values}: a size is one number of pixels (--input-size three), a "
            "mean or standard deviation one number or three."
        ) from error
    return dict(config), before["input_size"][-2:]


def _pooling(
    args: argparse.Namespace, model: nn.Module, trained: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int] | None:
    """The window of test-time pooling, or None for none."""
    if args.no_test_pool:
        return None
    try:
        window = pooling_window(model, trained, size)
    except ValueError as error:
        if args.test_time_pool:
            raise
        log.warning("no test-time pooling at %s: %s", size, error)
        return None
    if window is None and args.test_time_pool:
        raise ValueError(
            f"--test-time-pool is for pictures larger both ways than the {trained} that the model was trained "
            f"on, not {size}; pass a larger --img-size."
        )
    return window


def _compare_class_names(checkpoint: Checkpoint | None, dataset: PictureDataset) -> None:
    """Warns where folders are numbered as other classes than the checkpoint was trained on."""
    trained = checkpoint.metadata.get("class_names") if checkpoint is not None else None
    ours = dataset.class_names
    if isinstance(trained, list) and ours and not dataset.mapped and len(trained) == len(ours):
        if different := [(one, other) for one, other in zip(trained, ours, strict=True) if one != other]:
            log.warning(
                "%d of %d classes are called otherwise than in training (%s there, %s here): they are taken for "
                "the same, in this order; --class-map FILE would say which is which",
                *(len(different), len(ours), *different[0]),
            )


def _labels(args: argparse.Namespace, dataset: PictureDataset, num_classes: int) -> Labels | None:
    labels = subset_labels(args.valid_labels, dataset, num_classes) if args.valid_labels else None
    if args.real_labels:
        labels = real_labels(args.real_labels, dataset, labels or Labels())
    return labels


def _optimised(model: nn.Module, args: argparse.Namespace) -> nn.Module:
    if args.torchscript:
        try:
            return torch.jit.script(model)
        except Exception as error:  # TorchScript's compiler has no common type of error
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"--torchscript cannot take this model ({reason}); try --torchcompile.") from error
    if args.torchcompile:
        model.compile(backend=args.torchcompile)
    return model


# ---- test-time pooling ----


class TestTimePool(nn.Module):
    """Applies a classifier's head to every window of the trained size of a larger map.

    As timm's `TestTimePoolHead`: local means over `window` = (rows, columns) at stride 1, the head at each
    place, and of the logits the average of mean and maximum over the places. Unlike it, this also serves
    heads that are more than one linear layer, as DaViT's (norm and linear).
    """

    __test__ = False  # for pytest, which collects by name

    def __init__(self, model: Any, window: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.rows, self.columns = window
        self.num_classes = int(model.num_classes)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        local_BCHW = F.avg_pool2d(self.model.forward_features(image_BCHW), [self.rows, self.columns], stride=1)
        batch, channels = local_BCHW.shape[:2]
        places = local_BCHW.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        logits = self.model.forward_head(places).view(batch, -1, self.num_classes)
        return 0.5 * (logits.mean(1) + logits.amax(1))


def pooling_window(model: Any, trained: tuple[int, int], size: tuple[int, int]) -> tuple[int, int] | None:
    """The window of test-time pooling at pictures of `size` for a model trained at `trained` (both H, W).

    None unless `size` is larger both ways, as in timm: the head then sees no more than in training. The model
    must be in eval mode.

    Raises:
        ValueError: the model gives no map (B, C, H, W) of features to its head.
    """
    if size[0] <= trained[0] or size[1] <= trained[1]:
        return None
    shape: tuple[int, ...] = ()
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        device = next(model.parameters()).device
        with torch.inference_mode():
            shape = tuple(model.forward_features(torch.zeros(1, 3, *trained, device=device)).shape)
    if len(shape) != 4 or shape[1] != model.num_features:
        raise ValueError(
            "test-time pooling needs a model whose head gets a map (batch, channels, rows, columns) of "
            f"features, and {type(model).__name__} hands over {shape or 'none'}"
        )
    return shape[2], shape[3]
