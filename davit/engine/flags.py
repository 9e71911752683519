"""Parse the flags of train.py and validate.py, and those that other commands share with them.

Every flag of the original is there with its default.

A flag with no meaning today is still accepted; `NO_LONGER` says in one line what happens instead.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from .. import recipes
from ..choices import (
    AMP_DTYPES,
    BUNDLED_REAL,
    CLASSIFICATION,
    EMA_CHOICES,
    EVAL_METRICS,
    FITTED_ON,
    LOSSES,
    MODEL_DTYPES,
    MULTILABEL,
    MULTILABEL_METRICS,
    SAMPLERS,
    SIZE_SCHEDULES,
    TASKS,
    THRESHOLDS,
)
from ..commands import command_name
from ..files import read_small
from ..limits import MOST_YAML, NUMBERS, check_model_kwargs, number, read_yaml, short
from ..parsing import ANY_MODEL, Parser, add_device
from ..parsing.data import add_bands, add_data_form, add_skip_bad_images, add_split, add_workers
from ..parsing.results import add_json, add_output
from ..text import nearest

log = logging.getLogger(__name__)

_MODELS = "(default: the model's)"
_CHECKPOINTS = "(default: the checkpoint's, else the model's)"
NO_LONGER = {
    "apex_amp": "NVIDIA Apex is no longer used; PyTorch's own mixed precision runs instead (as --amp)",
    "local_rank": "the launcher's LOCAL_RANK variable is used",
    "no_prefetcher": "loading never changes the result, so there is nothing to switch off",
    "use_multi_epochs_loader": "workers always stay between epochs",
    "tta": "evaluation looks at each image once",
    "bn_tf": "give --bn-momentum and --bn-eps themselves",
    "drop_connect": "use --drop-path",
    "drop_block": "no model here has drop block; use --drop-path",
}


_MOST_LISTED = 1000
_DECAY_SHARE = 0.2  # of the epochs behind the warm-up, as timm's own default
_LEAST_DECAY = 2  # epochs
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def frozen_part(text: str) -> int | str:
    """Read what --freeze names, as an argparse type."""
    if text == "all":
        return text
    limits = NUMBERS["freeze"]
    try:
        return int(limits(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{short(text)} is neither 'all' nor {limits}") from None


def micro_batch(text: str) -> int | str:
    """Read --batch-size of train.py, as an argparse type."""
    if text == "auto":
        return text
    limits = NUMBERS["batch_size"]
    try:
        return int(limits(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{short(text)} is neither 'auto' nor {limits}") from None


def _rising(text: str, name: str) -> list[int]:
    limits = NUMBERS[name]
    try:
        numbers = [int(limits(part.strip())) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        few = f"{limits}, or several with commas between them"
        raise argparse.ArgumentTypeError(f"{short(text)} is not {few}") from None
    if numbers != sorted(set(numbers)) or len(numbers) > _MOST_LISTED:
        raise argparse.ArgumentTypeError(f"{short(text)} must be at most {_MOST_LISTED} numbers, each above the last")
    return numbers


def sizes(text: str) -> int | str:
    """Read --img-size of train.py, as an argparse type: one number, or several as the same text."""
    numbers = _rising(text, "img_size")
    return numbers[0] if len(numbers) == 1 else ",".join(map(str, numbers))


def epochs(text: str) -> str:
    """Read numbers of epochs with commas between them, as an argparse type."""
    return ",".join(map(str, _rising(text, "keep_epochs")))


def listed(numbers: int | str | None) -> list[int]:
    """Return the numbers that such a flag holds."""
    return [] if numbers is None else [int(part) for part in str(numbers).split(",")]


def backend(text: str) -> str:
    """Check a name of torch.compile's backends, as an argparse type."""
    from .load_model import why_no_backend  # loads PyTorch, which no other flag needs

    if (reason := why_no_backend(text)) is not None:
        raise argparse.ArgumentTypeError(f"{text!r} {reason}")
    return text


