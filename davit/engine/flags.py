"""The command line of training: every flag of the original with its default, and what came since.

A flag with no meaning today is still accepted; `NO_LONGER` says in one line what happens instead.
"""

from __future__ import annotations

import argparse
import logging
import math
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from ..checkpoint.read import EMA_CHOICES
from ..text import nearest
from .labels import BUNDLED_REAL

log = logging.getLogger(__name__)

NO_LONGER = {
    "apex_amp": "NVIDIA Apex is no longer used; PyTorch's own mixed precision runs instead (as --amp)",
    "local_rank": "the launcher's LOCAL_RANK variable is used",
    "no_prefetcher": "loading never changes the result, so there is nothing to switch off",
    "use_multi_epochs_loader": "workers always stay between epochs",
    "tta": "evaluation looks at each picture once",
    "bn_tf": "give --bn-momentum and --bn-eps themselves",
    "drop_connect": "use --drop-path",
    "drop_block": "no model here has drop block; use --drop-path",
}


def integer(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Make an argparse type for whole numbers from `least` to `most`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            limit = f"{least} or more" if most == 2**31 - 1 else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {limit}")
        return value

    return convert


def real(least: float, most: float = math.inf) -> Callable[[str], float]:
    """Make an argparse type for finite numbers from `least` to `most`; `math.ulp(0.0)` stands for above 0."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            limit = "above 0" if least == math.ulp(0.0) else f"of {least:g} or more"
            limit = (
                limit if most == math.inf else f"between {max(0.0, least) if least < 1e-9 else least:g} and {most:g}"
            )
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {limit}")
        return value

    return convert


class KeyValues(argparse.Action):
    """``--flag key=value ...`` as a dictionary; values are read as YAML scalars."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        try:
            setattr(namespace, self.dest, key_values(values))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words; raises `ValueError` for one without '='."""
    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{pair!r} is not of the form key=value")
        result[key] = yaml.safe_load(value)
    return result


def train_parser() -> argparse.ArgumentParser:
    """The flags of train.py."""
    parser = argparse.ArgumentParser(
        description="Train DaViT, or any model that timm knows, on an image folder.",
        epilog="Exit status: 0 done, 2 a mistake in the flags or the data, 3 a non-finite loss, 4 the disk is full, "
        "75 interrupted and saved (run again with --auto-resume).",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML recipe; flags on the command line override it")
    _add_data(parser)
    _add_model(parser)
    _add_optimizer(parser)
    _add_schedule(parser)
    _add_augmentation(parser)
    _add_regularisation(parser)
    _add_run(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add(
        "data_dir",
        nargs="?",
        metavar="DIR",
        help="folder with train/ and val/; without one: handwritten digits",
    )
    add("--dataset", "-d", default="", help="'' for a folder, or torch/NAME, hfds/NAME")
    add("--train-split", default="train", help="name of the training split")
    add("--val-split", default="validation", help="name of the validation split (val is found too)")
    add("--class-map", default="", metavar="FILE", help="class names and their indices")
    add("--dataset-download", action="store_true", help="let a torch/NAME data set download itself")
    add("--img-size", type=int, help="side of the picture in pixels; default: the model's")
    add("--input-size", type=int, nargs=3, metavar=("C", "H", "W"), help="instead of --img-size")
    add("--crop-pct", type=float, help="share of the side that the evaluation crop keeps")
    add("--mean", type=float, nargs="+", help="mean of each colour")
    add("--std", type=float, nargs="+", help="standard deviation of each colour")
    add("--interpolation", default="", help="resampling in evaluation; default: the model's")
    add("-b", "--batch-size", type=int, default=64, help="pictures for each process and micro-batch")
    add(
        "-vb",
        "--validation-batch-size-multiplier",
        type=int,
        default=1,
        help="evaluation batch over the training one",
    )
    add("-j", "--workers", type=int, default=10, help="loader processes, at most as many as there are cores")
    add("--pin-mem", action="store_true", default=True, help="page-locked host memory (the default)")
    add("--no-pin-mem", dest="pin_mem", action="store_false", help="pageable host memory")
    add("--no-prefetcher", action="store_true", help=argparse.SUPPRESS)
    add("--use-multi-epochs-loader", action="store_true", help=argparse.SUPPRESS)
    add("--skip-bad-images", action="store_true", help="skip and list unreadable pictures instead of stopping")
    add("--save-images", action="store_true", help="save the pictures of a batch at each log interval")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--model",
        default="deit_small_patch16_224",
        help="a DaViT variant (DaViT_tiny ...), or any model of timm's; the default is the original script's",
    )
    add("--pretrained", action="store_true", help="start from published weights")
    add(
        "--initial-checkpoint",
        default="",
        metavar="FILE",
        help="start from these weights, of any known layout",
    )
    add("--num-classes", type=int, help="default: as many as the data has")
    add("--gp", metavar="POOL", help="global pooling: avg, max, avgmax")
    add(
        "--model-kwargs",
        nargs="+",
        default={},
        action=KeyValues,
        metavar="KEY=VALUE",
        help="to the constructor",
    )
    add("--grad-checkpointing", action="store_true", help="less memory, more time")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile the model")
    add("--torchscript", action="store_true", help="torch.jit.script the model")
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--amp", action="store_true", help="mixed precision")
    add("--native-amp", action="store_true", help="the same")
    add("--apex-amp", action="store_true", help=argparse.SUPPRESS)
    add(
        "--amp-dtype",
        choices=("bf16", "fp16", "bfloat16", "float16"),
        help="default: fp16 on CUDA; else bf16, or float32 where the CPU has no instructions for it",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N")


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimizer (timm's names)")
    add = group.add_argument
    add("--opt", default="adamw", help="optimizer")
    add("--opt-eps", type=float, default=1e-8, help="epsilon")
    add("--opt-betas", type=float, nargs="+", help="betas")
    add("--momentum", type=float, default=0.9, help="momentum")
    add("--weight-decay", type=float, default=0.05, help="weight decay, on matrices alone")
    add("--layer-decay", type=float, help="factor on the learning rate for each layer towards the input")
    add("--clip-grad", type=float, metavar="NORM", help="gradient clipping; default: none")
    add("--clip-mode", default="norm", choices=("norm", "value", "agc"), help="how to clip")
    add("--grad-accum-steps", type=int, default=1, help="micro-batches for each optimizer step")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule (timm's names)")
    add = group.add_argument
    add("--sched", default="cosine", help="cosine, step, multistep, plateau, poly, tanh, ...")
    add("--sched-on-updates", action="store_true", help="change the rate at each step rather than each epoch")
    add("--lr", type=float, default=5e-4, help="learning rate, for the global batch as it is (never scaled)")
    add("--lr-noise", type=float, nargs="+", help="epochs (as shares) between which the rate is noisy")
    add("--lr-noise-pct", type=float, default=0.67, help="limit of the noise")
    add("--lr-noise-std", type=float, default=1.0, help="standard deviation of the noise")
    add("--lr-cycle-mul", type=float, default=1.0, help="length of a cycle over the one before")
    add("--lr-cycle-limit", type=int, default=1, help="number of cycles")
    add("--lr-cycle-decay", type=float, default=0.1, help="rate of a cycle over the one before")
    add("--lr-k-decay", type=float, default=1.0, help="k-decay of cosine and poly")
    add("--warmup-lr", type=float, default=1e-6, help="rate at the start of the warm-up")
    add("--min-lr", type=float, default=1e-5, help="rate at the end")
    add("--epochs", type=int, default=300, help="epochs of the schedule, the cool-down not counted")
    add("--epoch-repeats", type=float, default=0.0, help="passes over the data in an epoch; 0 is one")
    add("--start-epoch", type=int, help="count epochs from here")
    add("--decay-epochs", type=float, default=30, help="epochs between steps of 'step'")
    add("--decay-milestones", type=int, nargs="+", default=[30, 60], help="epochs at which 'multistep' steps")
    add("--warmup-epochs", type=int, default=5, help="epochs of warm-up")
    add("--warmup-prefix", action="store_true", help="begin the schedule after the warm-up")
    add("--cooldown-epochs", type=int, default=10, help="epochs at --min-lr after the schedule")
    add("--patience-epochs", type=int, default=10, help="patience of 'plateau'")
    add("--decay-rate", "--dr", type=float, default=0.1, help="factor of 'step', 'multistep' and 'plateau'")


def _add_augmentation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation (timm's names)")
    add = group.add_argument
    add("--no-aug", action="store_true", help="no augmentation at all")
    add("--scale", type=float, nargs="+", default=[0.08, 1.0], help="area of the random crop")
    add("--ratio", type=float, nargs="+", default=[3 / 4, 4 / 3], help="shape of the random crop")
    add("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
    add("--vflip", type=float, default=0.0, help="probability of a vertical flip")
    add("--color-jitter", type=float, default=0.4, help="strength, where no --aa replaces it")
    add("--aa", default="rand-m9-mstd0.5-inc1", help="AutoAugment policy, or none")
    add("--aug-splits", type=int, default=0, help="augmented copies in a batch, for --jsd")
    add("--jsd", action="store_true", help="Jensen-Shannon divergence between the splits")
    add("--train-interpolation", default="bicubic", help="resampling in training; random mixes")
    add("--repeated-aug", action="store_true", help="three augmentations of a picture in an epoch")
    add("--reprob", type=float, default=0.25, help="probability of random erasing")
    add("--remode", default="pixel", help="what erasing writes: pixel, rand, const")
    add("--recount", type=int, default=1, help="areas erased")
    add("--resplit", action="store_true", help="no erasing in the clean split")
    add("--mixup", type=float, default=0.8, help="mixup alpha")
    add("--cutmix", type=float, default=1.0, help="cutmix alpha")
    add("--cutmix-minmax", type=float, nargs="+", help="limits of the cutmix area, instead of alpha")
    add("--mixup-prob", type=float, default=1.0, help="probability of either")
    add("--mixup-switch-prob", type=float, default=0.5, help="probability of cutmix where both are on")
    add("--mixup-mode", default="batch", choices=("batch", "pair", "elem"), help="what shares a mixing ratio")
    add("--mixup-off-epoch", type=int, default=0, help="epoch from which neither is used; 0: never")
    add("--smoothing", type=float, default=0.1, help="label smoothing")
    add("--tta", type=int, default=0, help=argparse.SUPPRESS)


def _add_regularisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("regularisation, batch norm and averaging")
    add = group.add_argument
    add("--drop", type=float, default=0.0, help="dropout before the head")
    add("--drop-connect", type=float, help=argparse.SUPPRESS)
    add("--drop-path", type=float, default=0.1, help="stochastic depth")
    add("--drop-block", type=float, help=argparse.SUPPRESS)
    add("--bn-tf", action="store_true", help=argparse.SUPPRESS)
    add("--bn-momentum", type=float, help="of batch norms, in models that have them")
    add("--bn-eps", type=float, help="of batch norms")
    add("--sync-bn", action="store_true", help="synchronised batch norm")
    add(
        "--dist-bn",
        default="",
        choices=("", "broadcast", "reduce"),
        help="share batch-norm statistics each epoch",
    )
    add("--split-bn", action="store_true", help="batch norms of their own for the splits")
    add("--model-ema", action="store_true", help="keep a moving average of the weights")
    add("--model-ema-force-cpu", action="store_true", help="keep it in host memory")
    add("--model-ema-decay", type=float, default=0.99996, help="its decay for each step")


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--seed", type=int, default=42, help="of everything random")
    add("--log-interval", type=int, default=50, help="steps between two lines of the log")
    add("--recovery-interval", type=int, default=0, help="steps between two saved states; 0: each epoch")
    add("--checkpoint-hist", type=int, default=10, help="checkpoints kept, the best ones")
    add("--output", default="", metavar="DIR", help="folder for runs; default: output/train")
    add("--experiment", default="", metavar="NAME", help="folder of this run; default: time, model, size")
    add("--overwrite", action="store_true", help="replace an earlier run in the same folder")
    add("--resume", default="", metavar="FILE", help="go on from this state")
    add("--no-resume-opt", action="store_true", help="with --resume: weights and epoch alone")
    add("--auto-resume", action="store_true", help="go on from the newest whole state in the run's folder")
    add("--eval-metric", default="top1", choices=("top1", "top5", "loss"), help="what the best is judged by")
    add("--log-tensorboard", action="store_true", help="write TensorBoard events")
    add("--log-wandb", action="store_true", help="log to Weights & Biases")
    add("--throughput", action="store_true", help="measure images/s of the model and stop")
    add(
        "--dry-run",
        action="store_true",
        help="two steps, one evaluation batch, memory and time; writes nothing",
    )
    add("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, default_config: str | Path | None = None
) -> argparse.Namespace:
    """Parse flags over the defaults of a YAML recipe (``-c FILE``).

    Args:
        default_config: the recipe used where neither a recipe nor a data folder is given.

    Raises:
        ValueError: the recipe cannot be read, has an unknown key (the nearest is offered) or a value that its
            flag does not take.
    """
    first = parser.parse_args(argv)
    config = first.config
    if config is None and default_config is not None and first.data_dir is None and not first.dataset:
        config = str(default_config)
    if config is not None:
        # not set_defaults: argparse would pass lists and None through unchecked
        parser.set_defaults(**_read_config(parser, Path(config)))
    args = parser.parse_args(argv)
    args.config = config
    return args


def _read_config(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"the recipe {path} does not exist (-c FILE).") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the recipe {path} cannot be read as YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"the recipe {path} is not a list of 'flag: value' lines.")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    result = {}
    for key, value in values.items():
        dest = str(key).replace("-", "_")
        if dest not in actions:
            near = nearest(dest, actions, cutoff=0.0)
            raise ValueError(f"the recipe {path} has an unknown key {key!r}; did you mean {near[0]!r}?")
        result[dest] = _checked(actions[dest], key, value, path)
    return result


def _checked(action: argparse.Action, key: str, value: Any, path: Path) -> Any:
    """A recipe's value as its flag would have read it ('1e-3' is text to YAML)."""
    if value is None or isinstance(action, KeyValues):
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{key}: {value!r} in {path} is not a list of 'name: value' lines.")
        return value
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{key}: {value!r} in {path} is a switch; write true or false.")
        return value
    if isinstance(action.nargs, int) or action.nargs == "+":
        values = value if isinstance(value, list) else [value]
        if isinstance(action.nargs, int) and len(values) != action.nargs:
            raise ValueError(f"{key}: {value!r} in {path} needs {action.nargs} values.")
        return [_converted(action, key, item, path) for item in values]
    return _converted(action, key, value, path)


def _converted(action: argparse.Action, key: str, value: Any, path: Path) -> Any:
    kind: Any = action.type or str
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and value != int(value)):
        raise ValueError(f"{key}: {value!r} in {path} is not of type {kind.__name__}.")
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: {value!r} in {path} is not of type {kind.__name__}.") from None
    if action.choices is not None and converted not in action.choices:
        choices = ", ".join(repr(choice) for choice in action.choices)
        raise ValueError(f"{key}: {value!r} in {path} is unknown; choose from {choices}.")
    return converted


