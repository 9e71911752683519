"""Load a model with its weights, and say how images are prepared for it.

A checkpoint of a training says most of it; `ModelOptions`, which command lines and `davit.load` fill, says the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.models import is_model_pretrained
from torch import Tensor, nn

from ..checkpoint import Checkpoint, load_checkpoint
from ..checkpoint.names import structure_of
from ..choices import MULTILABEL, TASKS
from ..data import Decoding, eval_transform
from ..data.dataset import Transform
from ..limits import MOST_NOTED, NUMBERS, check_model_kwargs, check_numbers, short
from ..pretrained import DESCRIPTIONS_ENTRY, PretrainedError, check_architecture, read_resolved, resolve
from ..registry import create_model
from ..runtimes import ExportedModel, is_exported, open_exported
from ..variants import VARIANTS
from .calibration import file_beside, temperature_for
from .distributed import is_out_of_memory
from .exported import as_bytes, network_of, require_applicable, say_device
from .precision import precision_from
from .thresholds import file_beside as thresholds_beside
from .thresholds import thresholds_for

log = logging.getLogger(__name__)

_SIZE = ("img_size", "input_size")
_CROP = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
_SMALL_MODEL = 10_000_000  # parameters that may always be made
_UNKNOWN_BAND = 0.5  # mean and std of bands of which nothing is known: 0..1 becomes -1..1


def why_no_backend(name: str) -> str | None:
    """Say that torch.compile has no such backend, and which it has; None if it has it."""
    if name in torch.compiler.list_backends(exclude_tags=()):
        return None
    return f"is unknown; choose from {', '.join(torch.compiler.list_backends())}"


@dataclass(frozen=True)
class ModelOptions:
    """Say how a model is built, loaded and run, and how images are prepared for it.

    An option that is None, empty or False is left to the checkpoint, or else to the model.

    Attributes:
        ema: which weights of a training's checkpoint: the averaged ones where there are any ("auto"), "always", or
            "never".
        gp: global pooling: avg, max, avgmax.
        model_kwargs: for the constructor. A DaViT is accelerated unless they hold ``accelerate=False``.
        img_size: side of the images in pixels.
        input_size: (bands, height, width), instead of `img_size`.
        in_chans: bands of the images; 3 are red, green and blue.
        bit_depth, percentiles: what becomes of values stored with more than 8 bits, as in `davit.data.Decoding`.
        crop_pct: share of the side that the centre crop keeps.
        crop_mode: center, squash or border.
        mean, std: of each band.
        interpolation: how images are resampled.
        test_time_pool: insist on `TestTimePool`, by default done for images larger than those of the training.
        no_test_pool: pool larger maps as a whole, as in training.
        torchscript: compile by torch.jit.script.
        torchcompile: compile by torch.compile, with this backend.
        temperature: what logits are divided by before they become probabilities; None takes that which
            validate.py --fit-temperature left beside the checkpoint, if any.
        model_dtype: float32, bfloat16 or float16, of the weights and of the images that the model gets.
        task: "multilabel" for a probability of each class by itself.
        threshold: from which probability on a class of several is named; None takes those that validate.py
            --fit-threshold left beside the checkpoint, else 0.5.
        amp: mixed precision, in `amp_dtype` where it is given; `native_amp` and `apex_amp` are its older names.
    """

    ema: str = "auto"
    num_classes: int | None = None
    gp: str | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    img_size: int | None = None
    input_size: Sequence[int] | None = None
    in_chans: int | None = None
    bit_depth: int | None = None
    percentiles: Sequence[float] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: str = ""
    test_time_pool: bool = False
    no_test_pool: bool = False
    channels_last: bool = False
    torchscript: bool = False
    torchcompile: str | None = None
    temperature: float | None = None
    task: str | None = None
    threshold: float | None = None
    amp: bool = False
    native_amp: bool = False
    apex_amp: bool = False
    amp_dtype: str | None = None
    model_dtype: str | None = None

    def __post_init__(self) -> None:
        check_numbers(vars(self))
        if self.task not in (None, *TASKS):
            raise ValueError(f"`task={self.task}` is unknown; take one of {', '.join(TASKS)}.")
        check_model_kwargs(self.model_kwargs)
        Decoding.asked_for(bands_asked_for(vars(self)) or 3, vars(self))
        for one, other in (("test_time_pool", "no_test_pool"), ("torchscript", "torchcompile")):
            if getattr(self, one) and getattr(self, other):
                both = f"`{one}={getattr(self, one)}` and `{other}={getattr(self, other)}`"
                raise ValueError(f"{both} exclude each other; give one of them.")
        if self.torchcompile and (reason := why_no_backend(self.torchcompile)) is not None:
            raise ValueError(f"`torchcompile={self.torchcompile}` {reason}.")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ModelOptions:
        """Take the options among `values`, which may hold other things too."""
        return cls(**{option.name: values[option.name] for option in fields(cls) if option.name in values})


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, and how images are prepared for it.

    Attributes:
        model: on its device, in eval mode.
        classifier: the model as it is run: with test-time pooling where `is_pooled`, compiled where asked for.
        checkpoint: what it was loaded from; None for published weights and exports.
        weights: "EMA" or "plain" of a checkpoint, else "published"; for an export those that it was made of.
        config: how images are prepared, as timm's `resolve_data_config` says it.
        decoding: how files are decoded for it.
        kwargs: what the model was built with beside its name.
        temperature: what logits are divided by before they become probabilities.
        file: of the checkpoint; None for published weights.
        thresholds: (K,) from which probability on each of several classes is named; None for one class per image.
        program: what computes `model`, where that is an exported one.
    """

    name: str
    model: Any
    classifier: nn.Module
    checkpoint: Checkpoint | None
    weights: str
    config: Mapping[str, Any]
    decoding: Decoding
    is_pooled: bool
    kwargs: Mapping[str, Any]
    temperature: float
    file: Path | None
    thresholds: Tensor | None = None
    program: ExportedModel | None = None

    @property
    def is_multilabel(self) -> bool:
        """Whether each class has a probability by itself."""
        return self.thresholds is not None

    @property
    def parameter_count(self) -> int:
        """The number of parameters; of an export, of the model that it was made of (0 where it does not say)."""
        if self.program is not None:
            return int(self.program.metadata.extra.get("parameters") or 0)
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def class_names(self) -> list[str] | None:
        """The names that the checkpoint's training, or its config.json, noted; None where they did not."""
        if self.program is not None:
            labels = self.program.metadata.extra.get("labels")
            return list(map(str, labels)) if isinstance(labels, list) else None
        return None if self.checkpoint is None else self.checkpoint.class_names

    @property
    def described_names(self) -> list[str] | None:
        """The names for people to read: with the descriptions that a config.json has of them."""
        if self.program is not None:
            exported = self.program.metadata.class_names
            return None if exported is None else list(exported)
        noted = self.checkpoint.metadata.get(DESCRIPTIONS_ENTRY) if self.checkpoint is not None else None
        names, described = self.class_names, noted if isinstance(noted, dict) else {}
        return names and [
            f"{described[name]} ({name})" if described.get(name, name) != name else name for name in names
        ]

    def transform(self) -> Transform:
        """Build the transform that `config` describes: decoded image -> normalised tensor.

        An export that normalises images itself gets them as uint8.
        """
        transform = eval_transform(img_size=self.config["input_size"], **{name: self.config[name] for name in _CROP})
        is_raw = self.program is not None and self.program.metadata.preprocess == "uint8"
        return as_bytes(transform) if is_raw else transform


