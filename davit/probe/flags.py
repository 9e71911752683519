"""Read the command line of the probe: which models, which data, which classifiers."""

from __future__ import annotations

import argparse
from pathlib import Path

import timm

from ..commands import command_name
from ..engine.flags import RESULT_FORMATS, data_flags, picture_flags, running_flags
from ..engine.validate import Request
from ..limits import number
from ..text import did_you_mean
from .classifiers import TEMPERATURE

METHODS = ("knn", "logistic", "linear")
FORMATS = ("table", *RESULT_FORMATS)
VOTES = ("uniform", "weighted")

_ELSEWHERE = ("hf-hub:", "local-dir:")


def probe_parser() -> argparse.ArgumentParser:
    """Make the parser of the probe."""
    parser = argparse.ArgumentParser(
        prog=command_name("python -m davit.probe"),
        usage="%(prog)s CHECKPOINT|MODEL [...] DATA [flags]",
        parents=[data_flags(), running_flags(), picture_flags(workers=2)],
        description="Measure what the features of frozen models are worth: classify the validation pictures by them, "
        "with the training pictures as examples. Several models give one table.",
        epilog="Exit status: 0 done, 1 some models failed or some pictures could not be read (they are named) or an "
        "error of this program, 2 a mistake in the flags, the checkpoint or the data.",
    )
    add = parser.add_argument
    add(
        "places",
        nargs="*",
        metavar="CHECKPOINT|MODEL ... DATA",
        help="checkpoints, or names of models for their published weights; and last the data, as train.py takes them",
    )
    add(
        "--model",
        "-m",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="more models by name; one name beside checkpoints, without --pretrained, is the model that they are of",
    )
    add("--pretrained", action="store_true", help="published weights for --model, beside the checkpoints")
    add("--num-classes", **number("num_classes"), help="of a named data set that does not tell")
    add = parser.add_argument_group("classifiers").add_argument
    add("--methods", nargs="+", choices=METHODS, default=["knn", "logistic"], help="default: knn logistic")
    add("--k", **number("k"), help="nearest neighbours; default: the number that is best on the training pictures")
    add("--vote", choices=VOTES, default="uniform", help="weighted: exp(cosine / temperature), as DINO does")
    add("--vote-temperature", **number("vote_temperature"), default=TEMPERATURE, help="of the weighted vote")
    add("--epochs", **number("epochs"), default=20, help="of the linear layer")
    add("--lr", **number("lr"), default=0.01, help="of the linear layer")
    add("--scale", **number("scale"), default=[0.35, 1.0], metavar=("MIN", "MAX"), help="of its random crop")
    add("--hflip", **number("hflip"), default=0.5, help="probability of its flips; 0 where a mirrored picture differs")
    add("--seed", **number("seed"), default=42, help="of the linear layer's pictures")
    add = parser.add_argument_group("results").add_argument
    add("--format", choices=FORMATS, default="table", help="how to print; default: %(default)s")
    add("--results-file", default="", metavar="FILE", help="also write all figures there: .json, else csv")
    add("--predictions", default="", metavar="FILE", help="also write a csv: each picture, its class, and each answer")
    return parser


def read_places(args: argparse.Namespace) -> tuple[list[Request], str]:
    """Return the models that are asked for, and the data.

    Raises:
        ValueError: no data or no model, or a word that is neither a file nor a model's name.
    """
    places, models = list(args.places), list(args.model)
    if not places and len(models) > 1 and not timm.is_model(models[-1]):
        places = [models.pop()]  # --model A B DATA
    if not places:
        raise ValueError("give CHECKPOINT and DATA: a checkpoint or a model's name, then the data as train.py takes.")
    *sources, data = places
    of_checkpoints: str | None = None
    requests = [request_of(source) for source in sources]
    has_files = any(request.checkpoint for request in requests)
    if models and has_files and not args.pretrained:
        if len(models) > 1:
            raise ValueError(
                f"--model {' '.join(models)} beside a checkpoint: add --pretrained for their published weights, or "
                "name the one model that the checkpoint is of."
            )
        of_checkpoints = models.pop()
    requests = [Request(request.model or of_checkpoints, request.checkpoint) for request in requests]
    requests += [Request(name) for name in models]
    if not requests:
        raise ValueError(f"give a model before {data}: a checkpoint, or a name such as DaViT_tiny.")
    return list(dict.fromkeys(requests)), data


def request_of(source: str) -> Request:
    """Tell a checkpoint, or where one lies on the hub, from the name of a model.

    Raises:
        ValueError: it is neither.
    """
    if Path(source).exists() or source.startswith(_ELSEWHERE):
        return Request(None, Path(source))
    if timm.is_model(source.partition(".")[0]):
        return Request(source)
    near = did_you_mean(source, timm.list_models())
    raise ValueError(
        f"{source} is neither a file nor the name of a model; {near}give a checkpoint, or one of timm.list_models()."
    )