def changed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> set[str]:
    """The names of the flags whose values are not the defaults."""
    return {name for name, value in vars(args).items() if value is not None and value != parser.get_default(name)}


def say_no_longer(answers: Mapping[str, str], given: Collection[str]) -> None:
    """One line for each flag that was given and does nothing, or something else, today."""
    for name, instead in answers.items():
        if name in given and name != "local_rank":  # launchers add that one
            log.warning("--%s: %s.", name.replace("_", "-"), instead)


# ---- limits of values ----

_COUNTS = {  # flag -> the least whole number
    **dict.fromkeys(("epochs", "batch_size", "grad_accum_steps", "log_interval", "img_size", "lr_cycle_limit"), 1),
    **dict.fromkeys(("checkpoint_hist", "validation_batch_size_multiplier"), 1),
    **dict.fromkeys(("start_epoch", "warmup_epochs", "cooldown_epochs", "patience_epochs"), 0),
    **dict.fromkeys(("recovery_interval", "mixup_off_epoch", "workers"), 0),
}
_NOT_NEGATIVE = ("lr", "warmup_lr", "min_lr", "weight_decay", "mixup", "cutmix", "color_jitter", "opt_eps", "momentum")
_POSITIVE = ("clip_grad", "crop_pct", "layer_decay", "decay_epochs", "decay_rate", "lr_cycle_mul")
_SHARES = ("mixup_prob", "mixup_switch_prob", "smoothing", "model_ema_decay")