class KeyValues(argparse.Action):
    """Read ``--flag key=value ...`` into a dictionary; values are YAML scalars."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        result = {}
        for pair in values:
            key, equals, value = pair.partition("=")
            if not equals or not key:
                raise argparse.ArgumentError(self, f"{pair!r} is not of the form key=value")
            try:
                result[key] = read_yaml(value)
                check_model_kwargs({key: result[key]})
            except ValueError as error:
                raise argparse.ArgumentError(self, f"{short(pair)}: {error}") from None
        setattr(namespace, self.dest, result)


def train_parser() -> argparse.ArgumentParser:
    """Make the parser of train.py."""
    parser = Parser(
        prog=command_name(),
        description="Train DaViT, or any model that timm knows, to classify images.",
        usage="%(prog)s [DIR] [-c FILE] [flags]",
        epilog="Exit status: 0 done, 2 a mistake in the flags or the data, 3 a non-finite loss, 4 the disk is full, "
        "75 interrupted and saved (run again with --auto-resume).",
    )
    _add_config(parser, "none; without DIR digits")
    _add_data(parser)
    _add_model(parser)
    _add_optimizer(parser)
    _add_schedule(parser)
    _add_augmentation(parser)
    _add_regularisation(parser)
    _add_run(parser)
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str = "none") -> None:
    ours = ", ".join(recipes.names_of("recipe"))
    recipe = f"YAML recipe: a file, or one of {ours}; flags on the command line override it (default: {default})"
    parser.add_argument("-c", "--config", metavar="FILE", help=recipe)


def _add_shared(add: Callable[..., Any], default: str = _CHECKPOINTS) -> None:
    """Add what train.py, validate.py and predict.py call alike: how a model is made and where it runs."""
    _add_pooling(add, default)
    add_model_kwargs(add)
    add_device_and_precision(add)


def _add_pooling(add: Callable[..., Any], default: str = _CHECKPOINTS) -> None:
    pools = f"global pooling before the classifier: avg, max or avgmax {default}"
    add("--gp", metavar="POOL", help=pools)


def add_model_kwargs(add: Callable[..., Any]) -> None:
    """Add more arguments of a model."""
    add(
        "--model-kwargs",
        nargs="+",
        default={},
        action=KeyValues,
        metavar="KEY=VALUE",
        help="arguments of the model's constructor, such as window_size=12",
    )


def add_device_and_precision(add: Callable[..., Any], *, dtype: bool = True) -> None:
    """Add where a model runs, and in which precision.

    Args:
        dtype: with --amp-dtype; a command that leaves the dtype to the machine goes without.
    """
    add_device(add)
    add("--amp", action="store_true", help="use mixed precision")
    if dtype:
        add(
            "--amp-dtype",
            choices=tuple(AMP_DTYPES),
            help="dtype of --amp (default: fp16 on CUDA; on a CPU bf16 if it has instructions for bf16, else float32)",
        )


def _add_running(add: Callable[..., Any]) -> None:
    """Add what train.py and validate.py call alike: how a model runs."""
    add(
        "--torchcompile",
        nargs="?",
        const="inductor",
        type=backend,
        metavar="BACKEND",
        help="compile the model by torch.compile; BACKEND is inductor if left out (default: no compilation)",
    )
    add("--torchcompile-mode", choices=COMPILE_MODES, help="mode of --torchcompile (default: torch.compile's own)")
    add(
        "--model-dtype",
        choices=MODEL_DTYPES,
        help="dtype of the weights and images, without mixed precision (default: float32)",
    )
    add("--torchscript", action="store_true", help="compile the model by torch.jit.script")
    add_channels_last(add)
    add("--native-amp", action="store_true", help="the same as --amp")
    add("--apex-amp", action="store_true", help=argparse.SUPPRESS)
    add("--local_rank", "--local-rank", **number("local_rank"), default=0, help=argparse.SUPPRESS)


def add_channels_last(add: Callable[..., Any]) -> None:
    """Add the memory format."""
    add("--channels-last", action="store_true", help="use the channels-last memory format")


def _add_dataset(add: Callable[..., Any]) -> None:
    """Add what train.py and validate.py call alike: which data set."""
    add_data_form(add)
    add("--dataset-download", action="store_true", help="download a torch/NAME or hfds/NAME data set if it is missing")
    add("--no-prefetcher", action="store_true", help=argparse.SUPPRESS)
    add_skip_bad_images(add)


def _add_splits(add: Callable[..., Any]) -> None:
    add("--train-split", default="train", metavar="NAME", help="name of the training split")
    add(
        "--val-split",
        default="validation",
        metavar="NAME",
        help="name of the validation split (default: validation, or val if that is there)",
    )


def add_picture_size(add: Callable[..., Any]) -> None:
    """Add the size of a detector's images."""
    add(
        "--img-size",
        type=sizes,
        default=640,
        metavar="N",
        help=f"side of the images in pixels; {_SEVERAL_SIZES} (default: %(default)s)",
    )


def add_model_of_run(add: Callable[..., Any]) -> None:
    """Add where and in which numbers a detector is trained."""
    add_device_and_precision(add)
    add_channels_last(add)
    _add_batch_norms(add)


def _add_batch_norms(add: Callable[..., Any]) -> None:
    add("--sync-bn", action="store_true", help="compute batch norms over all GPUs")
    add(
        "--dist-bn",
        default="",
        choices=("", "broadcast", "reduce"),
        help="before evaluation, take the batch-norm statistics of the first process (broadcast) or their mean "
        "(reduce) (default: each keeps its own)",
    )


_SEVERAL_SIZES = "several, such as 128,160,224: training images grow from the first to the last (--size-schedule)"


def _add_decoding(add: Callable[..., Any], *, has_schedule: bool = False) -> None:
    """Add what all commands call alike: the size and bands of images, and the range of values of over 8 bits.

    Args:
        has_schedule: there may be several sizes.
    """
    default = _MODELS if has_schedule else _CHECKPOINTS
    if has_schedule:
        add("--img-size", type=sizes, metavar="N", help=f"side of the images in pixels; {_SEVERAL_SIZES} {default}")
    else:
        _add_img_size(add)
    add(
        "--input-size",
        **number("input_size"),
        metavar=("C", "H", "W"),
        help=f"instead of --img-size: number of bands, height and width in pixels {default}",
    )
    add_bands(add)


def _add_img_size(add: Callable[..., Any]) -> None:
    add("--img-size", **number("img_size"), help=f"side of the images in pixels {_CHECKPOINTS}")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "data_dir",
        nargs="?",
        metavar="DIR",
        help=_DATA_PLACE,
    )
    add(
        "--task",
        default=CLASSIFICATION,
        choices=TASKS,
        help="multilabel: an image has any number of labels; the data is a csv with the columns path,labels and ; "
        "between labels, or with a column of 0 and 1 for each label",
    )
    add("--sampler", default=SAMPLERS[0], choices=SAMPLERS, help="balanced: show each class equally often")
    _add_dataset(add)
    _add_splits(add)
    _add_decoding(add, has_schedule=True)
    add_growth(add)
    _add_normalisation(add, _MODELS)
    _add_batches(add)
    add("--use-multi-epochs-loader", action="store_true", help=argparse.SUPPRESS)


def _add_normalisation(add: Callable[..., Any], default: str) -> None:
    """Add how images are cropped for evaluation, resampled and normalised."""
    add("--crop-pct", **number("crop_pct"), help=f"share of the side that the evaluation crop keeps {default}")
    add("--mean", **number("mean"), help=f"mean to subtract, 0 to 1: one for each band, or one for all {default}")
    add("--std", **number("std"), help=f"std to divide by, 0 to 1: one for each band, or one for all {default}")
    add(
        "--interpolation",
        default="",
        metavar="NAME",
        help=f"resampling in evaluation: bicubic, bilinear, nearest, lanczos, box or hamming {default}",
    )