def load_model(
    name: str | None,
    file: str | Path | ExportedModel | None,
    options: ModelOptions,
    device: torch.device,
    *,
    needs_head: bool = True,
    takes_exported: bool = False,
) -> LoadedModel:
    """Build a model and load its weights.

    Args:
        name: None leaves the model to the checkpoint: its training noted it, or the shapes of its weights tell.
        file: the checkpoint, as a file, a folder or a repository of the hub (`davit.pretrained.resolve`), or an
            exported model that is open; None for published weights of the model called `name`.
        needs_head: the classes are asked for; else a checkpoint without a classifier gives a model without one.
        takes_exported: the outputs are all that is asked for, so that an exported model serves too.

    Raises:
        ValueError: the checkpoint, the model and the options do not fit one another.
        PretrainedError: weights of the hub could not be fetched.
    """
    if isinstance(file, ExportedModel) or (file is not None and is_exported(file)):
        if not takes_exported:
            raise ValueError(
                f"{file} is an exported model, whose weights and layers cannot be reached: give the checkpoint that "
                "it was made of."
            )
        program = file if isinstance(file, ExportedModel) else open_exported(file)
        return _load_exported(program, name, options, device, needs_head)
    found = None if file is None else resolve(file)
    checkpoint = None if found is None else read_resolved(found, options.ema)
    trained = {} if checkpoint is None else _noted(checkpoint, options)
    if name is None and checkpoint is not None:
        name = _name_of(checkpoint, trained)
    if name is None:
        raise ValueError("give `checkpoint=FILE`, or `model=NAME` for the published weights of a model.")
    bands = _bands(options, trained, checkpoint)
    kwargs = _arguments(name, options, trained, checkpoint, bands, needs_head)
    model = _build(name, kwargs, options, checkpoint)
    weights = "published"
    if checkpoint is not None:
        weights = "EMA" if load_checkpoint(model, checkpoint, head="require").ema else "plain"
    model = model.to(device, precision_from(options, device).weights).eval()
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    config, trained_size = _preprocessing(options, trained, model, bands)
    window = None
    if not options.no_test_pool:
        window = _pooling_window(options.test_time_pool, model, trained_size, config["input_size"][-2:], bands)
    if window is not None and options.crop_pct is None:
        config["crop_pct"] = 1.0  # as the original: the whole of the larger image
    classifier = model if window is None else TestTimePool(model, window)
    if options.torchcompile:
        classifier.compile(backend=options.torchcompile)
    if options.torchscript:
        classifier = _scripted(classifier)
    decoding = Decoding.asked_for(bands, vars(options), trained)
    location = found.file if found is not None else None
    is_multilabel = (options.task or trained.get("task")) == MULTILABEL
    _require_for_task(options, is_multilabel)
    temperature = 1.0 if is_multilabel else temperature_for(options.temperature, location, model)
    loaded = LoadedModel(
        name=name,
        model=model,
        classifier=classifier,
        checkpoint=checkpoint,
        weights=weights,
        config=config,
        decoding=decoding,
        is_pooled=window is not None,
        kwargs=kwargs,
        temperature=temperature,
        file=location,
    )
    if not is_multilabel:
        return loaded
    return replace(loaded, thresholds=thresholds_for(options.threshold, location, model, loaded.class_names))