def check_flags(args: Namespace) -> None:
    """Raises `ValueError` naming the first flag of train.py whose value makes no sense, and what it may be."""
    for name, least in _COUNTS.items():
        require_number(name, getattr(args, name), least, math.inf, f"a number of {least} or more")
    for name in _NOT_NEGATIVE:
        require_number(name, getattr(args, name), 0, math.inf, "a number of 0 or more")
    for name in _POSITIVE:
        require_number(name, getattr(args, name), math.ulp(0.0), math.inf, "a number above 0; leave it out for none")
    for name in _SHARES:
        require_number(name, getattr(args, name), 0, 1, "a share between 0 and 1")
    _require_length("opt_betas", args.opt_betas, (2, 3))
    _require_length("cutmix_minmax", args.cutmix_minmax, (2,))
    if args.opt_betas:
        for beta in args.opt_betas:
            require_number("opt_betas", beta, 0, 1, "numbers between 0 and 1")
    check_backend(args.torchcompile)


def check_backend(name: str | None) -> None:
    """Raises `ValueError` where --torchcompile names no backend of torch.compile."""
    if name and name not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"--torchcompile {name!r} is unknown; choose from {known}.")


def require_number(name: str, value: float | None, least: float, most: float, wanted: str) -> None:
    """Raises `ValueError` for a value that is not `wanted`: outside of `least` to `most`, or not finite."""
    if value is not None and not (least <= value <= most and math.isfinite(value)):
        raise ValueError(f"--{name.replace('_', '-')} {value} is not {wanted}.")


