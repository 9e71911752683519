"""Read the command line of the probe: which models, which data, which classifiers."""

from __future__ import annotations

from ..commands import command_name
from ..engine.flags import RESULT_FORMATS, data_flags, picture_flags, running_flags
from ..limits import number
from ..parsing import Parser
from ..parsing.results import add_json, add_output

TEMPERATURE = 0.07  # of DINO's weighted vote (Caron et al., ICCV 2021)
METHODS = ("knn", "logistic", "linear")
FORMATS = ("table", *RESULT_FORMATS)
VOTES = ("uniform", "weighted")


def probe_parser() -> Parser:
    """Make the parser of the probe."""
    parser = Parser(
        prog=command_name("python -m davit.probe"),
        usage="%(prog)s CHECKPOINT|MODEL [...] DATA [flags]",
        parents=[data_flags(), running_flags(), picture_flags(workers=2)],
        description="Compare the features of frozen models: train simple classifiers on the features of the training "
        "images, and evaluate them on the validation images. Several models give one table.",
        epilog="Exit status: 0 done, 1 some models failed or some images could not be read (they are named) or an "
        "error of this program, 2 a mistake in the flags, the checkpoint or the data.",
    )
    parser.add_argument(
        "places",
        nargs="*",
        metavar="CHECKPOINT|MODEL ... DATA",
        help="checkpoints, or models' names for their published weights; the last word is the data, as for train.py",
    )
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        "-m",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="with --pretrained: models to compare with their published weights; otherwise one name, the model that "
        "the checkpoints belong to (default: as the checkpoints say)",
    )
    add("--pretrained", action="store_true", help="use the published weights of --model")
    add("--num-classes", **number("num_classes"), help="number of classes (default: as many as the data has)")
    add = parser.add_argument_group("classifiers").add_argument
    add("--methods", nargs="+", choices=METHODS, default=["knn", "logistic"], help="classifiers to train")
    add("--k", **number("k"), help="knn: number of neighbours (default: the best one on the training images)")
    add(
        "--vote",
        choices=VOTES,
        default="uniform",
        help="knn: neighbours vote equally, or weighted by exp(cosine / --vote-temperature) as in DINO",
    )
    add("--vote-temperature", **number("vote_temperature"), default=TEMPERATURE, help="knn: temperature of --vote")
    add("--epochs", **number("epochs"), default=20, help="linear: epochs")
    add("--lr", **number("lr"), default=0.01, help="linear: learning rate")
    add(
        "--scale",
        **number("scale"),
        default=[0.35, 1.0],
        metavar=("MIN", "MAX"),
        help="linear: area of the random crop, as shares of the image",
    )
    add(
        "--hflip",
        **number("hflip"),
        default=0.5,
        help="linear: probability of a horizontal flip; 0 for digits or text",
    )
    add("--seed", **number("seed"), default=42, help="linear: seed of all random numbers")
    add = parser.add_argument_group("results").add_argument
    add("--format", choices=FORMATS, default="table", help="form in which the results are printed")
    add_json(add)
    add_output(add, "--results-file", dest="results_file", form="as JSON if its name ends in .json, else as csv")
    add(
        "--predictions",
        default="",
        metavar="FILE",
        help="also write a csv with the class and each answer for each image",
    )
    return parser
