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
from ..parsing import Parser
from ..parsing.results import add_json, add_output
from ..text import nearest

log = logging.getLogger(__name__)

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
        description="Train DaViT, or any model that timm knows, on an image folder.",
        usage="%(prog)s [DIR] [-c FILE] [flags]",  # all 130 of them would hide the error below
        epilog="Exit status: 0 done, 2 a mistake in the flags or the data, 3 a non-finite loss, 4 the disk is full, "
        "75 interrupted and saved (run again with --auto-resume).",
    )
    _add_config(parser)
    _add_data(parser)
    _add_model(parser)
    _add_optimizer(parser)
    _add_schedule(parser)
    _add_augmentation(parser)
    _add_regularisation(parser)
    _add_run(parser)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    ours = ", ".join(recipes.names_of("recipe"))
    overridden = f"YAML recipe, a file or one of {ours}; flags on the command line override it"
    parser.add_argument("-c", "--config", metavar="FILE", help=overridden)


def _add_shared(add: Callable[..., Any]) -> None:
    """Add what train.py, validate.py and predict.py call alike: how a model is made and where it runs."""
    add("--gp", metavar="POOL", help="global pooling: avg, max, avgmax")
    add("--model-kwargs", nargs="+", default={}, action=KeyValues, metavar="KEY=VALUE", help="to the constructor")
    _add_device(add)


def _add_device(add: Callable[..., Any]) -> None:
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    add("--amp", action="store_true", help="mixed precision")
    add(
        "--amp-dtype",
        choices=tuple(AMP_DTYPES),
        help="default: fp16 on CUDA; else bf16, or float32 where the CPU has no instructions for it",
    )


def _add_running(add: Callable[..., Any]) -> None:
    """Add what train.py and validate.py call alike: how a model runs."""
    add("--torchcompile", nargs="?", const="inductor", type=backend, metavar="BACKEND", help="torch.compile the model")
    add("--torchcompile-mode", choices=COMPILE_MODES, help="mode of torch.compile, which --torchcompile asks for")
    add(
        "--model-dtype",
        choices=MODEL_DTYPES,
        help="dtype of weights and images, without mixed precision; default: float32",
    )
    add("--torchscript", action="store_true", help="torch.jit.script the model")
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--native-amp", action="store_true", help="the same as --amp")
    add("--apex-amp", action="store_true", help=argparse.SUPPRESS)
    add("--local_rank", "--local-rank", **number("local_rank"), default=0, help=argparse.SUPPRESS)


def _add_dataset(add: Callable[..., Any]) -> None:
    """Add what train.py and validate.py call alike: which data set."""
    add(
        "--dataset",
        "-d",
        default="",
        help="'' for what DIR holds; or folder, csv, parquet, wds, torch/NAME, hfds/NAME",
    )
    add("--class-map", default="", metavar="FILE", help="class names and their indices")
    add("--input-key", default="", metavar="NAME", help="column, or ending in a shard, of the images")
    add("--target-key", default="", metavar="NAME", help="column, or ending or JSON field in a shard, of the classes")
    add("--dataset-download", action="store_true", help="let a torch/NAME data set download itself")
    add("--no-prefetcher", action="store_true", help=argparse.SUPPRESS)
    add("--skip-bad-images", action="store_true", help="skip and list unreadable images instead of stopping")


def _add_splits(add: Callable[..., Any]) -> None:
    add("--train-split", default="train", help="name of the training split")
    add("--val-split", default="validation", help="name of the validation split (val is found too)")


def add_picture_size(add: Callable[..., Any]) -> None:
    """Add the size of a detector's images."""
    add(
        "--img-size",
        type=sizes,
        default=640,
        metavar="N",
        help=f"side in pixels (default %(default)s){_SEVERAL_SIZES}",
    )


