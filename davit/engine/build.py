"""Build the parts of a run from its flags: model, data, loss, optimizer, schedule."""

from __future__ import annotations

import logging
import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.data import Mixup
from timm.layers import convert_splitbn_model
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..checkpoint import load_checkpoint
from ..choices import CLASSIFICATION, EVAL_METRICS, MULTILABEL, MULTILABEL_METRICS
from ..data import (
    DataError,
    Decoding,
    EpochSampler,
    EvalLoader,
    PictureDataset,
    SizeSchedule,
    TooFewSamplesError,
    TrainLoader,
    balanced_weights,
    check_classes,
    check_labels,
    eval_transform,
    in_other_order,
    labels_numbered,
    open_dataset,
    round_to,
    train_transform,
)
from ..data.tables import is_of_several
from ..limits import short
from ..pretrained import PretrainedError, noted_in, read_source, split_source
from ..registry import create_model
from ..text import some
from .distill import build_task, trained_by
from .distributed import DataParallel, World, in_step, is_out_of_memory
from .evaluate import Evaluation, eval_mode, evaluate
from .finetune import add_lora, freeze, parameter_groups, scale_head
from .flags import listed
from .load_model import bands_asked_for, picture_config
from .losses import build_loss
from .precision import Precision, precision_from
from .steps import Stepper

log = logging.getLogger(__name__)

_MOST_EPOCHS = 10_000_000  # of a schedule with its cycles
_MOST_BEGINNING = 0.1  # of a moving average, that the first weights may be


@dataclass
class Data:
    """Both splits of a data set, and their classes."""

    train: PictureDataset
    val: PictureDataset
    class_names: list[str]
    num_classes: int


@dataclass
class Parts:
    """What a run is made of.

    Attributes:
        config: how images are prepared, as `data_config` returns it.
        ema: the moving average of the weights, if one is kept; in float32 whatever the weights' dtype.
        num_epochs: with the cool-down.
        sizes: of the training images, where they grow.
        task: what is learnt.
    """

    model: nn.Module
    data: Data
    config: dict[str, Any]
    precision: Precision
    train_loader: TrainLoader
    val_loader: EvalLoader
    ema: ModelEmaV3 | None
    stepper: Stepper
    scheduler: Scheduler
    num_epochs: int
    sizes: SizeSchedule | None = None
    task: Task = field(default_factory=lambda: Task())


class Task:
    """Make those parts of a run, and measure its epochs, that depend on what is learnt: here the classes of images.

    Another task, such as detection (`davit.detect.task`), replaces methods. All else of a run is the same for all.
    """

    #: Runs the steps of this task.
    stepper: ClassVar[type[Stepper]] = Stepper

    def open_data(self, args: Namespace, world: World) -> Data:
        """Open both splits of the data set."""
        return open_data(args, world)

    def build_model(self, args: Namespace, data: Data) -> nn.Module:
        """Build the model with its starting weights, on the CPU."""
        return build_model(args, data.num_classes, data.class_names)

    def prepare(self, args: Namespace, data: Data, model: nn.Module) -> dict[str, Any]:
        """Give both splits their transforms; return how images are prepared (`data_config`)."""
        settle_sizes(args, model)
        config = data_config(args, model)
        set_transforms(args, data, config)
        return config

    def build_loss(self, args: Namespace, mixup: Mixup | None, data: Data) -> nn.Module:
        """Build the loss, after the flags that it depends on are checked."""
        check_task(args)
        return build_loss(args, mixup, data.train)

    def example(self, data: Data) -> Tensor:
        """Return an image's target, as large as they come, for trying how many images fit into memory."""
        is_multilabel = data.train.label_sets is not None
        return torch.zeros(data.num_classes) if is_multilabel else torch.zeros((), dtype=torch.int64)

    def trial_loss(self, model: nn.Module, image: Tensor) -> Tensor:
        """Return a number that depends on every parameter that a step gives a gradient."""
        return sum_of_outputs(model, image)

    def evaluate(self, model: nn.Module, loader: EvalLoader, **options: Any) -> Evaluation:
        """Measure a model on the validation split; options are those of `davit.engine.evaluate.evaluate`."""
        return evaluate(model, loader, **options)

    def finish(self, parts: Parts, folder: Path) -> None:
        """Write what a run leaves beside its checkpoints once it has ended, on the main process."""