def add_growth(add: Callable[..., Any]) -> None:
    """Add how training images grow."""
    add(
        "--size-schedule",
        choices=SIZE_SCHEDULES,
        help="how images grow over --epochs: linear is evenly, steps is an equal number of steps for each size "
        "(default: linear)",
    )
    add(
        "--size-multiple",
        **number("size_multiple"),
        help="round sizes to multiples of N (default: the model's stride)",
    )


def _add_batches(add: Callable[..., Any]) -> None:
    """Add how many images a step has, and how they are loaded."""
    add(
        "-b",
        "--batch-size",
        type=micro_batch,
        default=64,
        metavar="N|auto",
        help="images that a process computes at once; auto: as many as memory holds, with --global-batch",
    )
    add(
        "--global-batch",
        **number("global_batch"),
        help="images of a step over all processes; sets --grad-accum-steps (default: --batch-size x processes x "
        "--grad-accum-steps)",
    )
    add(
        "-vb",
        "--validation-batch-size-multiplier",
        **number("validation_batch_size_multiplier"),
        default=1,
        help="the evaluation batch is N times --batch-size",
    )
    add_workers(add, 10)
    add("--pin-mem", action="store_true", default=True, help="load into page-locked host memory (the default)")
    add("--no-pin-mem", dest="pin_mem", action="store_false", help="load into pageable host memory")
    add(
        "--save-images",
        action="store_true",
        help="write the images of a batch to the run's folder every --log-interval",
    )


_DATA_PLACE = "data folder, table, tar shard, or pattern of files (default: handwritten digits in data/digits)"
CHECKPOINT = "a checkpoint, a run's folder, hf-hub:OWNER/NAME, or local-dir:DIR in timm's format"


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        default="deit_small_patch16_224",
        metavar="NAME",
        help=f"{ANY_MODEL} (default: deit_small_patch16_224, as in the original script)",
    )
    add("--pretrained", action="store_true", help="start from the model's published weights, which are downloaded")
    add(
        "--initial-checkpoint",
        default="",
        metavar="FILE",
        help="start from the weights of this checkpoint, of any known layout",
    )
    add("--num-classes", **number("num_classes"), help="number of classes (default: as many as the data has)")
    add_grad_checkpointing(add)
    add(
        "--freeze",
        type=frozen_part,
        metavar="N|all",
        help="do not train the stem and the first N stages (0: only the stem); all: train only the classifier",
    )
    _add_distillation(add)
    add(
        "--lora", **number("lora"), help="train only LoRA adapters of rank N and the classifier (default: all weights)"
    )
    add(
        "--lora-alpha",
        **number("lora_alpha"),
        help="the adapters' output is multiplied by X / rank (default: 2 x rank)",
    )
    add(
        "--head-init-scale",
        **number("head_init_scale"),
        help="multiply the classifier's initial weights by X (default: leave them)",
    )
    add("--head-init-bias", **number("head_init_bias"), help="set the classifier's initial bias (default: leave it)")
    _add_shared(add, _MODELS)
    _add_running(add)


def add_grad_checkpointing(add: Callable[..., Any]) -> None:
    """Add whether activations are computed twice."""
    add("--grad-checkpointing", action="store_true", help="use less memory and more time: compute activations twice")