def add_model_of_run(add: Callable[..., Any]) -> None:
    """Add where and in which numbers a detector is trained."""
    _add_device(add)
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--dist-bn", default="", choices=("", "broadcast", "reduce"), help="share batch-norm statistics each epoch")
    add("--sync-bn", action="store_true", help="synchronised batch norm")


_SEVERAL_SIZES = "; several, as 128,160,224: of training images, which grow to the last (--size-schedule)"


def _add_decoding(add: Callable[..., Any], *, has_schedule: bool = False) -> None:
    """Add what all commands call alike: the size and bands of images, and the range of values of over 8 bits.

    Args:
        has_schedule: there may be several sizes.
    """
    default = "side in pixels; default: the checkpoint's, else the model's"
    if has_schedule:
        add("--img-size", type=sizes, metavar="N", help=f"{default}{_SEVERAL_SIZES}")
    else:
        add("--img-size", **number("img_size"), help=default)
    add("--input-size", **number("input_size"), metavar=("C", "H", "W"), help="bands, height and width, instead")
    add("--in-chans", **number("in_chans"), metavar="C", help="bands of the images; default: 3, red, green and blue")
    add(
        "--bit-depth",
        **number("bit_depth"),
        metavar="N",
        help="divide values stored with more than 8 bits by 2^N - 1; default: by the range of their type",
    )
    add(
        "--percentiles",
        **number("percentiles"),
        metavar=("LOW", "HIGH"),
        help="instead of --bit-depth: stretch such an image from one of its percentiles to the other",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "data_dir",
        nargs="?",
        metavar="DIR",
        help="data folder, table, shard or pattern; without one: handwritten digits",
    )
    add(
        "--task",
        default=CLASSIFICATION,
        choices=TASKS,
        help="multilabel: an image has any number of labels, as a csv with path,labels (; between them) or columns "
        "of 0 and 1 has them (default %(default)s)",
    )
    add("--sampler", default=SAMPLERS[0], choices=SAMPLERS, help="balanced: each class is seen equally often")
    _add_dataset(add)
    _add_splits(add)
    _add_decoding(add, has_schedule=True)
    add_growth(add)
    add("--crop-pct", **number("crop_pct"), help="share of the side that the evaluation crop keeps")
    add("--mean", **number("mean"), help="mean of each band, 0 to 1; default: the model's, else 0.5")
    add("--std", **number("std"), help="standard deviation of each band; default: likewise")
    add("--interpolation", default="", help="resampling in evaluation; default: the model's")
    _add_batches(add)
    add("--use-multi-epochs-loader", action="store_true", help=argparse.SUPPRESS)


def add_growth(add: Callable[..., Any]) -> None:
    """Add how training images grow."""
    add(
        "--size-schedule",
        choices=SIZE_SCHEDULES,
        help="how images grow over --epochs: evenly (default), or in as many equal parts as there are sizes",
    )
    add("--size-multiple", **number("size_multiple"), metavar="N", help="sizes are rounded to it; default: the stride")