def build_parts(
    args: Namespace, model: nn.Module, data: Data, config: dict[str, Any], world: World, learning: Task | None = None
) -> Parts:
    """Build what a run needs beside its model and data; the model is on its device and gets its dtype here.

    Args:
        learning: what is learnt; None for the classes of images.
    """
    learning = learning or Task()
    precision = precision_from(args, world.device, world.everywhere)
    model.to(precision.weights)
    train_loader, val_loader = build_loaders(args, data, world)
    schedule = size_schedule(args, train_loader.steps_per_epoch)
    height, width = config["input_size"][1:]
    require_sizes(args, model, config, [(height, width)] if schedule is None else [(n, n) for n in schedule.all_sizes])
    if schedule is not None:
        train_loader.sampler.size_of = schedule.at
    mixup = build_mixup(args, data.num_classes)
    ema_device = "cpu" if args.model_ema_force_cpu else None
    ema = None
    if args.model_ema:
        ema = ModelEmaV3(model, args.model_ema_decay, use_warmup=args.model_ema_warmup, device=ema_device)
        ema.module.float()  # bfloat16 would round away what a step adds
    loss = learning.build_loss(args, mixup, data).to(world.device)
    task = build_task(args, model, loss, data.class_names, config)
    if task is not None:
        task.to(precision.weights)
    trainable = trained_by(task, model)
    forward = wrap_for_training(args, trainable, config, world, precision.weights, schedule, learning.trial_loss)
    optimizer = build_optimizer(args, trainable, model)
    clipping = (args.clip_grad, args.clip_mode)
    stepper = learning.stepper(
        *(model, forward, loss, optimizer, precision, world, mixup, ema, args.seed, *clipping),
        task=task,
        multilabel=args.task == MULTILABEL,
    )
    scheduler, num_epochs = build_schedule(args, optimizer, train_loader.steps_per_epoch)
    if ema is not None and not args.model_ema_warmup:
        _say_average(args.model_ema_decay, num_epochs * train_loader.steps_per_epoch)
    loaders = (train_loader, val_loader)
    return Parts(model, data, config, precision, *loaders, ema, stepper, scheduler, num_epochs, schedule, learning)


def _say_average(decay: float, steps: int) -> None:
    """Warn of a moving average that consists mostly of the weights with which the run begins."""
    share = decay**steps
    if share > _MOST_BEGINNING:
        fitting = 1 - 10 / max(steps, 20)
        log.warning(
            "--model-ema-decay %g: after all %d steps %.0f %% of the EMA are the initial weights, and the "
            "best epoch is judged by the EMA. Lower the decay, to %.4g for example, or give --model-ema-warmup.",
            *(decay, steps, 100 * share, fitting),
        )


def open_data(args: Namespace, world: World) -> Data:
    """Open both splits of the data set and check that they agree. One process may download, before the others."""
    options = {name: getattr(args, name) or None for name in ("class_map", "input_key", "target_key")}
    task = getattr(args, "task", CLASSIFICATION)  # other commands than train.py know one class per image
    is_multilabel = task == MULTILABEL
    try:
        train, val = [
            open_once(world, args.data_dir, split, args.dataset_download, dataset=args.dataset, task=task, **options)
            for split in (args.train_split, args.val_split)
        ]
    except DataError as error:
        if hasattr(args, "task") or not is_of_several(error):
            raise
        raise ValueError(
            f"{args.data_dir}: its images have several labels, or none, and this command needs one class per image; "
            "train.py and validate.py know several."
        ) from error
    if is_multilabel:
        val = labels_numbered(val, train.class_names, "the training data")
    found = max(train.class_to_idx.values()) + 1 if train.class_to_idx else None
    num_classes = args.num_classes if args.num_classes is not None else found
    if num_classes is None:
        raise ValueError(f"the data set {args.dataset!r} does not tell its classes: pass --num-classes N.")
    if 1 in (found, num_classes) and not is_multilabel:
        raise ValueError(
            f"there is one class ({', '.join(train.class_names[:1]) or '0'}), so every answer would be right: add a "
            f"class of images that do not show it (a background), or give --task {MULTILABEL}, where an image may "
            "have no label."
        )
    check_classes(train, val, num_classes)
    check_labels(train, val)
    train.width = val.width = num_classes
    return Data(train, val, train.class_names, num_classes)


