"""The command line of evaluation: every flag of the original with its default, and what came since."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..checkpoint.files import EMA_CHOICES
from .arguments import NO_LONGER as OF_TRAINING
from .arguments import KeyValues, parse_with_config
from .labels import BUNDLED_REAL

RESULT_FORMATS = ("csv", "json")

NO_LONGER = {
    **OF_TRAINING,
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
    _add_data(parser)
    _add_model(parser)
    _add_run(parser)
    _add_results(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
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


def _add_model(parser: argparse.ArgumentParser) -> None:
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


def _add_run(parser: argparse.ArgumentParser) -> None:
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


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("results").add_argument
    add("--results-file", default="", metavar="FILE", help="written after each evaluation")
    add("--results-format", choices=RESULT_FORMATS, help="default: by the suffix of FILE, else csv")