def _add_distillation(add: Callable[..., Any]) -> None:
    add(
        "--teacher",
        default="",
        metavar="NAME|FILE",
        help="learn from this model too (distillation): a model of timm, a checkpoint, or transformers:NAME for a "
        "model or folder of the transformers library",
    )
    add(
        "--distill",
        choices=("logits", "features", "token"),
        help="what to learn from the --teacher: its logits, its features, or its logits by a distillation token "
        "(default: logits)",
    )
    add("--distill-weight", **number("distill_weight"), default=1.0, help="factor of the loss against the --teacher")
    add("--task-weight", **number("task_weight"), default=1.0, help="factor of the loss against the labels")
    add(
        "--distill-temperature",
        **number("distill_temperature"),
        default=1.0,
        help="divide the logits of both models by X in the loss against the --teacher",
    )


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimizer (timm's names)").add_argument
    add("--opt", default="adamw", metavar="NAME", help="optimizer: adamw, sgd, lamb, lion, muon or another of timm")
    add("--opt-eps", **number("opt_eps"), default=1e-8, help="epsilon of the optimizer")
    add("--opt-betas", **number("opt_betas"), help="betas of the optimizer, 2 or 3 numbers (default: the optimizer's)")
    add("--momentum", **number("momentum"), default=0.9, help="momentum of sgd and other optimizers that have it")
    add("--weight-decay", **number("weight_decay"), default=0.05, help="weight decay; biases and norms have none")
    add(
        "--layer-decay",
        **number("layer_decay"),
        help="multiply the learning rate by X for each layer away from the classifier (default: 1)",
    )
    add(
        "--layer-decay-min-scale",
        **number("layer_decay_min_scale"),
        default=0.0,
        help="smallest factor that --layer-decay leads to",
    )
    add("--head-lr-scale", **number("head_lr_scale"), default=1.0, help="factor of the classifier's learning rate")
    add(
        "--opt-kwargs",
        nargs="+",
        default={},
        action=KeyValues,
        metavar="KEY=VALUE",
        help="more arguments of the optimizer, such as amsgrad=true",
    )
    add("--clip-grad", **number("clip_grad"), help="clip gradients at X, as --clip-mode says (default: no clipping)")
    add(
        "--clip-mode",
        default="norm",
        choices=("norm", "value", "agc"),
        help="clip the norm of all gradients, each value, or by adaptive gradient clipping",
    )
    add("--grad-accum-steps", **number("grad_accum_steps"), default=1, help="micro-batches of each optimizer step")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("schedule (timm's names)").add_argument
    add(
        "--sched",
        default="cosine",
        metavar="NAME",
        help="schedule of the learning rate: cosine, step, multistep, plateau, poly, tanh, wsd, rsqrt, constant, none",
    )
    add("--sched-on-updates", action="store_true", help="change the learning rate each step, not each epoch")
    add("--lr", **number("lr"), default=5e-4, help="learning rate for the global batch; it is never scaled")
    _add_noise_and_cycles(add)
    add("--warmup-lr", **number("warmup_lr"), default=1e-6, help="learning rate at the start of the warm-up")
    add("--min-lr", **number("min_lr"), default=1e-5, help="learning rate at the end of the schedule")
    add("--epochs", **number("epochs"), default=300, help="epochs of the schedule; the cool-down comes after them")
    add(
        "--stop-epoch",
        **number("stop_epoch"),
        help="stop before epoch N, counted from 0; the schedule stays that of --epochs (default: run to the end)",
    )
    add("--val-interval", **number("val_interval"), default=1, help="evaluate every N epochs, and after the last one")
    add(
        "--early-stop",
        **number("early_stop"),
        help="stop after N epochs without a better --eval-metric (default: run to the end)",
    )
    add(
        "--epoch-repeats",
        **number("epoch_repeats"),
        default=0.0,
        help="passes over the data in an epoch; 0 means 1",
    )
    add("--start-epoch", **number("start_epoch"), help="number of the first epoch (default: 0, or the checkpoint's)")
    add(
        "--decay-epochs",
        **number("decay_epochs"),
        default=30,
        help="step: epochs from one decay to the next; wsd and rsqrt: epochs of the decay at the end, or its share "
        "if below 1 (default: 30; for wsd and rsqrt a fifth)",
    )
    add("--decay-milestones", **number("decay_milestones"), default=[30, 60], help="multistep: epochs of the decays")
    add(
        "--warmup-epochs", **number("warmup_epochs"), default=5, help="epochs in which the learning rate rises to --lr"
    )
    add("--warmup-prefix", action="store_true", help="put the warm-up before --epochs instead of into them")
    add(
        "--cooldown-epochs",
        **number("cooldown_epochs"),
        default=10,
        help="epochs at --min-lr after --epochs",
    )
    add(
        "--patience-epochs",
        **number("patience_epochs"),
        default=10,
        help="plateau: epochs without a better metric before a decay",
    )
    add(
        *("--decay-rate", "--dr"),
        **number("decay_rate"),
        default=0.1,
        help="step, multistep and plateau: factor of each decay; poly: its exponent",
    )


def _add_noise_and_cycles(add: Callable[..., Any]) -> None:
    add(
        "--lr-noise",
        **number("lr_noise"),
        help="add noise to the learning rate from this share of --epochs on, or between two shares, 0 to 1 (default: "
        "no noise)",
    )
    add(
        "--lr-noise-pct", **number("lr_noise_pct"), default=0.67, help="largest noise, as a share of the learning rate"
    )
    add("--lr-noise-std", **number("lr_noise_std"), default=1.0, help="std of the noise")
    add(
        "--lr-cycle-mul", **number("lr_cycle_mul"), default=1.0, help="each cycle is X times as long as the one before"
    )
    add("--lr-cycle-limit", **number("lr_cycle_limit"), default=1, help="cycles of cosine, tanh and poly")
    add(
        "--lr-cycle-decay",
        **number("lr_cycle_decay"),
        default=0.1,
        help="each cycle starts at X times the learning rate of the one before",
    )
    add("--lr-k-decay", **number("lr_k_decay"), default=1.0, help="k of k-decay, in cosine and poly")


def _add_augmentation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("augmentation (timm's names)").add_argument
    add("--no-aug", action="store_true", help="do not augment; only resize and crop the centre")
    add(
        "--scale",
        **number("scale"),
        default=[0.08, 1.0],
        help="area of the random crop, as shares of the image",
        metavar=("MIN", "MAX"),
    )
    add(
        "--ratio",
        **number("ratio"),
        default=[3 / 4, 4 / 3],
        help="width over height of the random crop",
        metavar=("MIN", "MAX"),
    )
    add_flips(add)
    add(
        "--color-jitter",
        **number("color_jitter"),
        default=0.4,
        help="strength of random brightness, contrast and saturation; only used with --aa none",
    )
    add(
        "--aa",
        default="rand-m9-mstd0.5-inc1",
        metavar="POLICY",
        help="automatic augmentation: rand-..., augmix-..., original, v0, 3a of timm, or none",
    )
    add(
        "--aug-splits",
        **number("aug_splits"),
        default=0,
        help="put each image N times into a batch: once as it is, the others augmented; for --loss jsd; 0 is off",
    )
    add("--jsd", "--jsd-loss", action="store_true", help="the same as --loss jsd; needs --aug-splits")
    add(
        "--train-interpolation",
        default="bicubic",
        metavar="NAME",
        help="resampling in training: bicubic, bilinear, nearest, lanczos, box, hamming, or random for one of two",
    )
    add(
        "--repeated-aug",
        action="store_true",
        help="show each image three times in a row, each augmented differently; an epoch has a third of the images",
    )
    add("--reprob", **number("reprob"), default=0.25, help="probability of random erasing")
    add(
        "--remode",
        default="pixel",
        metavar="MODE",
        help="what erasing writes: pixel (noise), rand (one random colour) or const (0 after normalisation)",
    )
    add("--recount", **number("recount"), default=1, help="most areas that are erased of an image")
    add("--resplit", action="store_true", help="do not erase in the unaugmented copies of --aug-splits")
    _add_mixing(add)
    _add_loss(add)
    add("--tta", **number("tta"), default=0, help=argparse.SUPPRESS)


def add_flips(add: Callable[..., Any]) -> None:
    """Add how often training images are mirrored."""
    add("--hflip", **number("hflip"), default=0.5, help="probability of a horizontal flip; 0 for digits or text")
    add("--vflip", **number("vflip"), default=0.0, help="probability of a vertical flip")


def _add_mixing(add: Callable[..., Any]) -> None:
    add("--mixup", **number("mixup"), default=0.8, help="alpha of mixup; 0 is off")
    add("--cutmix", **number("cutmix"), default=1.0, help="alpha of cutmix; 0 is off")
    add(
        "--cutmix-minmax",
        **number("cutmix_minmax"),
        help="area that cutmix takes, as shares of the image, instead of --cutmix (default: drawn by alpha)",
        metavar=("MIN", "MAX"),
    )
    add("--mixup-prob", **number("mixup_prob"), default=1.0, help="probability of mixup or cutmix")
    add(
        "--mixup-switch-prob",
        **number("mixup_switch_prob"),
        default=0.5,
        help="probability of cutmix rather than mixup, where both are on",
    )
    add(
        "--mixup-mode",
        default="batch",
        choices=("batch", "pair", "elem"),
        help="draw a mixing ratio for each batch, pair of images, or image",
    )
    add(
        "--mixup-off-epoch",
        **number("mixup_off_epoch"),
        default=0,
        help="stop mixup and cutmix at epoch N; 0: never",
    )


def _add_loss(add: Callable[..., Any]) -> None:
    add(
        "--smoothing",
        **number("smoothing"),
        default=0.1,
        help="label smoothing; with --task multilabel each label moves towards 0.5",
    )
    add(
        "--loss",
        default="auto",
        choices=LOSSES,
        help="timm's loss. auto: ce, or bce with --task multilabel. One class: ce, jsd. Several labels: twoway, zlpr, "
        "db. Both: bce, asl (asymmetric is the same), poly",
    )
    add("--bce-loss", action="store_true", help="the same as --loss bce")
    add("--bce-sum", action="store_true", help="with bce: sum over the classes instead of their mean")
    add(
        "--bce-target-thresh",
        **number("bce_target_thresh"),
        help="with bce: targets above X become 1, others 0 (default: targets stay as they are)",
    )
    add(
        "--loss-kwargs",
        nargs="+",
        default={},
        action=KeyValues,
        metavar="KEY=VALUE",
        help="more arguments of timm's create_classification_loss, such as asl_gamma_neg=2",
    )
    add(
        "--class-weights",
        default="",
        metavar="auto|METHOD|FILE",
        help="give rare classes more weight in the loss: auto; neg_pos, inv_freq or effective_num of timm; or a csv "
        "with the columns class,weight (default: equal weights)",
    )


def _add_regularisation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("regularisation, batch norm and averaging").add_argument
    add("--drop", **number("drop"), default=0.0, help="dropout probability before the classifier")
    add("--drop-connect", **number("drop_connect"), help=argparse.SUPPRESS)
    add_drop_path(add)
    add("--drop-block", **number("drop_block"), help=argparse.SUPPRESS)
    add("--bn-tf", action="store_true", help=argparse.SUPPRESS)
    add("--bn-momentum", **number("bn_momentum"), help="momentum of batch norms (default: the model's)")
    add("--bn-eps", **number("bn_eps"), help="epsilon of batch norms (default: the model's)")
    _add_batch_norms(add)
    add("--split-bn", action="store_true", help="give each copy of --aug-splits its own batch norms")
    _add_averaging(add)


def add_drop_path(add: Callable[..., Any]) -> None:
    """Add stochastic depth."""
    add(
        "--drop-path",
        **number("drop_path"),
        default=0.1,
        help="drop-path probability of the last block (stochastic depth)",
    )


def _add_averaging(add: Callable[..., Any]) -> None:
    add("--model-ema", action="store_true", help="keep an EMA (moving average) of the weights, and evaluate it too")
    add("--model-ema-force-cpu", action="store_true", help="keep the EMA in host memory")
    add("--model-ema-decay", **number("model_ema_decay"), default=0.99996, help="decay of the EMA at each step")
    add(
        "--model-ema-warmup",
        action="store_true",
        help="start with a lower decay, at most 1 - n^(-2/3) after n steps, so that the EMA of a short run forgets "
        "the initial weights",
    )
    add(
        "--no-model-ema-warmup",
        dest="model_ema_warmup",
        action="store_false",
        default=False,
        help="use --model-ema-decay from the first step on",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    _add_record(add)
    add(
        "--eval-metric",
        default="top1",
        choices=tuple(dict.fromkeys((*EVAL_METRICS, *MULTILABEL_METRICS))),
        help="metric that decides which epoch is the best (default: top1; with --task multilabel map)",
    )
    add("--throughput", action="store_true", help="measure the images/s of the forward pass, and stop")


def _add_record(add: Callable[..., Any]) -> None:
    """Add how often a run is saved, where, and from where it continues."""
    add("--seed", **number("seed"), default=42, help="seed of all random numbers")
    add("--log-interval", **number("log_interval"), default=50, help="steps between two lines of the log")
    add(
        "--recovery-interval",
        **number("recovery_interval"),
        default=0,
        help="save a checkpoint every N steps too; 0: only at the end of each epoch",
    )
    add(
        "--keep-epochs",
        type=epochs,
        metavar="N,N",
        help="keep the checkpoints after these numbers of epochs, as milestone-N.pth.tar",
    )
    add("--checkpoint-hist", **number("checkpoint_hist"), default=10, help="keep the checkpoints of the best N epochs")
    add("--output", default="", metavar="DIR", help="folder in which runs have their folders (default: output/train)")
    add(
        "--experiment",
        default="",
        metavar="NAME",
        help="name of this run's folder (default: time, model and image size)",
    )
    add("--overwrite", action="store_true", help="replace an earlier run in the same folder")
    add("--resume", default="", metavar="FILE", help="continue from this checkpoint, in a new folder")
    add("--no-resume-opt", action="store_true", help="with --resume: do not load the optimizer and the schedule")
    add("--auto-resume", action="store_true", help="continue from the newest undamaged checkpoint in the run's folder")
    add(
        "--accept-changed-data",
        action="store_true",
        help="continue this once, though the classes or files differ from those that the checkpoint notes",
    )
    add("--log-tensorboard", action="store_true", help="write TensorBoard events to the run's folder")
    add("--log-wandb", action="store_true", help="log to Weights & Biases")
    add(
        "--dry-run", action="store_true", help="measure the memory and time of a step in about a minute; write nothing"
    )
    add_json(add)


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, default_config: str | Path | None = None
) -> argparse.Namespace:
    """Parse flags, and in front of them a YAML recipe (``-c FILE``), turned into the words of a command line.

    FILE may also be the name of a recipe that comes with DaViT (`davit.recipes`).

    Args:
        default_config: the recipe used where neither a recipe nor a data folder is given.

    Raises:
        ValueError: the recipe cannot be read, has an unknown key (the nearest is offered) or a value that its
            flag does not take.
    """
    args = parser.parse_args(argv)
    # without -c, the --config of a command is that of a detector or segmentor
    config = getattr(args, "config", None) if "-c" in parser._option_string_actions else None
    if config is None and default_config is not None and args.data_dir is None and not args.dataset:
        config = str(default_config)
    if config is not None:
        words = _recipe_words(parser, _recipe_file(config))
        # --config ends the recipe's last list
        args = parser.parse_args([*words, f"--config={config}", *(sys.argv[1:] if argv is None else argv)])
    return args


def _recipe_file(config: str) -> Path:
    try:
        return recipes.find(config, "recipe")
    except ValueError as error:
        raise ValueError(f"-c: the recipe {error}") from None


def given_flags(make_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> set[str]:
    """Find the names of the arguments that a command line gives, itself or by its recipe (``-c FILE``)."""
    parser = make_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parse_with_config(parser, argv)))