class OtherTaskError(ValueError):
    """Options that do not go with the task of a model; they would not with any other one of it."""


def _require_for_task(options: ModelOptions, is_multilabel: bool) -> None:
    """Raise `OtherTaskError` for options that are for the other task."""
    if options.threshold is not None and not is_multilabel:
        raise OtherTaskError(
            f"`threshold={options.threshold:g}` is for images with several labels, and this model tells one class: "
            f"leave it out, or give `task={MULTILABEL}`."
        )
    if is_multilabel and options.temperature not in (None, 1):
        raise OtherTaskError(
            f"`temperature={options.temperature:g}` is for one class per image; of several labels `threshold=...` "
            "says from which probability on they count."
        )


def _load_exported(
    program: ExportedModel, name: str | None, options: ModelOptions, device: torch.device, needs_head: bool
) -> LoadedModel:
    """Put an exported model in the place of one of PyTorch (errors as in `load_model`)."""
    path, model = program.path, network_of(program, needs_head=needs_head)
    require_applicable(path, options, name, program)
    say_device(path, device)
    metadata = program.metadata
    asked_bands = bands_asked_for(vars(options))
    if asked_bands not in (None, metadata.bands):
        said = next(iter(_bands_said(vars(options))))
        raise ValueError(f"{path} takes images of {metadata.bands} bands: {said} cannot be applied to it.")
    config = {"input_size": metadata.input_size, **{one: getattr(metadata, one) for one in _CROP}}
    config.update({one: value for one in _CROP if (value := getattr(options, one))})
    for one in ("mean", "std"):
        values = tuple(config[one])
        config[one] = values * metadata.bands if len(values) == 1 else values
    size = tuple(options.input_size[1:]) if options.input_size else (options.img_size,) * 2 if options.img_size else ()
    if size:
        _require_size(program, size)
        config["input_size"] = (metadata.bands, *size)
    noted = metadata.extra.get("thresholds")
    is_multilabel = isinstance(noted, list) and len(noted) == model.num_classes > 0
    if options.task is not None and (options.task == MULTILABEL) != is_multilabel:
        what = "several labels" if is_multilabel else "one class"
        raise ValueError(
            f"{path} was exported from a model that tells {what} an image: leave `task={options.task}` out."
        )
    _require_for_task(options, is_multilabel)
    temperature = 1.0 if is_multilabel else options.temperature
    if temperature is None and not file_beside(path).is_file():
        temperature = metadata.temperature
    weights = str(metadata.extra.get("weights") or "exported")
    loaded = LoadedModel(
        name=metadata.model,
        model=model.to(device).eval(),
        classifier=model,
        checkpoint=None,
        weights=weights,
        config=config,
        decoding=Decoding.asked_for(metadata.bands, vars(options), metadata.decoding),
        is_pooled=False,
        kwargs={},
        temperature=temperature_for(temperature, path, model),
        file=path,
        program=program,
    )
    if not is_multilabel:
        return loaded
    if options.threshold is None and not thresholds_beside(path).is_file():
        return replace(loaded, thresholds=torch.tensor(noted, dtype=torch.float32))
    return replace(loaded, thresholds=thresholds_for(options.threshold, path, model, loaded.class_names))