def _add_batches(add: Callable[..., Any]) -> None:
    """Add how many images a step has, and how they are loaded."""
    add(
        "-b",
        "--batch-size",
        type=micro_batch,
        default=64,
        metavar="N|auto",
        help="images for each process and micro-batch; auto: as many of --global-batch as memory holds",
    )
    add(
        "--global-batch",
        **number("global_batch"),
        metavar="N",
        help="images of a step over all processes; --grad-accum-steps follows from it",
    )
    multiplier = "evaluation batch over the training one"
    add(
        "-vb",
        "--validation-batch-size-multiplier",
        **number("validation_batch_size_multiplier"),
        default=1,
        help=multiplier,
    )
    add(
        "-j", "--workers", **number("workers"), default=10, help="loader processes, at most as many as there are cores"
    )
    add("--pin-mem", action="store_true", default=True, help="page-locked host memory (the default)")
    add("--no-pin-mem", dest="pin_mem", action="store_false", help="pageable host memory")
    add("--save-images", action="store_true", help="save the images of a batch at each log interval")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        default="deit_small_patch16_224",
        help="a DaViT variant (DaViT_tiny ...), or any model of timm's; the default is the original script's",
    )
    add("--pretrained", action="store_true", help="start from published weights")
    add("--initial-checkpoint", default="", metavar="FILE", help="start from these weights, of any known layout")
    add("--num-classes", **number("num_classes"), help="default: as many as the data has")
    add("--grad-checkpointing", action="store_true", help="less memory, more time")
    add(
        "--freeze",
        type=frozen_part,
        metavar="N|all",
        help="train neither the stem nor the first N stages (0: the stem alone), or nothing but the classifier",
    )
    add(
        "--teacher",
        default="",
        metavar="NAME|FILE",
        help="distil this model: one of timm's, a checkpoint, or transformers:NAME, a model of that library (or its "
        "folder)",
    )
    add("--distill", choices=("logits", "features", "token"), help="what of the --teacher is learnt; default: logits")
    add("--distill-weight", **number("distill_weight"), default=1.0, help="factor on the loss against the teacher")
    add("--task-weight", **number("task_weight"), default=1.0, help="factor on the loss against the labels")
    add("--distill-temperature", **number("distill_temperature"), default=1.0, help="divisor of both models' logits")
    add(
        "--lora",
        **number("lora"),
        metavar="R",
        help="train only the classifier and adapters of rank R (LoRA)",
    )
    add("--lora-alpha", **number("lora_alpha"), help="factor on the adapters, times R; default: 2 R")
    add("--head-init-scale", **number("head_init_scale"), help="factor on the classifier's first weights")
    add("--head-init-bias", **number("head_init_bias"), help="the classifier's first biases")
    _add_shared(add)
    _add_running(add)


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimizer (timm's names)").add_argument
    add("--opt", default="adamw", help="optimizer")
    add("--opt-eps", **number("opt_eps"), default=1e-8, help="epsilon")
    add("--opt-betas", **number("opt_betas"), help="betas")
    add("--momentum", **number("momentum"), default=0.9, help="momentum")
    add("--weight-decay", **number("weight_decay"), default=0.05, help="weight decay, on matrices alone")
    add("--layer-decay", **number("layer_decay"), help="factor on the learning rate for each layer towards the input")
    add("--layer-decay-min-scale", **number("layer_decay_min_scale"), default=0.0, help="the least of these factors")
    add("--head-lr-scale", **number("head_lr_scale"), default=1.0, help="factor on the classifier's learning rate")
    add("--opt-kwargs", nargs="+", default={}, action=KeyValues, metavar="KEY=VALUE", help="to the optimizer")
    add("--clip-grad", **number("clip_grad"), metavar="NORM", help="gradient clipping; default: none")
    add("--clip-mode", default="norm", choices=("norm", "value", "agc"), help="how to clip")
    add("--grad-accum-steps", **number("grad_accum_steps"), default=1, help="micro-batches for each optimizer step")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("schedule (timm's names)").add_argument
    add("--sched", default="cosine", help="cosine, step, multistep, plateau, poly, tanh, ...")
    add("--sched-on-updates", action="store_true", help="change the rate at each step rather than each epoch")
    add("--lr", **number("lr"), default=5e-4, help="learning rate, for the global batch as it is (never scaled)")
    add("--lr-noise", **number("lr_noise"), help="epochs (as shares) between which the rate is noisy")
    add("--lr-noise-pct", **number("lr_noise_pct"), default=0.67, help="limit of the noise")
    add("--lr-noise-std", **number("lr_noise_std"), default=1.0, help="standard deviation of the noise")
    add("--lr-cycle-mul", **number("lr_cycle_mul"), default=1.0, help="length of a cycle over the one before")
    add("--lr-cycle-limit", **number("lr_cycle_limit"), default=1, help="number of cycles")
    add("--lr-cycle-decay", **number("lr_cycle_decay"), default=0.1, help="rate of a cycle over the one before")
    add("--lr-k-decay", **number("lr_k_decay"), default=1.0, help="k-decay of cosine and poly")
    add("--warmup-lr", **number("warmup_lr"), default=1e-6, help="rate at the start of the warm-up")
    add("--min-lr", **number("min_lr"), default=1e-5, help="rate at the end")
    add("--epochs", **number("epochs"), default=300, help="epochs of the schedule, the cool-down not counted")
    add("--stop-epoch", **number("stop_epoch"), help="stop before this epoch, with the schedule of all of them")
    add(
        "--val-interval",
        **number("val_interval"),
        default=1,
        metavar="N",
        help="evaluate after every N epochs, and after the last",
    )
    add(
        "--early-stop",
        **number("early_stop"),
        metavar="PATIENCE",
        help="stop after so many epochs without a better --eval-metric",
    )
    add("--epoch-repeats", **number("epoch_repeats"), default=0.0, help="passes over the data in an epoch; 0 is one")
    add("--start-epoch", **number("start_epoch"), help="count epochs from here")
    add(
        "--decay-epochs",
        **number("decay_epochs"),
        default=30,
        help="epochs between steps of 'step'; or of the decay at the end of 'wsd' and 'rsqrt', or its share below 1, "
        "for which the default is a fifth",
    )
    add("--decay-milestones", **number("decay_milestones"), default=[30, 60], help="epochs at which 'multistep' steps")
    add("--warmup-epochs", **number("warmup_epochs"), default=5, help="epochs of warm-up")
    add("--warmup-prefix", action="store_true", help="begin the schedule after the warm-up")
    add("--cooldown-epochs", **number("cooldown_epochs"), default=10, help="epochs at --min-lr after the schedule")
    add("--patience-epochs", **number("patience_epochs"), default=10, help="patience of 'plateau'")
    add(
        "--decay-rate", "--dr", **number("decay_rate"), default=0.1, help="factor of 'step', 'multistep' and 'plateau'"
    )


def _add_augmentation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("augmentation (timm's names)").add_argument
    add("--no-aug", action="store_true", help="no augmentation at all")
    add("--scale", **number("scale"), default=[0.08, 1.0], help="area of the random crop", metavar=("MIN", "MAX"))
    add("--ratio", **number("ratio"), default=[3 / 4, 4 / 3], help="shape of the random crop", metavar=("MIN", "MAX"))
    add("--hflip", **number("hflip"), default=0.5, help="probability of a horizontal flip")
    add("--vflip", **number("vflip"), default=0.0, help="probability of a vertical flip")
    add("--color-jitter", **number("color_jitter"), default=0.4, help="strength, where no --aa replaces it")
    add("--aa", default="rand-m9-mstd0.5-inc1", help="AutoAugment policy, or none")
    add("--aug-splits", **number("aug_splits"), default=0, help="augmented copies in a batch, for --jsd")
    add("--jsd", "--jsd-loss", action="store_true", help="Jensen-Shannon divergence between the splits: --loss jsd")
    add("--train-interpolation", default="bicubic", help="resampling in training; random mixes")
    add("--repeated-aug", action="store_true", help="three augmentations of an image in an epoch")
    add("--reprob", **number("reprob"), default=0.25, help="probability of random erasing")
    add("--remode", default="pixel", help="what erasing writes: pixel, rand, const")
    add("--recount", **number("recount"), default=1, help="areas erased")
    add("--resplit", action="store_true", help="no erasing in the clean split")
    add("--mixup", **number("mixup"), default=0.8, help="mixup alpha")
    add("--cutmix", **number("cutmix"), default=1.0, help="cutmix alpha")
    add(
        "--cutmix-minmax",
        **number("cutmix_minmax"),
        help="limits of the cutmix area, instead of alpha",
        metavar=("MIN", "MAX"),
    )
    add("--mixup-prob", **number("mixup_prob"), default=1.0, help="probability of either")
    add(
        "--mixup-switch-prob",
        **number("mixup_switch_prob"),
        default=0.5,
        help="probability of cutmix where both are on",
    )
    add("--mixup-mode", default="batch", choices=("batch", "pair", "elem"), help="what shares a mixing ratio")
    add("--mixup-off-epoch", **number("mixup_off_epoch"), default=0, help="epoch from which neither is used; 0: never")
    add("--smoothing", **number("smoothing"), default=0.1, help="label smoothing; of several labels each towards 0.5")
    add(
        "--loss",
        default="auto",
        choices=LOSSES,
        help="timm's loss; auto: ce, with several labels bce; asl (asymmetric) and poly are for both, jsd for one "
        "class, twoway, zlpr and db for several labels",
    )
    add("--bce-loss", action="store_true", help="the same as --loss bce")
    add("--bce-sum", action="store_true", help="with bce: the sum over the classes, not their mean")
    add("--bce-target-thresh", **number("bce_target_thresh"), help="with bce: targets above it are 1, others 0")
    add(
        "--loss-kwargs",
        nargs="+",
        default={},
        action=KeyValues,
        metavar="KEY=VALUE",
        help="to timm's create_classification_loss, such as asl_gamma_neg=2",
    )
    add(
        "--class-weights",
        default="",
        metavar="auto|METHOD|FILE",
        help="weigh rare classes more in the loss: auto, timm's neg_pos, inv_freq or effective_num, or a csv with "
        "class,weight",
    )
    add("--tta", **number("tta"), default=0, help=argparse.SUPPRESS)


def _add_regularisation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("regularisation, batch norm and averaging").add_argument
    add("--drop", **number("drop"), default=0.0, help="dropout before the head")
    add("--drop-connect", **number("drop_connect"), help=argparse.SUPPRESS)
    add("--drop-path", **number("drop_path"), default=0.1, help="stochastic depth")
    add("--drop-block", **number("drop_block"), help=argparse.SUPPRESS)
    add("--bn-tf", action="store_true", help=argparse.SUPPRESS)
    add("--bn-momentum", **number("bn_momentum"), help="of batch norms, in models that have them")
    add("--bn-eps", **number("bn_eps"), help="of batch norms")
    add("--sync-bn", action="store_true", help="synchronised batch norm")
    add("--dist-bn", default="", choices=("", "broadcast", "reduce"), help="share batch-norm statistics each epoch")
    add("--split-bn", action="store_true", help="batch norms of their own for the splits")
    _add_averaging(add)


def _add_averaging(add: Callable[..., Any]) -> None:
    add("--model-ema", action="store_true", help="keep a moving average of the weights")
    add("--model-ema-force-cpu", action="store_true", help="keep it in host memory")
    add("--model-ema-decay", **number("model_ema_decay"), default=0.99996, help="its decay for each step")
    add(
        "--model-ema-warmup",
        action="store_true",
        help="begin with a low decay: after n steps at most 1 - n^(-2/3), so that short runs forget their start",
    )
    add(
        "--no-model-ema-warmup",
        dest="model_ema_warmup",
        action="store_false",
        default=False,
        help="average with --model-ema-decay from the first step on",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    _add_record(add)
    add(
        "--eval-metric",
        default="top1",
        choices=tuple(dict.fromkeys((*EVAL_METRICS, *MULTILABEL_METRICS))),
        help="what the best is judged by; default: top1, with several labels map",
    )
    add("--throughput", action="store_true", help="measure images/s of the model and stop")


def _add_record(add: Callable[..., Any]) -> None:
    """Add how often a run is saved, where, and from where it continues."""
    add("--seed", **number("seed"), default=42, help="of everything random")
    add("--log-interval", **number("log_interval"), default=50, help="steps between two lines of the log")
    add(
        "--recovery-interval",
        **number("recovery_interval"),
        default=0,
        help="steps between two saved states; 0: each epoch",
    )
    add(
        "--keep-epochs",
        type=epochs,
        metavar="N,N",
        help="keep the state after so many epochs for good, as milestone-N.pth.tar",
    )
    add("--checkpoint-hist", **number("checkpoint_hist"), default=10, help="checkpoints kept, the best ones")
    add("--output", default="", metavar="DIR", help="folder for runs; default: output/train")
    add("--experiment", default="", metavar="NAME", help="folder of this run; default: time, model, size")
    add("--overwrite", action="store_true", help="replace an earlier run in the same folder")
    add("--resume", default="", metavar="FILE", help="continue from this state")
    add("--no-resume-opt", action="store_true", help="with --resume: weights and epoch alone")
    add("--auto-resume", action="store_true", help="continue from the newest whole state in the run's folder")
    add(
        "--accept-changed-data", action="store_true", help="continue, now, though classes or files are not the state's"
    )
    add("--log-tensorboard", action="store_true", help="write TensorBoard events")
    add("--log-wandb", action="store_true", help="log to Weights & Biases")
    add("--dry-run", action="store_true", help="measure memory and time in about a minute; write nothing")
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
    add(
        "--model",
        "-m",
        default="dpn92",
        help="a DaViT variant or any model of timm's; default: the checkpoint's own",
    )
    if checkpoint:
        add("--checkpoint", default="", metavar="FILE", help="weights of any known layout; without: published ones")
        add("--pretrained", action="store_true", help="published weights (what no --checkpoint means too)")
        add("--task", choices=TASKS, help="default: the checkpoint's; multilabel has a probability for each class")
        add(
            "--threshold",
            **number("threshold"),
            metavar="P",
            help="with several labels: name the classes from this probability on; default: what validate.py "
            "--fit-threshold left beside the checkpoint, else 0.5",
        )
        add(
            "--temperature",
            **number("temperature"),
            metavar="T",
            help="divide logits by it; default: what validate.py --fit-temperature left beside the checkpoint, else 1",
        )
    add("--ema", choices=EMA_CHOICES, default="auto", help="averaged weights: auto takes them where there are any")
    add(
        "--num-classes",
        **number("num_classes"),
        default=num_classes,
        help="default: the checkpoint's, else the model's",
    )
    add("--no-test-pool", action="store_true", help="pool larger maps as a whole, as in training")
    _add_shared(add)
    add("--num-gpu", **number("num_gpu"), default=1, help=argparse.SUPPRESS)
    return parser


def running_flags() -> argparse.ArgumentParser:
    """Make a parent of parsers: which weights of the checkpoints that a command names, and how their models run."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("model").add_argument
    add("--ema", choices=EMA_CHOICES, default="auto", help="averaged weights: auto takes them where there are any")
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
    add("--model", "-m", default="", help="a DaViT variant or any model of timm's; default: the checkpoint's own")
    add("--ema", choices=EMA_CHOICES, default="auto", help="averaged weights: auto takes them where there are any")
    add("--gp", metavar="POOL", help="global pooling: avg, max, avgmax")
    add("--model-kwargs", nargs="+", default={}, action=KeyValues, metavar="KEY=VALUE", help="to the constructor")
    add("--img-size", **number("img_size"), help="side in pixels; default: the checkpoint's, else the model's")
    _add_crop(add)
    return parser


def add_class_map(add: Callable[..., Any]) -> None:
    """Add what all commands that name classes call alike."""
    named = "class names, one a line, or a data folder that has them; default: the checkpoint's"
    add("--class-map", default="", metavar="FILE|DIR", help=named)


def _add_crop(add: Callable[..., Any]) -> None:
    add("--crop-pct", **number("crop_pct"), help="share of the side that the centre crop keeps")
    add("--crop-mode", choices=("center", "squash", "border"), help="how an image that is not square is cropped")
    add("--mean", **number("mean"), help="mean of each band")
    add("--std", **number("std"), help="standard deviation of each band")
    add("--interpolation", default="", help="resampling; default: the checkpoint's, else the model's")


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
    add("-b", "--batch-size", **number("batch_size"), default=256, help="images at once; fewer where memory runs out")
    add("-j", "--workers", **number("workers"), default=workers, help="loader processes (default %(default)s)")
    add("--log-freq", **number("log_freq"), default=10, help="batches between two lines of the log")
    return parser


def validate_parser() -> argparse.ArgumentParser:
    """Make the parser of validate.py."""
    parser = Parser(
        prog=command_name(),
        parents=[model_flags(), picture_flags()],
        usage="%(prog)s [DIR] [-c FILE] [flags]",
        description="Evaluate a checkpoint or a published model on an image folder. Or several: --checkpoint may be a "
        "folder of checkpoints; --model a wildcard such as 'DaViT_*', 'all', or a text file with a name per line, for "
        "published weights.",
        epilog="Exit status: 0 done, 1 some of several evaluations failed (the results say which) or an error "
        "of this program, 2 a mistake in the flags, the checkpoint or the data.",
    )
    _add_config(parser)
    add = parser.add_argument_group("data").add_argument
    add("data", nargs="?", metavar="DIR", help="folder with val/; without one: handwritten digits")
    _add_dataset(add)
    add("--split", default="validation", help="folder of the split (val is found too); '.' is DIR itself")
    add("--pin-mem", action="store_true", help="page-locked host memory")
    add(
        "--real-labels",
        default="",
        metavar="FILE",
        help=f"score by ImageNet's ReaL labels: their JSON list, or '{BUNDLED_REAL}' for timm's copy",
    )
    add("--valid-labels", default="", metavar="FILE", help="only these classes compete: an index a line")
    add("--tf-preprocessing", action="store_true", help=argparse.SUPPRESS)
    add = parser.add_argument_group("run").add_argument
    add("--use-ema", action="store_true", help="what --ema auto, the default, does")
    add(
        "--test-time-pool",
        "--test-pool",
        action="store_true",
        help="insist on test-time pooling, by default done for images larger than the model was trained "
        "on, as in the original: the head sees each window of the trained size, the logits' mean and maximum are "
        "averaged, and the crop is the whole image (timm's TestTimePoolHead, --test-pool in today's timm)",
    )
    add("--legacy-jit", action="store_true", help=argparse.SUPPRESS)
    _add_running(add)
    add = parser.add_argument_group("results").add_argument
    add_json(add)
    form = "csv or json (--results-format), written after each evaluation"
    add_output(add, "--results-file", dest="results_file", form=form)
    add("--results-format", choices=RESULT_FORMATS, help="default: by the suffix of FILE, else csv")
    add(
        "--report",
        default="",
        metavar="DIR",
        help="write there what each class and each image got: tables, the confusion matrix, the worst images of "
        "each class, and how far probabilities can be trusted",
    )
    add("--overwrite", action="store_true", help="with --report: replace an earlier report in DIR")
    add(
        "--slices",
        default="",
        metavar="FILE",
        help="a csv with a column path, and others: accuracy by the value of each of these",
    )
    add(
        "--fit-temperature",
        nargs="?",
        const="all",
        choices=FITTED_ON,
        help="fit the temperature that makes probabilities agree with the data, which the training must not have "
        "seen: on all of it (default), or on half, and tested on the other half; kept beside the checkpoint",
    )
    add(
        "--fit-threshold",
        nargs="?",
        const=THRESHOLDS[0],
        choices=THRESHOLDS,
        help="with several labels: fit the threshold of best macro F1 on this data, which the training must not have "
        "seen: one for all classes (default), or one for each class; kept beside the checkpoint",
    )
    return parser