def _require_length(name: str, values: Sequence[float] | None, lengths: tuple[int, ...]) -> None:
    if values and len(values) not in lengths:
        wanted = " or ".join(map(str, lengths))
        raise ValueError(f"--{name.replace('_', '-')} {' '.join(map(str, values))}: {wanted} numbers are needed.")


# ---- the flags of validate.py ----

RESULT_FORMATS = ("csv", "json")

VALIDATE_NO_LONGER = {
    **NO_LONGER,
    "tf_preprocessing": "TensorFlow is not used; the pictures go through the same transform as without it",
    "legacy_jit": "PyTorch has one TorchScript executor today; --torchscript runs on it",
    "num_gpu": "each process uses one GPU; torchrun --nproc_per_node=N validate.py ... uses N",
}


def parse_validate(argv: Sequence[str] | None) -> tuple[argparse.Namespace, bool]:
    """The arguments, and whether --model was given (on the command line or in the recipe).

    Its default has to be the original's, so that the value does not tell.
    """
    args = parse_with_config(validate_parser(), argv)
    given = validate_parser()
    for action in given._actions:
        if action.dest != "config":
            action.default = argparse.SUPPRESS
    return args, "model" in vars(parse_with_config(given, argv))


def validate_parser() -> argparse.ArgumentParser:
    """The flags of validate.py."""
    parser = argparse.ArgumentParser(
        description="Evaluate a checkpoint, a folder of checkpoints or published models on an image folder.",
        epilog="Exit status: 0 done, 1 some of several evaluations failed (the results say which) or an error "
        "of this program, 2 a mistake in the flags, the checkpoint or the data.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML recipe; flags on the command line override it")
    _add_validate_data(parser)
    _add_validate_model(parser)
    _add_validate_run(parser)
    _add_validate_results(parser)
    return parser