def check_task(args: Namespace) -> None:
    """Raise `ValueError` for flags that do not go with --task."""
    is_multilabel = args.task == MULTILABEL
    metrics = MULTILABEL_METRICS if is_multilabel else EVAL_METRICS
    if args.eval_metric not in metrics:
        raise ValueError(
            f"--eval-metric {args.eval_metric} does not go with --task {args.task}; take one of {', '.join(metrics)}."
        )
    if is_multilabel and args.teacher:
        raise ValueError(
            f"--teacher with --task {MULTILABEL}: timm's distillation compares probabilities that add up to 1, and "
            "those of several labels do not; leave one out."
        )


def open_once(
    world: World, root: str | Path | None, split: str, download: bool = False, **options: Any
) -> PictureDataset:
    """Open a split as `open_dataset` does: first one process of each machine, which fetches or indexes what is new."""
    opened: PictureDataset | None = None
    with in_step(world):
        if world.local_rank == 0:
            opened = open_dataset(root, split, dataset_download=download and world.is_main, **options)
    with in_step(world):
        return opened if opened is not None else open_dataset(root, split, **options)


def name_model(args: Namespace) -> None:
    """Put what `--model hf-hub:OWNER/NAME` or `local-dir:DIR` stands for into the flags.

    They then say the architecture with its arguments and how its images are prepared, unless other flags do, and
    with --pretrained its weights.

    Raises:
        ValueError, PretrainedError: it cannot be had (`davit.pretrained.noted_in`).
    """
    if split_source(args.model)[0] is None:
        return
    source, noted = args.model, noted_in(args.model)
    if args.pretrained and args.initial_checkpoint:
        raise ValueError(f"--pretrained with --model {source} and --initial-checkpoint both name weights; give one.")
    if args.pretrained:
        args.pretrained, args.initial_checkpoint = False, source
    args.model, args.model_kwargs = noted["model"], {**noted["model_kwargs"], **args.model_kwargs}
    if not (args.img_size or args.input_size or bands_asked_for(vars(args))):
        args.input_size = noted.get("input_size")
    for name in ("mean", "std", "crop_pct", "interpolation"):
        if not getattr(args, name):
            setattr(args, name, noted.get(name) or getattr(args, name))


def build_model(args: Namespace, num_classes: int, class_names: Sequence[str] = ()) -> nn.Module:
    """Build the model of --model with its starting weights, on the CPU; `class_names` are those of the data."""
    model = _create(args, num_classes)
    if args.initial_checkpoint:
        checkpoint = read_source(args.initial_checkpoint)
        load_checkpoint(model, checkpoint)
        if other := in_other_order(checkpoint.class_names, class_names):
            log.warning(
                "%s was trained on the same classes in another order: %s. Its head has to learn them again, or give "
                "--class-map FILE with the names in its order.",
                *(args.initial_checkpoint, other),
            )
    if args.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise ValueError(f"--grad-checkpointing: {args.model} has no gradient checkpointing.")
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = module.momentum if args.bn_momentum is None else args.bn_momentum
            module.eps = module.eps if args.bn_eps is None else args.bn_eps
    if args.split_bn:
        if args.aug_splits < 2:
            raise ValueError("--split-bn needs --aug-splits of 2 or more.")
        model = convert_splitbn_model(model, args.aug_splits)
    if args.head_init_scale is not None or args.head_init_bias is not None:
        scale_head(model, args.head_init_scale, args.head_init_bias)
    if args.lora is not None:
        if args.freeze is not None or args.torchscript:
            other = "--torchscript" if args.torchscript else f"--freeze {args.freeze}"
            raise ValueError(f"--lora {args.lora} trains adapters and the classifier alone: leave out {other}.")
        model.adapter_config = add_lora(model, args.lora, args.lora_alpha)  # type: ignore[assignment]
    elif args.freeze is not None:
        freeze(model, args.freeze)
    return model


