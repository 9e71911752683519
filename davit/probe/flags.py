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
        description="Measure what the features of frozen models are worth: classify the validation images by them, "
        "with the training images as examples. Several models give one table.",
        epilog="Exit status: 0 done, 1 some models failed or some images could not be read (they are named) or an "
        "error of this program, 2 a mistake in the flags, the checkpoint or the data.",
    )
    parser.add_argument(
        "places",
        nargs="*",
        metavar="CHECKPOINT|MODEL ... DATA",
        help="checkpoints, or names of models for their published weights; and last the data, as train.py takes them",
    )
    add = parser.add_argument_group("which models").add_argument
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
    add("--k", **number("k"), help="nearest neighbours; default: the number that is best on the training images")
    add("--vote", choices=VOTES, default="uniform", help="weighted: exp(cosine / temperature), as DINO does")
    add("--vote-temperature", **number("vote_temperature"), default=TEMPERATURE, help="of the weighted vote")
    add("--epochs", **number("epochs"), default=20, help="of the linear layer")
    add("--lr", **number("lr"), default=0.01, help="of the linear layer")
    add("--scale", **number("scale"), default=[0.35, 1.0], metavar=("MIN", "MAX"), help="of its random crop")
    add("--hflip", **number("hflip"), default=0.5, help="probability of its flips; 0 where a mirrored image differs")
    add("--seed", **number("seed"), default=42, help="of the linear layer's images")
    add = parser.add_argument_group("results").add_argument
    add("--format", choices=FORMATS, default="table", help="how to print; default: %(default)s")
    add_json(add)
    add_output(add, "--results-file", dest="results_file", form="all figures; .json, else csv")
    add("--predictions", default="", metavar="FILE", help="also write a csv: each image, its class, and each answer")
    return parser