def _add_validate_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("data", nargs="?", metavar="DIR", help="folder with val/; without one: handwritten digits")
    add("--dataset", "-d", default="", help="'' for a folder, or torch/NAME, hfds/NAME")
    add("--split", default="validation", help="folder of the split (val is found too); '.' is DIR itself")
    add("--dataset-download", action="store_true", help="let a torch/NAME data set download itself")
    add("--class-map", default="", metavar="FILE", help="class names and their indices")
    add("--img-size", type=int, help="side in pixels; default: the checkpoint's, else the model's")
    add("--input-size", type=int, nargs=3, metavar=("C", "H", "W"), help="instead of --img-size")
    add("--crop-pct", type=float, help="share of the side that the centre crop keeps")
    add("--crop-mode", choices=("center", "squash", "border"), help="how a picture that is not square is cropped")
    add("--mean", type=float, nargs="+", help="mean of each colour")
    add("--std", type=float, nargs="+", help="standard deviation of each colour")
    add("--interpolation", default="", help="resampling; default: the checkpoint's, else the model's")
    add("-b", "--batch-size", type=int, default=256, help="pictures for each process; halved if memory runs out")
    add("-j", "--workers", type=int, default=4, help="loader processes")
    add("--pin-mem", action="store_true", help="page-locked host memory")
    add("--skip-bad-images", action="store_true", help="skip and list unreadable pictures instead of stopping")
    add(
        "--real-labels",
        default="",
        metavar="FILE",
        help=f"score by ImageNet's ReaL labels: their JSON list, or '{BUNDLED_REAL}' for timm's copy",
    )
    add("--valid-labels", default="", metavar="FILE", help="only these classes compete: an index a line")
    add("--no-prefetcher", action="store_true", help=argparse.SUPPRESS)
    add("--tf-preprocessing", action="store_true", help=argparse.SUPPRESS)