def _create(args: Namespace, num_classes: int) -> nn.Module:
    """Create the model with the rates and arguments of the flags; it need not know rates that are 0."""
    asked = args.model_kwargs.get("num_classes", num_classes)
    if asked != num_classes:
        raise ValueError(
            f"--model-kwargs with num_classes={asked} contradicts the {num_classes} classes of the run; say how many "
            "there are by --num-classes."
        )
    rates = {"drop_rate": args.drop, "drop_path_rate": args.drop_path}
    pooling = {"global_pool": args.gp} if args.gp else {}
    bands = bands_asked_for(vars(args)) or 3
    given = {"num_classes": num_classes, **pooling, **({"in_chans": bands} if bands != 3 else {}), **args.model_kwargs}
    attempts = [{**rates, **given}] if any(rates.values()) else [{**rates, **given}, given]
    for kwargs in attempts:
        try:
            return create_model(args.model, pretrained=args.pretrained, **kwargs)
        except TypeError as error:
            problem = error
        except (ValueError, PretrainedError):
            raise
        except Exception as error:  # a constructor of any model meets arguments of any kind
            if not (args.model_kwargs or is_out_of_memory(error)):
                raise
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"--model {args.model} cannot be built with {short(kwargs)} ({text[:300]}). Look at --model-kwargs."
            ) from error
    raise ValueError(
        f"--model {args.model} does not take one of {', '.join(attempts[-1])}: {problem}. Look at --model-kwargs, or "
        "pass --drop 0 --drop-path 0."
    ) from problem


def data_config(args: Namespace, model: nn.Module) -> dict[str, Any]:
    """Decide image size, mean, std, interpolation and crop: the flags', else the model's own."""
    bands = bands_asked_for(vars(args)) or 3
    try:
        return picture_config(vars(args), model, bands)
    except AssertionError as error:
        raise ValueError(
            f"images cannot be prepared with --img-size {args.img_size}, --input-size {args.input_size}, --mean "
            f"{args.mean} and --std {args.std}: a size is one number (--input-size three), the others one "
            f"or {bands}, for each band."
        ) from error


def settle_sizes(args: Namespace, model: nn.Module) -> None:
    """Take the last of several sizes (--img-size 128,224) for evaluation, and for all that asks for one size.

    Afterwards ``args.sizes`` lists them, rounded as `SizeSchedule` needs them; it is empty where they do not change.
    """
    given, args.sizes = listed(args.img_size), []
    if len(given) < 2:
        return
    if args.input_size:
        shape = " ".join(map(str, args.input_size))
        raise ValueError(f"--img-size {args.img_size} and --input-size {shape} both say sizes; give one of them.")
    if args.size_multiple is None:
        args.size_multiple = stride_of(model)
    args.size_schedule = args.size_schedule or "linear"
    args.sizes = list(round_to(args.size_multiple, given))
    if args.sizes != given:
        log.info(
            "--img-size %s: rounded to %s, as multiples of %d (--size-multiple).",
            *(args.img_size, ",".join(map(str, args.sizes)), args.size_multiple),
        )
    args.img_size = args.sizes[-1]


def stride_of(model: nn.Module) -> int:
    """Return by how much a model's last map is smaller than its image; 32 for one that does not tell."""
    stages: Any = getattr(model, "feature_info", None)
    found = [stage["reduction"] for stage in stages or () if isinstance(stage, dict) and "reduction" in stage]
    return int(max(found, default=32))


def size_schedule(args: Namespace, steps_per_epoch: int) -> SizeSchedule | None:
    """Build the schedule of the training images' sizes; None where there is one size."""
    if len(getattr(args, "sizes", ())) < 2:
        return None
    return SizeSchedule(tuple(args.sizes), args.size_schedule, args.size_multiple, args.epochs, steps_per_epoch)