def _require_size(program: ExportedModel, size: Sequence[int]) -> None:
    for axis, side in zip(("height", "width"), size, strict=True):
        least, most = program.metadata.axes.get(axis, (1, None))
        if side < least or (most is not None and side > most):
            raise ValueError(
                f"{program.path} takes {program.describe_axes()}, and the {axis} would be {side}: leave "
                "`img_size` out, or export the checkpoint for that size."
            )


def _noted(checkpoint: Checkpoint, options: ModelOptions) -> dict[str, Any]:
    """Return what a training noted of itself, without what `options` replace and makes no sense.

    Raises:
        ValueError: a number is outside the limits of its flag, or an image so large that it must be asked for.
    """
    args = checkpoint.metadata.get("args")
    noted = dict(args) if isinstance(args, dict) else {}
    given = {name for name in NUMBERS if getattr(options, name, None) is not None}
    replaced = given | (set(_SIZE) if given.intersection(_SIZE) else set())
    for name in NUMBERS.keys() & vars(options).keys() & noted.keys():
        try:
            check_numbers({name: noted[name]}, checkpoint.origin)
        except ValueError as error:
            if name not in replaced:
                raise ValueError(f"{error} `{name}=...` replaces it.") from None
            del noted[name]
    for name in ("crop_mode", "interpolation", "gp"):
        if not isinstance(noted.get(name, ""), str | None):
            raise ValueError(f"{checkpoint.origin} notes `{name}={short(noted[name])}`, which must be a word.")
    if noted.get("model_kwargs"):
        check_model_kwargs(noted["model_kwargs"], checkpoint.origin)
    sides = [noted.get("img_size") or 0, *(noted.get("input_size") or ())[1:]]
    if max(sides) > MOST_NOTED and not given.intersection(_SIZE):
        raise ValueError(
            f"{checkpoint.origin} asks for images of {max(sides)} pixels a side; give `img_size={max(sides)}` if so "
            "large ones are meant, or a smaller one."
        )
    return noted


def bands_asked_for(values: Mapping[str, Any]) -> int | None:
    """Return the number of bands that flags or options ask for, None where they do not say.

    Raises:
        ValueError: they say different numbers.
    """
    numbers = _bands_said(values)
    if len(set(numbers.values())) > 1:
        raise ValueError(f"{' and '.join(numbers)} say different numbers of bands; give one of them.")
    return next(iter(numbers.values()), None)


def _bands_said(values: Mapping[str, Any]) -> dict[str, int]:
    """Find the numbers of bands among flags or options, by how each is written in a message."""
    said = {
        "input_size": (values.get("input_size") or [None])[0],
        "in_chans": values.get("in_chans"),
        "model_kwargs": (values.get("model_kwargs") or {}).get("in_chans"),
    }
    return {f"`{name}={values[name]}`": int(number) for name, number in said.items() if number is not None}


def _bands(options: ModelOptions, trained: Mapping[str, Any], checkpoint: Checkpoint | None) -> int:
    """Find the number of bands that a model takes: by the shape of its first weights, else as training noted."""
    asked = bands_asked_for(vars(options))
    found = checkpoint.davit if checkpoint is not None else None
    has = structure_of(found, checkpoint.state_dict).in_chans if found and checkpoint else 0
    has = has or (bands_asked_for(trained) or 0)
    if asked is not None and has and asked != has:
        assert checkpoint is not None
        given = next(iter(_bands_said(vars(options))))
        raise ValueError(f"{given} asks for {asked} bands, and {checkpoint.origin} is of a model for {has}.")
    return asked or has or 3