_MAY_BE_NULL = ("aa", "train_interpolation")  # null: none, and the default


def _recipe_words(parser: argparse.ArgumentParser, path: Path) -> list[str]:
    """Turn a recipe into words; what no word can say (null, an empty list, data_dir) becomes the parser's default."""
    flags: dict[str, list[argparse.Action]] = {}
    for flag in parser._actions:
        flags.setdefault(flag.dest, []).append(flag)
    del flags["help"]
    words = []
    for key, value in _read_recipe(path).items():
        name = str(key).replace("-", "_")
        if name == "config":  # in an args.yaml: the recipe of the run that wrote it
            continue
        if name not in flags:
            near = nearest(name, flags, cutoff=0.0)
            raise ValueError(f"the recipe {path} has an unknown key {short(key)}; did you mean {near[0]!r}?")
        flag = flags[name][0]
        is_empty = value is None or (value in ([], {}) and flag.nargs == "+")
        if is_empty and flag.default == argparse.SUPPRESS:  # not given
            continue
        if value is None and flag.default and name not in _MAY_BE_NULL:
            raise ValueError(
                f"the recipe {path} has {key}: null, but a value is needed; leave the line out for the "
                f"default, {flag.default}."
            )
        if is_empty:
            parser.set_defaults(**{name: _nothing_for(flag, value)})
            continue
        if not flag.option_strings:
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise ValueError(
                    f"the recipe {path} has {key}: {short(value)}, but the name of a folder or file is needed."
                )
            parser.set_defaults(**{name: str(value)})
            continue
        parser.exit_on_error = False
        try:
            said = _words(flags[name], value)
            parser.parse_known_args(said)
        except (argparse.ArgumentError, ValueError) as error:
            raise ValueError(f"the recipe {path} has {key}: {short(value)}. {error}") from None
        finally:
            parser.exit_on_error = True
        words += said
    return words