def require_sizes(args: Namespace, model: nn.Module, config: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> None:
    """Raise `ValueError` for sizes (H, W) that a model does not take, before hours of training lead there."""
    like = next(model.parameters())
    for height, width in sizes:
        image = torch.zeros(1, config["input_size"][0], height, width, device=like.device, dtype=like.dtype)
        try:
            with eval_mode(model), torch.no_grad():
                model(image)
        except Exception as error:  # models refuse a size by errors of any type
            if is_out_of_memory(error):  # the first step says what to do
                return
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            size = f"{height}" if height == width else f"{height} x {width}"
            if len(sizes) == 1:
                raise ValueError(
                    f"{args.model} does not take images of {size} px ({text}). Leave the size out for its own, or "
                    "make the model for this one, where that can be (--model-kwargs img_size=N for timm's ViTs)."
                ) from error
            raise ValueError(
                f"{args.model} does not take images of {size} px, which --size-schedule {args.size_schedule} leads "
                f"to ({text}). A model with position embeddings has one size: give one --img-size, a --size-multiple "
                "that it can divide, or let it resample them if it can (--model-kwargs dynamic_img_size=true "
                "for timm's ViTs, strict_img_size=false for its Swins)."
            ) from error


def set_transforms(args: Namespace, data: Data, config: dict[str, Any]) -> None:
    """Give both splits the decoding and the transforms that the flags ask for."""
    decoding = Decoding.asked_for(config["input_size"][0], vars(args))
    data.train.decoding = data.val.decoding = decoding
    if decoding != Decoding():
        log.info("Images have %d bands; more than 8 bits are scaled by %s.", decoding.bands, decoding)
    both = {"img_size": config["input_size"], "mean": config["mean"], "std": config["std"]}
    crop_and_colour = ("no_aug", "scale", "ratio", "hflip", "vflip", "color_jitter", "aa")
    erasing = ("reprob", "remode", "recount", "resplit", "aug_splits")
    flags = {name: getattr(args, name) for name in (*crop_and_colour, *erasing)}
    interpolation = args.train_interpolation or "bicubic"
    data.train.transform = train_transform(**both, **flags, train_interpolation=interpolation)
    if (schedule := size_schedule(args, 1)) is not None:
        for size in schedule.all_sizes:
            smaller = {**both, "img_size": (config["input_size"][0], size, size)}
            data.train.transforms[size] = train_transform(**smaller, **flags, train_interpolation=interpolation)
    crop = {name: config[name] for name in ("crop_pct", "crop_mode", "interpolation")}
    data.val.transform = eval_transform(**both, **crop)


def usable_workers(wanted: int) -> int:
    """Limit loader processes to this process's share of the cores, which changes nothing but speed."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(wanted, max(1, len(os.sched_getaffinity(0)) // processes))


def build_loaders(args: Namespace, data: Data, world: World) -> tuple[TrainLoader, EvalLoader]:
    """Build the loaders of this process."""
    common: dict[str, Any] = {
        "workers": usable_workers(args.workers),
        "pin_memory": args.pin_mem and world.device.type == "cuda",
        "skip_bad_images": args.skip_bad_images,
    }
    try:
        sampler = EpochSampler(
            len(data.train),
            batch_size=args.batch_size,
            rank=world.rank,
            world_size=world.size,
            grad_accum_steps=args.grad_accum_steps,
            seed=args.seed,
            epoch_repeats=args.epoch_repeats,
            repeated_aug=args.repeated_aug,
            weights=balanced_weights(data.train) if args.sampler == "balanced" else None,
        )
    except TooFewSamplesError as error:
        if args.global_batch is None:
            raise
        raise ValueError(
            f"{error.samples} training samples an epoch are fewer than the {args.global_batch} of a step "
            f"(--global-batch {args.global_batch}): lower it, or pass --epoch-repeats N for more passes over the data."
        ) from error
    train = TrainLoader(data.train, sampler, **common)
    batch_size = args.batch_size * args.validation_batch_size_multiplier
    return train, EvalLoader(data.val, batch_size=batch_size, rank=world.rank, world_size=world.size, **common)


def mixes(args: Namespace) -> bool:
    """Return whether the flags ask for mixup or cutmix, which pair the images of a micro-batch."""
    return bool(args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax)


def build_mixup(args: Namespace, num_classes: int) -> Mixup | None:
    """Build mixup and cutmix as the flags ask for, or None."""
    if not mixes(args):
        return None
    if args.aug_splits > 0:
        raise ValueError("--aug-splits cannot be combined with mixup: pass --mixup 0 --cutmix 0.")
    if args.batch_size % 2:
        raise ValueError(
            f"--batch-size {args.batch_size} is odd, and mixup pairs images: make it even, or pass "
            "--mixup 0 --cutmix 0."
        )
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=num_classes,
        multi_label=args.task == MULTILABEL,
    )


def build_optimizer(args: Namespace, model: nn.Module, student: nn.Module | None = None) -> torch.optim.Optimizer:
    """Build timm's optimizer of that name; raises `ValueError` for a name it does not know.

    Args:
        model: whose parameters are trained.
        student: the classifier inside `model`, where that holds more; layers and the head are the student's.
    """
    if args.opt_betas and len(args.opt_betas) not in (2, 3):
        raise ValueError(f"--opt-betas {' '.join(map(str, args.opt_betas))}: 2 or 3 numbers are needed.")
    kwargs = {**optimizer_kwargs(args), **args.opt_kwargs}
    is_wrapped = student is not None and student is not model  # and hides layers and head from timm
    if args.head_lr_scale != 1 or (is_wrapped and args.layer_decay is not None):
        kwargs["param_group_fn"] = partial(
            parameter_groups,
            weight_decay=args.weight_decay,
            layer_decay=args.layer_decay,
            layer_decay_min_scale=args.layer_decay_min_scale,
            head_scale=args.head_lr_scale,
            student=student,
        )
    try:
        return create_optimizer_v2(model, **kwargs)
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot make the optimizer --opt {args.opt!r}: {error}") from error


def build_schedule(args: Namespace, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> tuple[Scheduler, int]:
    """Build timm's learning-rate schedule; return it and the number of epochs with the cool-down."""
    if args.lr_noise and 100 * args.lr_noise_pct < args.lr_noise_std:  # timm draws until it is below
        raise ValueError(
            f"--lr-noise-pct {args.lr_noise_pct:g} is far below --lr-noise-std {args.lr_noise_std:g}: nearly all "
            "noise would be drawn again; take at least a hundredth of it."
        )
    if args.sched == "plateau" and args.val_interval > 1:
        raise ValueError(
            f"--sched plateau needs a metric after each epoch: leave out --val-interval {args.val_interval}."
        )
    if args.sched in ("wsd", "rsqrt") and args.warmup_epochs >= args.epochs and not args.warmup_prefix:
        raise ValueError(
            f"--sched {args.sched}: the warm-up of {args.warmup_epochs} epochs leaves none of --epochs {args.epochs}: "
            "lower --warmup-epochs."
        )
    if args.sched == "rsqrt" and not args.warmup_epochs:
        raise ValueError("--sched rsqrt falls as slowly as it has risen: give --warmup-epochs of 1 or more.")
    with warnings.catch_warnings():
        # plateau's memory, which timm does not save and warns about, is in our own state
        warnings.filterwarnings("ignore", category=FutureWarning, module="timm")
        try:
            schedule, num_epochs = create_scheduler_v2(
                optimizer, updates_per_epoch=steps_per_epoch, **scheduler_kwargs(args)
            )
        except (ValueError, AssertionError, RuntimeError, TypeError, ArithmeticError, IndexError) as error:
            raise ValueError(f"timm cannot make the schedule --sched {args.sched!r}: {error!r}.") from error
    if num_epochs > _MOST_EPOCHS:
        raise ValueError(
            f"--epochs {args.epochs} with --lr-cycle-limit {args.lr_cycle_limit} and --lr-cycle-mul "
            f"{args.lr_cycle_mul} make a schedule of {num_epochs:.3g} epochs; at most {_MOST_EPOCHS} are run."
        )
    _say_length(args, num_epochs, has_schedule=schedule is not None)
    _say_beyond(args, num_epochs)
    return schedule, num_epochs


def _say_beyond(args: Namespace, num_epochs: int) -> None:
    """Warn of flags that name an epoch which the run does not reach."""
    milestones = [epoch for epoch in listed(args.keep_epochs) if epoch > num_epochs]
    named = {
        "keep_epochs": ",".join(map(str, milestones)),
        "stop_epoch": args.stop_epoch if args.stop_epoch is not None and args.stop_epoch > num_epochs else None,
        "mixup_off_epoch": args.mixup_off_epoch if args.mixup_off_epoch >= num_epochs and mixes(args) else None,
        "early_stop": args.early_stop if args.early_stop is not None and args.early_stop >= num_epochs else None,
    }
    for name, value in named.items():
        if value:
            log.warning("--%s %s has no effect: the run has %d epochs.", name.replace("_", "-"), value, num_epochs)


def _say_length(args: Namespace, num_epochs: int, has_schedule: bool) -> None:
    """Say how many epochs a run has, and warn of a short one that its warm-up or cool-down fills."""
    cooldown = args.cooldown_epochs if num_epochs == args.epochs + args.cooldown_epochs else 0
    is_all_warmup = has_schedule and args.warmup_epochs >= args.epochs and not args.warmup_prefix
    length = f"{num_epochs} epochs: {args.epochs} of --epochs and {cooldown} of --cooldown-epochs after them."
    if is_all_warmup:
        log.warning(
            "%sThe warm-up of %d epochs is as long as the schedule, so the learning rate never reaches --lr: for a "
            "short run give --warmup-epochs 0 --cooldown-epochs 0.",
            *(f"{length} " if cooldown else "", args.warmup_epochs),
        )
    elif cooldown:
        log.info("%s", length)


def sum_of_outputs(model: nn.Module, image: Tensor) -> Tensor:
    """Add up all that a model gives out."""
    output = model(image)
    outputs: Iterable[Tensor] = output if isinstance(output, tuple | list) else (output,)
    return torch.stack([out.float().sum() for out in outputs]).sum()


def wrap_for_training(
    args: Namespace,
    model: nn.Module,
    config: dict[str, Any],
    world: World,
    dtype: torch.dtype = torch.float32,
    schedule: SizeSchedule | None = None,
    trial_loss: Callable[[nn.Module, Tensor], Tensor] = sum_of_outputs,
) -> nn.Module:
    """Wrap the model as the forward pass runs it: compiled as the flags ask for, data-parallel in a job.

    Args:
        dtype: of the images as the model gets them.
        schedule: of their sizes, for each of which there is one compiled graph.
        trial_loss: as `Task` has it.

    Raises:
        ValueError: data-parallel training would wait for parameters that get no gradient; they are named.
    """
    if world.is_distributed:
        image = torch.randn(2, *config["input_size"], device=world.device, dtype=dtype)
        unused = unused_parameters(model, image, trial_loss)
        if unused:
            raise ValueError(
                f"{len(unused)} parameters of {args.model} get no gradient, and data-parallel training would wait for "
                f"them for ever: {some(unused)}. Remove or freeze them (requires_grad=False)."
            )
    forward: nn.Module = model
    if args.torchscript and args.freeze is not None:
        raise ValueError(
            "--torchscript copies the layers, so that --freeze cannot keep them in eval mode: leave one out."
        )
    if args.torchscript:
        forward = torch.jit.script(forward)
    if args.torchcompile:
        mode = args.torchcompile_mode
        dynamic = None
        if schedule is not None:
            dynamic, number = False, len(schedule.all_sizes)
            limit = max(torch._dynamo.config.recompile_limit, 2 * number)  # evaluation has its own
            torch._dynamo.config.recompile_limit = limit
            log.info("torch.compile makes a graph for each of up to %d sizes of images, when it comes.", number)
        forward = torch.compile(forward, backend=args.torchcompile, mode=mode, dynamic=dynamic)  # type: ignore[assignment]
    return DataParallel(forward, world.device) if world.is_distributed else forward


def unused_parameters(
    model: nn.Module, image: Tensor, trial_loss: Callable[[nn.Module, Tensor], Tensor] = sum_of_outputs
) -> list[str]:
    """Name the trainable parameters that a forward and backward pass leaves without a gradient.

    DistributedDataParallel would wait for them for ever, or fail at the second step without saying which.
    """
    with eval_mode(model):  # batch norms keep their statistics; drop path has no parameters
        trial_loss(model, image).backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.zero_grad(set_to_none=True)
    return unused