def _name_of(checkpoint: Checkpoint, trained: Mapping[str, Any]) -> str:
    """Find the model that a checkpoint is of: as its training noted, else the DaViT that has these shapes."""
    check_architecture(checkpoint)
    for noted in (trained.get("model"), checkpoint.metadata.get("arch")):
        if isinstance(noted, str) and timm.is_model(noted):
            return noted
    found = checkpoint.davit
    variants = structure_of(found, checkpoint.state_dict).variants(checkpoint.function) if found else []
    if not variants:
        checkpoint.require_merged()
        raise ValueError(f"{checkpoint.origin} does not tell which model it is of; give `model=NAME`.")
    if len(variants) > 1:
        log.warning(
            "%s has the shapes of %s; taking the first. Give the name of the model for another.",
            *(checkpoint.origin, " and ".join(variants)),
        )
    return variants[0]


def _arguments(
    name: str,
    options: ModelOptions,
    trained: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    bands: int,
    needs_head: bool,
) -> dict[str, Any]:
    """Gather the arguments of the model's constructor: those of its training, and what `options` replace."""
    kwargs = {**(trained.get("model_kwargs") or {}), **options.model_kwargs}
    if pool := options.gp or trained.get("gp"):
        kwargs["global_pool"] = pool
    if checkpoint is not None and (num_classes := options.num_classes or _num_classes(checkpoint, trained)):
        kwargs["num_classes"] = num_classes
    elif checkpoint is not None and ((outputs := _outputs(name, checkpoint)) or not needs_head):
        kwargs.setdefault("num_classes", outputs)
    if bands != 3:
        kwargs["in_chans"] = bands
    return kwargs


def _build(name: str, kwargs: Mapping[str, Any], options: ModelOptions, checkpoint: Checkpoint | None) -> Any:
    """Build the model, with published weights where there is no checkpoint."""
    if checkpoint is None and timm.is_model(name) and not is_model_pretrained(name):
        raise ValueError(f"no weights of {name} are published; give `checkpoint=FILE`.")
    if checkpoint is not None and kwargs:
        _require_alike(name, kwargs, checkpoint)
    try:
        model = create_model(name, pretrained=checkpoint is None, scriptable=options.torchscript, **kwargs)
    except (ValueError, PretrainedError):
        raise
    except TypeError as error:
        if not kwargs:
            raise
        raise ValueError(f"{name} does not take {kwargs} (`model_kwargs=...`, `gp=...`): {error}") from error
    except Exception as error:
        if kwargs or is_out_of_memory(error):
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{name} cannot be built with {short(dict(kwargs))} ({text[:300]}).") from error
        if checkpoint is not None:
            raise
        # the hub's client lets any error of its transport through
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise PretrainedError(f"the published weights of {name} could not be had ({text[:300]})") from error
    if checkpoint is None and options.num_classes not in (None, model.num_classes):
        raise ValueError(
            f"the published weights of {name} are for {model.num_classes} classes, not "
            f"`num_classes={options.num_classes}`; give the `checkpoint=FILE` of a model trained for these."
        )
    return model