def _nothing_for(flag: argparse.Action, value: Any) -> Any:
    """Return what an empty value of a recipe means: none of a list, or what no flag means."""
    if isinstance(flag, KeyValues):
        return {}
    if value is None:
        return None if flag.dest in _MAY_BE_NULL else flag.default
    return [] if flag.default else None


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(read_small(path, MOST_YAML).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"the recipe {path} does not exist (-c FILE).") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"the recipe {path} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict | None):
        raise ValueError(f"the recipe {path} is not a list of 'flag: value' lines.")
    return values or {}


def _words(flags: Sequence[argparse.Action], value: Any) -> list[str]:
    """Say a recipe's value as words of a command line.

    Args:
        flags: those that set one argument: one, or a switch and its opposite.
    """
    flag = flags[0]
    name = max(flag.option_strings, key=len)
    if flag.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError("A switch is true or false.")
        return [switch.option_strings[-1] for switch in flags if switch.const == value]
    if isinstance(flag, KeyValues):
        if not isinstance(value, dict):
            raise ValueError("Here 'name: value' lines are needed.")
        return [name, *(f"{key}={_as_yaml(item)}" for key, item in value.items())]
    values = value if isinstance(value, list) and flag.nargs not in (None, "?") else [value]
    if any(isinstance(item, bool) for item in values):
        raise ValueError("True and false are for switches; put quotes around the word if it is meant.")
    if isinstance(flag.nargs, int) and len(values) != flag.nargs:
        raise ValueError(f"{flag.nargs} values are needed.")
    if any(isinstance(item, dict | list | set | tuple | None) for item in values):
        raise ValueError("A word or a number is needed." if flag.nargs is None else "Words or numbers are needed.")
    words = [_as_word(item) if flag.type is not None else str(item) for item in values]
    return [f"{name}={words[0]}"] if flag.nargs in (None, "?") else [name, *words]


def _as_word(number: Any) -> str:
    """Write a recipe's number without an exponent: argparse takes -1e-5 for a flag."""
    with suppress(InvalidOperation):
        return format(Decimal(str(number)), "f").removesuffix(".0")
    return str(number)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def fit_decay(args: argparse.Namespace, given: Collection[str]) -> None:
    """Let the decay of 'wsd' and 'rsqrt' take a share of any number of epochs, unless --decay-epochs is given.

    Where the rate changes between epochs alone, it takes two at least: the first of them still has the full rate.
    """
    if args.sched in ("wsd", "rsqrt") and "decay_epochs" not in given:
        length = args.epochs - (0 if args.warmup_prefix else args.warmup_epochs)
        is_share = args.sched_on_updates or round(_DECAY_SHARE * length) >= _LEAST_DECAY
        args.decay_epochs = _DECAY_SHARE if is_share else float(max(1, min(_LEAST_DECAY, length)))