def _add_validate_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        "-m",
        default="dpn92",
        help="a DaViT variant or any model of timm's; for several: a wildcard such as 'DaViT_*', 'all', or a "
        "text file with a name a line, evaluated with published weights. Default: the checkpoint's own, else "
        "%(default)s as in the original",
    )
    add("--checkpoint", default="", metavar="PATH", help="weights of any known layout, or a folder of such files")
    add("--pretrained", action="store_true", help="published weights (what no --checkpoint means too)")
    add("--ema", choices=EMA_CHOICES, default="auto", help="averaged weights: auto takes them where there are any")
    add("--use-ema", action="store_true", help="what --ema auto, the default, does")
    add("--num-classes", type=int, help="default: the checkpoint's, else the model's")
    add("--gp", metavar="POOL", help="global pooling: avg, max, avgmax")
    add("--model-kwargs", nargs="+", default={}, action=KeyValues, metavar="KEY=VALUE", help="to the constructor")
    add(
        "--test-time-pool",
        "--test-pool",
        action="store_true",
        help="insist on test-time pooling, by default done for pictures larger than the model was trained "
        "on, as in the original: the head sees each window of the trained size, the logits' mean and maximum are "
        "averaged, and the crop is the whole picture (timm's TestTimePoolHead, --test-pool in today's timm)",
    )
    add("--no-test-pool", action="store_true", help="pool larger maps as a whole, as in training")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile the model")
    add("--torchscript", action="store_true", help="torch.jit.script the model")
    add("--legacy-jit", action="store_true", help=argparse.SUPPRESS)


def _add_validate_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    add("--amp", action="store_true", help="mixed precision")
    add("--native-amp", action="store_true", help="the same")
    add("--apex-amp", action="store_true", help=argparse.SUPPRESS)
    add(
        "--amp-dtype",
        choices=("bf16", "fp16", "bfloat16", "float16"),
        help="default: fp16 on CUDA; else bf16, or float32 where the CPU has no instructions for it",
    )
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--num-gpu", type=int, default=1, help=argparse.SUPPRESS)
    add("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    add("--log-freq", type=int, default=10, help="batches between two lines of the log")


def _add_validate_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("results").add_argument
    add("--results-file", default="", metavar="FILE", help="written after each evaluation")
    add("--results-format", choices=RESULT_FORMATS, help="default: by the suffix of FILE, else csv")