def _require_alike(name: str, kwargs: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Refuse a model far larger than its checkpoint, before its memory is taken."""
    try:
        with torch.device("meta"):
            described = create_model(name, **{**kwargs, "accelerate": False} if name in VARIANTS else kwargs)
    except Exception as error:  # building it in earnest says what is wrong
        log.debug("%s cannot be described without memory: %s", name, error)
        return
    wanted = sum(parameter.numel() for parameter in described.parameters())
    held = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    if wanted > 4 * held + _SMALL_MODEL:
        raise ValueError(
            f"{checkpoint.origin} holds {held:,} numbers, and {name} with {short(dict(kwargs))} would have "
            f"{wanted:,}: it is not the checkpoint of such a model."
        )


def _num_classes(checkpoint: Checkpoint, trained: Mapping[str, Any]) -> int | None:
    """Count the classes of a checkpoint: by the biases of a linear head, else as its training noted."""
    found = checkpoint.davit
    names = {key.param: name for key, name in found.names.items() if key.slot == "head.fc"} if found else {}
    head = {param: checkpoint.state_dict[name] for param, name in names.items()}
    if head.keys() == {"weight", "bias"}:
        return len(head["bias"])
    return trained.get("num_classes") or (len(head["weight"]) if "weight" in head else None)


def _outputs(name: str, checkpoint: Checkpoint) -> int:
    """Count the outputs of the layer that timm calls the classifier of this model; 0 where it is not there."""
    layers = timm.get_pretrained_cfg_value(name.split(".")[0], "classifier") or ()
    ends = tuple(f".{layer}.weight" for layer in ([layers] if isinstance(layers, str) else layers))
    found = [len(tensor) for key, tensor in checkpoint.state_dict.items() if f".{key}".endswith(ends) and tensor.dim()]
    return found[0] if found else 0


def _preprocessing(
    options: ModelOptions, trained: Mapping[str, Any], model: nn.Module, bands: int
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Decide how images are prepared, and find the size (H, W) that the model was trained for."""
    noted = {name: trained[name] for name in (*_SIZE, *_CROP) if trained.get(name)}
    asked = {name: value for name in (*_SIZE, *_CROP) if (value := getattr(options, name))}
    resized = any(name in asked for name in _SIZE)
    kept = {name: value for name, value in noted.items() if not (resized and name in _SIZE)}
    try:
        # some of timm's models have a size for testing; a training evaluates without it
        before = resolve_data_config({**noted, "in_chans": bands}, model=model, use_test_size=not trained)
        config = picture_config({**kept, **asked}, model, bands, use_test_size=not trained)
    except AssertionError as error:
        values = ", ".join(f"`{name}={value}`" for name, value in {**noted, **asked}.items())
        raise ValueError(
            f"images of {bands} bands cannot be prepared with {values}: img_size is one number of pixels, "
            "input_size three, and mean and std one number or one for each band."
        ) from error
    return config, before["input_size"][-2:]


def picture_config(
    values: Mapping[str, Any], model: nn.Module, bands: int, use_test_size: bool = False
) -> dict[str, Any]:
    """Decide how images are prepared, as timm's `resolve_data_config`, for any number of bands.

    Bands of which neither `values` nor the model knows a mean and std get 0.5 and 0.5, with a warning.
    """
    config = dict(resolve_data_config({**values, "in_chans": bands}, model=model, use_test_size=use_test_size))
    config["input_size"] = (bands, *config["input_size"][-2:])
    unknown = [name for name in ("mean", "std") if len(config[name]) != bands]
    if unknown:
        config.update(dict.fromkeys(unknown, (_UNKNOWN_BAND,) * bands))
        log.warning(
            "Of %d bands no %s is known, and %g is taken for each; give --%s as numbers of 0 to 1, one for each band.",
            *(bands, " and ".join(unknown), _UNKNOWN_BAND, " and --".join(unknown)),
        )
    return config


def _pooling_window(
    is_asked_for: bool, model: nn.Module, trained: tuple[int, int], size: tuple[int, int], bands: int
) -> tuple[int, int] | None:
    """Find the window of test-time pooling; an error where it is asked for and there is none."""
    try:
        window = pooling_window(model, trained, size, bands)
    except ValueError as error:
        if is_asked_for:
            raise
        log.warning("no test-time pooling at %s: %s", size, error)
        return None
    if window is None and is_asked_for:
        raise ValueError(
            f"`test_time_pool=True` is for images larger both ways than the {trained} that the model was trained "
            f"on, not {size}; give a larger `img_size=...`."
        )
    return window


def pooling_window(
    model: Any, trained: tuple[int, int], size: tuple[int, int], bands: int = 3
) -> tuple[int, int] | None:
    """Find the window of test-time pooling at images of `size` for a model trained at `trained` (both H, W).

    None unless `size` is larger both ways, as in timm: the head then sees no more than in training. The model
    must be in eval mode.

    Raises:
        ValueError: the model gives no map (B, C, H, W) of features to its head.
    """
    if size[0] <= trained[0] or size[1] <= trained[1]:
        return None
    shape: tuple[int, ...] = ()
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        like = next(model.parameters())
        image = torch.zeros(1, bands, *trained, device=like.device, dtype=like.dtype)
        with torch.inference_mode():
            shape = tuple(model.forward_features(image).shape)
    if len(shape) != 4 or shape[1] != model.num_features:
        raise ValueError(
            "test-time pooling needs a model whose head gets a map (batch, channels, rows, columns) of "
            f"features, and {type(model).__name__} hands over {shape or 'none'}"
        )
    return shape[2], shape[3]


class TestTimePool(nn.Module):
    """Apply a classifier's head to every window of the trained size of a larger map.

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


def _scripted(model: nn.Module) -> nn.Module:
    try:
        return torch.jit.script(model)
    except Exception as error:  # TorchScript's compiler has no common type of error
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"`torchscript=True` cannot take this model ({reason}); try `torchcompile=inductor`."
        ) from error