def fit_metric(args: argparse.Namespace, given: Collection[str]) -> None:
    """Judge epochs by mAP where an image has several labels, unless --eval-metric is given."""
    if args.task == MULTILABEL and "eval_metric" not in given:
        args.eval_metric = "map"


def model_asked_for(args: argparse.Namespace, given: Collection[str]) -> str | None:
    """Return the model that `model_flags` ask for; None leaves it to the checkpoint.

    Args:
        given: as `given_flags` finds them; the default of --model is the original's and no wish.

    Raises:
        ValueError: both --pretrained and --checkpoint say which weights to take, or nothing says it.
    """
    if args.pretrained and args.checkpoint:
        raise ValueError(f"--pretrained and --checkpoint {args.checkpoint} exclude each other; give one of them.")
    if "model" in given:
        return str(args.model)
    if not args.checkpoint:  # a model that nobody named would be fetched, and its answers taken for those of one's own
        raise ValueError("no model is named: give --checkpoint FILE, or --model NAME for published weights.")
    return None


def say_no_longer(answers: Mapping[str, str], given: Collection[str]) -> None:
    """Log one line for each flag that was given and does nothing, or something else, today."""
    for name, instead in answers.items():
        if name in given and name != "local_rank":  # launchers add that one
            log.warning("--%s: %s.", name.replace("_", "-"), instead)


#: Flags of train.py that only do something beside another one.
_NEEDED = {
    "lora_alpha": "lora",
    "torchcompile_mode": "torchcompile",
    "distill_weight": "teacher",
    "task_weight": "teacher",
    "distill_temperature": "teacher",
    "layer_decay_min_scale": "layer_decay",
}
_NEED_SIZES = ("size_schedule", "size_multiple")


def say_unused(args: argparse.Namespace) -> None:
    """Log one line for each flag whose value does nothing because the flag that it goes with is not given."""
    parser = train_parser()
    for name, needed in _NEEDED.items():
        if getattr(args, name) != parser.get_default(name) and not getattr(args, needed):
            flag, other = (f"--{one.replace('_', '-')}" for one in (name, needed))
            log.warning("%s %s does nothing without %s; give both, or leave it out.", flag, getattr(args, name), other)
    for name in _NEED_SIZES:
        if getattr(args, name) is not None and len(listed(args.img_size)) < 2:
            flag = f"--{name.replace('_', '-')} {getattr(args, name)}"
            log.warning("%s does nothing with one size; give several, as --img-size 128,224, or leave it out.", flag)


# ---- the flags of validate.py ----

RESULT_FORMATS = ("csv", "json")

VALIDATE_NO_LONGER = {
    **NO_LONGER,
    "tf_preprocessing": "TensorFlow is not used; the images go through the same transform as without it",
    "legacy_jit": "PyTorch has one TorchScript executor today; --torchscript runs on it",
    "num_gpu": "each process uses one GPU; torchrun --nproc_per_node=N validate.py ... uses N",
}


def training_flags() -> argparse.ArgumentParser:
    """Make a parent of parsers: what every training has, whatever it learns. The recipe's flag is among them."""
    parser = argparse.ArgumentParser(add_help=False)
    _add_config(parser)
    _add_batches(parser.add_argument_group("batches").add_argument)
    _add_optimizer(parser)
    _add_schedule(parser)
    _add_averaging(parser.add_argument_group("averaging").add_argument)
    _add_record(parser.add_argument_group("run").add_argument)
    return parser


def model_flags(num_classes: int | None = None, *, checkpoint: bool = True) -> argparse.ArgumentParser:
    """Make a parent of parsers: which model, which of its weights, and how it runs (`ModelOptions`).

    Args:
        num_classes: the default of --num-classes; that of predict.py is the original's and is not used unless given.
        checkpoint: with --checkpoint, --pretrained and --temperature; a command whose argument says the weights, and
            that gives no probabilities, goes without.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("model").add_argument
    _add_model_name(add, "dpn92")
    if checkpoint:
        add(
            "--checkpoint",
            default="",
            metavar="FILE",
            help="weights: a checkpoint of any known layout, a run's folder, or an exported model (default: the "
            "published weights of --model)",
        )
        add("--pretrained", action="store_true", help="use the published weights of --model, which are downloaded")
        add(
            "--task",
            choices=TASKS,
            help="classification: one class for each image; multilabel: any number (default: the checkpoint's)",
        )
        add(
            "--threshold",
            **number("threshold"),
            help="multilabel: name the classes with this probability or more (default: the one that validate.py "
            "--fit-threshold wrote beside the checkpoint, else 0.5)",
        )
        add_temperature(add)
    _add_ema(add)
    add(
        "--num-classes",
        **number("num_classes"),
        default=num_classes,
        help="number of classes (default: the checkpoint's, else the model's)",
    )
    add("--no-test-pool", action="store_true", help="do not pool larger images in windows; pool them as in training")
    _add_shared(add)
    add("--num-gpu", **number("num_gpu"), default=1, help=argparse.SUPPRESS)
    return parser


def add_temperature(add: Callable[..., Any]) -> None:
    """Add what logits are divided by."""
    add(
        "--temperature",
        **number("temperature"),
        help="divide the logits by X (default: the value that validate.py --fit-temperature wrote beside the "
        "checkpoint, else 1)",
    )


def _add_model_name(add: Callable[..., Any], default: str = "") -> None:
    add("--model", "-m", default=default, metavar="NAME", help=f"{ANY_MODEL} (default: the checkpoint's)")


def _add_ema(add: Callable[..., Any]) -> None:
    add(
        "--ema",
        choices=EMA_CHOICES,
        default="auto",
        help="use the EMA of the weights: if the checkpoint has one (auto), always, or never",
    )


def running_flags() -> argparse.ArgumentParser:
    """Make a parent of parsers: which weights of the checkpoints that a command names, and how their models run."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("model").add_argument
    _add_ema(add)
    _add_shared(add)
    return parser


def data_flags() -> argparse.ArgumentParser:
    """Make a parent of parsers: which data set, and its two splits."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("data").add_argument
    _add_dataset(add)
    _add_splits(add)
    return parser


def export_flags() -> argparse.ArgumentParser:
    """Make a parent of parsers: which model, and how images are prepared for it, where none are read."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("model").add_argument
    _add_model_name(add)
    _add_ema(add)
    _add_pooling(add)
    add_model_kwargs(add)
    _add_img_size(add)
    _add_crop(add)
    return parser


def add_class_map(add: Callable[..., Any]) -> None:
    """Add what all commands that name classes call alike."""
    named = "class names: a file with one on a line, or a data folder that has them (default: the checkpoint's)"
    add("--class-map", default="", metavar="FILE|DIR", help=named)


def _add_crop(add: Callable[..., Any]) -> None:
    _add_normalisation(add, _CHECKPOINTS)
    add(
        "--crop-mode",
        choices=("center", "squash", "border"),
        help="an image that is not square: center crops it, squash changes its shape, border pads it (default: the "
        "checkpoint's, else the model's)",
    )


def picture_flags(workers: int | None = 4) -> argparse.ArgumentParser:
    """Make a parent of parsers: how images are prepared (`ModelOptions`) and read.

    Args:
        workers: the default of --workers; None for a command that has no loader, and so no flags of one.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("images").add_argument
    _add_decoding(add)
    _add_crop(add)
    if workers is None:
        return parser
    add_batch_size(add, 256)
    add_workers(add, workers)
    add("--log-freq", **number("log_freq"), default=10, help="batches between two lines of the log")
    return parser


def add_batch_size(add: Callable[..., Any], default: int) -> None:
    """Add how many images go through a model at once."""
    add(
        *("-b", "--batch-size"),
        **number("batch_size"),
        default=default,
        help="images that are computed at once; fewer where memory runs out",
    )


def validate_parser() -> argparse.ArgumentParser:
    """Make the parser of validate.py."""
    parser = Parser(
        prog=command_name(),
        parents=[model_flags(), picture_flags()],
        usage="%(prog)s [DIR] [-c FILE] [flags]",
        description="Evaluate a checkpoint or a published model on a data set, or several of them: --checkpoint may "
        "be a folder of checkpoints; --model may be a wildcard such as 'DaViT_*', the word all, or a text file with a "
        "name on each line, for published weights.",
        epilog="Exit status: 0 done, 1 some of several evaluations failed (the results say which) or an error "
        "of this program, 2 a mistake in the flags, the checkpoint or the data.",
    )
    _add_config(parser)
    add = parser.add_argument_group("data").add_argument
    add("data", nargs="?", metavar="DIR", help=_DATA_PLACE)
    _add_dataset(add)
    add_split(add)
    add_pin_mem(add)
    add(
        "--real-labels",
        default="",
        metavar="FILE",
        help=f"score ImageNet's validation images by the ReaL labels: their JSON file, or {BUNDLED_REAL} for the copy "
        "in timm (default: the labels of the data)",
    )
    add(
        "--valid-labels",
        default="",
        metavar="FILE",
        help="let only these classes compete: a file with one class index on a line (default: all classes)",
    )
    add("--tf-preprocessing", action="store_true", help=argparse.SUPPRESS)
    add = parser.add_argument_group("run").add_argument
    add("--use-ema", action="store_true", help="the same as --ema auto, which is the default")
    add(
        "--test-time-pool",
        "--test-pool",
        action="store_true",
        help="stop with an error if test-time pooling is not possible. It is on by default for images larger than "
        "those of the training, as in the original: the classifier sees windows of the training's size, the mean "
        "and the maximum of their logits are averaged, and the crop is the whole image",
    )
    add("--legacy-jit", action="store_true", help=argparse.SUPPRESS)
    _add_running(add)
    _add_results(parser.add_argument_group("results").add_argument)
    return parser


def _add_results(add: Callable[..., Any]) -> None:
    """Add what validate.py writes."""
    add_json(add)
    form = "as csv or JSON (--results-format), after each evaluation"
    add_output(add, "--results-file", dest="results_file", form=form)
    add_results_format(add)
    add(
        "--report",
        default="",
        metavar="DIR",
        help="write tables of the results of each class and image, the confusion matrix, the worst images of each "
        "class, and the calibration into this folder",
    )
    add("--overwrite", action="store_true", help="with --report: replace an earlier report in DIR")
    add(
        "--slices",
        default="",
        metavar="FILE",
        help="print the accuracy for each value of the other columns of this csv, which has a column path",
    )
    add(
        "--fit-temperature",
        nargs="?",
        const="all",
        choices=FITTED_ON,
        help="find the temperature that calibrates the probabilities, and write it beside the checkpoint. Use images "
        "that the training has not seen: all is the default; half fits on one half and tests on the other (default: "
        "do not fit)",
    )
    add(
        "--fit-threshold",
        nargs="?",
        const=THRESHOLDS[0],
        choices=THRESHOLDS,
        help="multilabel: find the threshold of the best macro F1, and write it beside the checkpoint. Use images "
        "that the training has not seen: all, without a value, is one for all classes; class is one for each "
        "(default: do not fit)",
    )


def add_pin_mem(add: Callable[..., Any]) -> None:
    """Add where batches are loaded, for commands that do not pin them by default."""
    add("--pin-mem", action="store_true", help="load into page-locked host memory")


def add_results_format(add: Callable[..., Any]) -> None:
    """Add the form of the file of results."""
    add(
        "--results-format",
        choices=RESULT_FORMATS,
        help="form of that file (default: by its suffix, else csv)",
    )
