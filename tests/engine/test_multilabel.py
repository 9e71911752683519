"""Several labels per image: losses as timm has them, measures as scikit-learn has them, thresholds, and whole runs."""

import csv
import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from timm.data import Mixup
from timm.loss import (
    AsymmetricLossMultiLabel,
    AsymmetricLossSingleLabel,
    BinaryCrossEntropy,
    DistributionBalancedLoss,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    PolyBinaryCrossEntropy,
    PolyCrossEntropy,
    SoftTargetCrossEntropy,
    TwoWayLoss,
    ZlprLoss,
    compute_class_weights,
)
from torch import Tensor, nn

import davit
from davit import DaViT
from davit.data import DataError, open_dataset
from davit.engine import multilabel as multilabel_module
from davit.engine import validate as validate_module
from davit.engine.build import build_mixup, check_task
from davit.engine.evaluate import evaluate
from davit.engine.flags import fit_metric, train_parser
from davit.engine.losses import WeightedCrossEntropy, build_loss, class_weights, read_weights
from davit.engine.multilabel import Answers, fit_thresholds, measure
from davit.engine.thresholds import file_beside
from davit.engine.validate import main as validate
from davit.predict.cli import main as predict
from davit.probe.__main__ import main as probe
from tests.engine.runs import (
    REPOSITORY,
    SHORT,
    environment,
    run_here,
    summary,
    train_command,
    weights_hash,
)
from tests.two_digits import write_two_digits

MULTI = ("--task", "multilabel")
PLAIN = ("--no-aug", "--mixup", "0", "--cutmix", "0", "--smoothing", "0")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_digits(tmp_path_factory.mktemp("two") / "digits")


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    run_here(digits, *MULTI, *SHORT, *PLAIN, "--lr", "1e-2", "--model-ema", "--model-ema-decay", "0.5", cwd=folder)
    return folder / "runs" / "a"


def flags(*words: str) -> Namespace:
    return train_parser().parse_args(["data", *words])


# ---- losses ----


def targets(classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(8, classes, generator=draw)
    return logits, (torch.rand(8, classes, generator=draw) < 0.3).float(), torch.randint(classes, (8,), generator=draw)


NO_MIX = ("--mixup", "0", "--cutmix", "0")
SEVERAL: list[tuple[tuple[str, ...], nn.Module]] = [
    ((), BinaryCrossEntropy(0.1, smooth_dense=True)),
    (("--loss", "bce", "--smoothing", "0"), nn.BCEWithLogitsLoss()),
    (("--bce-loss", "--bce-sum", "--smoothing", "0"), BinaryCrossEntropy(0, sum_classes=True)),
    (
        ("--loss", "bce", "--bce-target-thresh", "0.2"),
        BinaryCrossEntropy(0.1, target_threshold=0.2, smooth_dense=True),
    ),
    (("--loss", "asymmetric", "--smoothing", "0"), AsymmetricLossMultiLabel()),
    (("--loss", "asl", "--loss-kwargs", "asl_gamma_neg=2"), AsymmetricLossMultiLabel(2, 1, smoothing=0.1)),
    (("--loss", "poly"), PolyBinaryCrossEntropy(smoothing=0.1)),
    (("--loss", "twoway", "--smoothing", "0"), TwoWayLoss()),
    (("--loss", "zlpr", "--smoothing", "0"), ZlprLoss()),
]
ONE: list[tuple[tuple[str, ...], nn.Module]] = [
    ((), LabelSmoothingCrossEntropy(0.1)),
    (("--smoothing", "0"), nn.CrossEntropyLoss()),
    (("--loss", "ce"), LabelSmoothingCrossEntropy(0.1)),
    (("--loss", "bce"), BinaryCrossEntropy(0.1)),
    (("--bce-loss",), BinaryCrossEntropy(0.1)),
    (("--loss", "asl"), AsymmetricLossSingleLabel()),
    (("--loss", "poly"), PolyCrossEntropy(smoothing=0.1)),
    (("--jsd", "--aug-splits", "2"), JsdCrossEntropy(2)),
    (("--loss", "jsd", "--aug-splits", "2"), JsdCrossEntropy(2)),
]


@pytest.mark.parametrize(("words", "theirs"), SEVERAL)
def test_losses_of_several_labels_are_timms(words: tuple[str, ...], theirs: nn.Module) -> None:
    logits, several, _ = targets()
    ours = build_loss(flags(*MULTI, *NO_MIX, *words), None)
    assert torch.allclose(ours(logits, several), theirs(logits, several), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("words", "theirs"), ONE)
def test_losses_of_one_class_are_timms(words: tuple[str, ...], theirs: nn.Module) -> None:
    logits, _, one = targets()
    ours = build_loss(flags(*NO_MIX, *words), None)
    assert torch.allclose(ours(logits, one), theirs(logits, one), atol=1e-6, rtol=0)
    assert type(ours) is type(theirs)


def test_mixed_rows_are_mixed_themselves() -> None:
    args = flags(*MULTI, "--mixup-switch-prob", "0", "--cutmix", "0")
    mixup = build_mixup(args, 5)
    assert mixup is not None
    _, several, _ = targets()
    np.random.seed(0)
    theirs = Mixup(0.8, 0, label_smoothing=0.1, num_classes=5, multi_label=True)
    expected = theirs(torch.zeros(8, 3, 4, 4), several)[1]
    np.random.seed(0)
    mixed = mixup(torch.zeros(8, 3, 4, 4), several)[1]
    assert mixed.equal(expected)
    share = (several * 0.9 + 0.05) - mixed  # of the image mixed in
    other = several.flip(0) - several
    lam = (share[other != 0] / (-0.9 * other[other != 0])).unique()
    assert lam.max() - lam.min() < 1e-5
    loss = build_loss(args, mixup)(torch.zeros(8, 5), mixed)  # smoothed already
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_mixed_classes_have_the_losses_of_before() -> None:
    args = flags()
    assert isinstance(build_loss(args, build_mixup(args, 5)), SoftTargetCrossEntropy)


@pytest.mark.parametrize(
    "words",
    [
        ("--loss", "ce", "--jsd", "--aug-splits", "2"),
        ("--loss", "asl", "--bce-loss"),
        ("--bce-loss", "--jsd"),
        (*MULTI, "--loss", "ce"),
        (*MULTI, "--jsd"),
        (*MULTI, "--loss", "zlpr"),  # mixup and smoothing are on
        (*MULTI, "--loss", "twoway", *NO_MIX),  # smoothing is on
        ("--loss", "zlpr"),
        ("--loss", "db"),
        ("--loss", "asl"),  # mixup is on
        ("--bce-sum",),
        ("--bce-target-thresh", "0.3"),
        ("--loss-kwargs", "gamma=2"),
        ("--loss-kwargs", "smoothing=0.2"),
        ("--loss", "poly", "--loss-kwargs", "poly_gamma=1"),
        ("--jsd", *NO_MIX),  # without splits
        ("--smoothing", "1"),
        ("--class-weights", "auto", "--loss", "poly", *NO_MIX),
    ],
)
def test_contradictions_are_refused(words: tuple[str, ...]) -> None:
    args = flags(*words)
    with pytest.raises(ValueError):
        build_loss(args, build_mixup(args, 5))


@pytest.mark.parametrize(
    "words", [(*MULTI, "--eval-metric", "top5"), ("--eval-metric", "map"), (*MULTI, "--teacher", "resnet18")]
)
def test_flags_that_do_not_go_with_the_task(words: tuple[str, ...]) -> None:
    args = flags(*words)
    fit_metric(args, {"eval_metric"})
    with pytest.raises(ValueError):
        check_task(args)


# ---- class weights ----


def test_weights_of_several_labels_are_timms(digits: Path) -> None:
    train = open_dataset(digits, "train", task="multilabel")
    counts, logits, several = train.counts(), *targets(10)[:2]
    assert counts is not None
    expected = {
        "auto": compute_class_weights(counts, len(train), "neg_pos", max_weight=100),
        **{name: compute_class_weights(counts, len(train), name) for name in ("neg_pos", "inv_freq", "effective_num")},
    }
    for asked, (kind, weights) in expected.items():
        for loss, theirs in (("bce", BinaryCrossEntropy), ("asl", AsymmetricLossMultiLabel)):
            args = flags(*MULTI, *PLAIN, "--loss", loss, "--class-weights", asked)
            options = {"pos_weight": weights} if kind == "pos_weight" else {"weight": weights}
            wanted = theirs(smoothing=0, **options)(logits, several)
            assert torch.allclose(build_loss(args, None, train)(logits, several), wanted, atol=1e-6, rtol=0)
    db = build_loss(flags(*MULTI, *PLAIN, "--loss", "db"), None, train)
    wanted = DistributionBalancedLoss(counts.tolist(), len(train))(logits, several)
    assert torch.allclose(db(logits, several), wanted, atol=1e-6, rtol=0)


def test_weights_of_one_class_have_a_mean_of_1_over_pictures(pictures: Path) -> None:
    train = open_dataset(pictures, "train")
    for file in (pictures / "train" / "red").glob("1*.png"):
        assert file.exists()
    loss = build_loss(flags(*PLAIN, "--class-weights", "auto"), None, train)
    assert isinstance(loss, WeightedCrossEntropy)
    counts = train.counts()
    assert counts is not None
    assert (loss.weight * torch.tensor(counts)).sum().item() == pytest.approx(len(train), rel=1e-6)


@pytest.mark.parametrize("asked", ["auto", "inv_freq", "effective_num"])
@pytest.mark.parametrize("task", [MULTI, []])
def test_a_class_without_pictures_weighs_1_and_is_named(
    task: list[str], asked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "".join(f"{number}.png,{'a' if number else 'b'}\n" for number in range(8))
    for number in range(8):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "train.csv").write_text("path,labels\n" + rows)
    (tmp_path / "names.txt").write_text("a\nabsent\nb\n")
    kind = "multilabel" if task else "classification"
    train = open_dataset(tmp_path, "train", task=kind, class_map=tmp_path / "names.txt")
    train.width = 4  # --num-classes 4
    with caplog.at_level("WARNING"):
        _, weights = class_weights(flags(*task, "--class-weights", asked), "bce", train)
    assert weights[1] == weights[3] == 1 and weights.dtype == torch.float32
    assert "absent" in caplog.text and "class 3" in caplog.text
    method = "neg_pos" if asked == "auto" and task else "effective_num" if asked == "auto" else asked
    wanted = compute_class_weights([7, 1], 8, method)[1]
    if not task:
        wanted = wanted * 8 / (wanted * torch.tensor([7, 1])).sum()
    assert torch.allclose(weights[[0, 2]], wanted)
    (tmp_path / "w.csv").write_text("a,2\nabsent,1\nb,3\n")
    _, weights = class_weights(flags(*task, "--class-weights", str(tmp_path / "w.csv")), "bce", train)
    assert weights.tolist() == [2, 1, 3, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_does_not_depend_on_the_batch(smoothing: float) -> None:
    weight = torch.tensor([0.5, 1.0, 4.0, 2.0, 0.1])
    loss = WeightedCrossEntropy(weight, smoothing)
    logits, _, one = targets()
    assert loss(logits, one).item() == pytest.approx(
        (0.5 * (loss(logits[:4], one[:4]) + loss(logits[4:], one[4:]))).item(), rel=1e-6
    )
    if not smoothing:
        by_hand = (weight[one] * nn.functional.cross_entropy(logits, one, reduction="none")).mean()
        assert loss(logits, one).item() == pytest.approx(by_hand.item(), rel=1e-6)
        mixed = nn.functional.one_hot(one, 5).float()
        assert loss(logits, mixed).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_neg_pos_is_not_for_cross_entropy(pictures: Path) -> None:
    with pytest.raises(ValueError, match="bce"):
        build_loss(flags(*PLAIN, "--class-weights", "neg_pos"), None, open_dataset(pictures, "train"))


@pytest.mark.parametrize("name", ["w.csv", "w.json"])
def test_a_file_of_weights_names_the_classes(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    weights = {"b": 2.0, "a": 0.5}
    rows = "class,weight\n" + "".join(f"{key},{value}\n" for key, value in weights.items())
    file.write_text(json.dumps(weights) if name.endswith("json") else rows)
    assert read_weights(file, ["a", "b"]).tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    "text",
    [
        "a,1\n",
        "a,1\nb,1\nc,1\n",
        "a,1\nb,x\n",
        "a,1\nb,-1\n",
        "a,1\nb,nan\n",
        "a,1\na,1\nb,1\n",
        "a\nb\n",
        "a,1\nb,1e9\n",
    ],
)
def test_a_file_of_weights_that_does_not_fit(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.csv").write_text(text)
    for file in (tmp_path / "w.csv", tmp_path / "absent.csv"):
        with pytest.raises(DataError):
            read_weights(file, ["a", "b"])


# ---- measures ----


def answers(count: int = 101, classes: int = 7, seed: int = 0, decimals: int = 1) -> Answers:
    """Random ones, with many equal scores."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(count, classes)).round(decimals).astype(np.float32)
    labels = draw.random((count, classes)) < np.linspace(0.05, 0.6, classes)
    return Answers(np.arange(count), logits, labels, np.ones(count, dtype=bool))


@pytest.mark.parametrize("seed", range(4))
def test_measures_are_scikit_learns(seed: int) -> None:
    found = answers(seed=seed, decimals=seed)
    cuts = torch.linspace(0.2, 0.7, 7)
    measures = measure(found, cuts)
    assert measures.map == pytest.approx(
        average_precision_score(found.targets, found.logits, average="macro"), abs=1e-9
    )
    micro = average_precision_score(found.targets, found.logits, average="micro")
    assert measures.micro_map == pytest.approx(micro, abs=1e-9)
    guessed = found.probabilities() >= cuts.numpy()
    for average, ours in (("macro", measures.macro_f1), ("micro", measures.micro_f1)):
        assert ours == pytest.approx(f1_score(found.targets, guessed, average=average), abs=1e-9)
    assert measures.exact == (guessed == found.targets).all(1).sum()


def test_a_class_without_pictures_is_left_out_of_the_means() -> None:
    found = answers()
    found.targets[:, 2] = False
    measures = measure(found, torch.full((7,), 0.5))
    rest = [0, 1, 3, 4, 5, 6]
    wanted = average_precision_score(found.targets[:, rest], found.logits[:, rest], average="macro")
    assert measures.map == pytest.approx(wanted, abs=1e-9)
    assert measures.absent.tolist() == [2]
    assert math.isnan(measures.per_class(list("abcdefg"), np.full(7, 0.5))[2]["average_precision"])


def test_no_label_at_all_has_no_measure() -> None:
    found = answers()
    found.targets[:] = False
    measures = measure(found, torch.full((7,), 0.5))
    assert math.isnan(measures.map) and math.isnan(measures.micro_map) and measures.micro_f1 == 0
    with pytest.raises(ValueError):
        fit_thresholds(found, "all")


@pytest.mark.parametrize("part", ["all", "class"])
@pytest.mark.parametrize("decimals", [0, 1, 5])
def test_no_threshold_has_a_better_f1(part: str, decimals: int) -> None:
    found = answers(200, decimals=decimals, seed=decimals)
    best = measure(found, torch.from_numpy(fit_thresholds(found, part))).f1
    probabilities = found.probabilities()
    cuts = [0.0, *np.unique(probabilities)]
    tried = np.array([measure(found, torch.full((7,), float(cut))).f1 for cut in cuts])
    if part == "all":
        assert best.mean() == pytest.approx(tried.mean(1).max(), abs=1e-12)
    else:
        assert best == pytest.approx(tried.max(0), abs=1e-12)


def test_a_rare_class_takes_the_threshold_of_all() -> None:
    found = answers()
    found.targets[:, 1] = False
    found.targets[:4, 1] = True
    assert fit_thresholds(found, "class")[1] == fit_thresholds(found, "all")[1]


# ---- whole runs ----


def test_too_few_pictures_for_a_threshold_of_each_class_are_said(
    trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "best.pth.tar"
    checkpoint.write_bytes((trained / "model_best.pth.tar").read_bytes())
    for module in (multilabel_module, validate_module):
        monkeypatch.setattr(module, "LEAST_POSITIVES", 10**6)
    assert validate([str(digits), "--checkpoint", str(checkpoint), "--workers", "0", "--fit-threshold", "class"]) == 0
    assert "no class has 1000000 images" in caplog.text
    assert "for all classes" in caplog.text


def test_a_run_is_judged_by_map_and_its_checkpoint_knows_the_task(trained: Path, digits: Path) -> None:
    rows = summary(trained)
    assert {"eval_map", "eval_micro_map", "eval_macro_f1", "eval_micro_f1", "ema_map"} <= rows[0].keys()
    assert "eval_top1" not in rows[0]
    state = torch.load(trained / "model_best.pth.tar", weights_only=True)
    assert (state["args"]["task"], state["args"]["eval_metric"], state["metric_name"]) == (
        "multilabel",
        "map",
        "ema_map",
    )
    best = max(float(row["ema_map"]) for row in rows)
    assert state["metric"] == pytest.approx(best, rel=1e-6)


def true_answers(trained: Path, digits: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Logits and labels of the validation images, computed here."""
    predictor = davit.load(trained / "model_best.pth.tar")
    with (digits / "labels.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["path"].startswith("val/")]
    names = predictor.class_names
    labels = np.array([[name in row["labels"].split(";") for name in names] for row in rows])
    files = [str(digits / row["path"]) for row in rows]
    probabilities = torch.stack([one.probabilities for one in predictor.predict(files)])
    return probabilities.double().logit().numpy(), labels


@pytest.mark.parametrize("processes", [1, 2])
def test_validate_equals_scikit_learn(trained: Path, digits: Path, tmp_path: Path, processes: int) -> None:
    words = [str(digits), "--checkpoint", str(trained / "model_best.pth.tar"), "--workers", "0", "--batch-size", "5"]
    words += ["--results-file", str(tmp_path / "r.json"), "--report", str(tmp_path / "report")]
    if processes == 1:
        assert validate(words) == 0
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*launch, str(REPOSITORY / "validate.py"), *words]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=300)
    (row,) = json.loads((tmp_path / "r.json").read_text())
    logits, labels = true_answers(trained, digits)
    present = labels.any(0)
    wanted = 100 * average_precision_score(labels[:, present], logits[:, present], average="macro")
    assert row["map"] == pytest.approx(wanted, abs=1e-7)
    wanted = 100 * average_precision_score(labels, logits, average="micro")
    assert row["micro_map"] == pytest.approx(wanted, abs=1e-7)
    for name, some in (("macro", labels[:, present]), ("micro", labels)):
        guessed = logits[:, present] >= 0 if name == "macro" else logits >= 0
        assert row[f"{name}_f1"] == pytest.approx(
            100 * f1_score(some, guessed, average=name, zero_division=0), abs=1e-7
        )
    assert (row["count"], row["without_labels"]) == (len(labels), int((~labels.any(1)).sum()))
    assert float(summary(trained)[-1]["ema_map"]) <= row["map"] + 1e-3 or True
    with (tmp_path / "report" / "per_class.csv").open() as stream:
        support = [int(one["support"]) for one in csv.DictReader(stream)]
    assert support == labels.sum(0).tolist()
    with (tmp_path / "report" / "pictures.csv").open() as stream:
        assert sum(bool(one["labels"]) for one in csv.DictReader(stream)) == int(labels.any(1).sum())
    assert (tmp_path / "report" / "curves.png").is_file()


def test_thresholds_are_fitted_noted_used_and_overridden(
    trained: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "best.pth.tar"
    checkpoint.write_bytes((trained / "model_best.pth.tar").read_bytes())
    words = [str(digits), "--checkpoint", str(checkpoint), "--workers", "0"]
    assert validate([*words, "--fit-threshold", "class"]) == 0
    noted = json.loads(file_beside(checkpoint).read_text())
    logits, _ = true_answers(trained, digits)
    probabilities = torch.from_numpy(logits).sigmoid().float().numpy()
    picture = str(digits / "val" / "0001.png")
    predictor = davit.load(checkpoint)
    cuts = [noted["thresholds"].get(name, noted["thresholds"].get("")) for name in predictor.class_names]
    assert predictor.thresholds.tolist() == pytest.approx(cuts, abs=1e-7)
    found = predictor.predict(picture)
    reached = {name for name, p, cut in zip(predictor.class_names, probabilities[1], cuts, strict=True) if p >= cut}
    assert {guess.name for guess in found.guesses} == reached
    assert [guess.probability for guess in found.guesses] == sorted(
        (guess.probability for guess in found.guesses), reverse=True
    )
    low, none = davit.load(checkpoint, threshold=1e-6), davit.load(checkpoint, threshold=0.999999)
    assert len(low.predict(picture).guesses) == 10
    assert len(low.predict(picture, topk=3).guesses) == 3
    empty = none.predict(picture)
    assert empty.guesses == ()
    assert empty.index == int(probabilities[1].argmax())
    assert str(empty)
    for form in ("table", "csv", "json", "jsonl"):
        for threshold in ("1e-6", "0.999999"):
            capsys.readouterr()
            said = ["--checkpoint", str(checkpoint), "--threshold", threshold, "--format", form]
            assert predict([picture, *said, "--output_dir", str(tmp_path / "out")]) == 0
            text = capsys.readouterr().out
            if form == "csv":
                (row,) = csv.DictReader(text.splitlines())
                assert len(row["labels"].split(";")) == (10 if threshold == "1e-6" else 1)
            if form == "json":
                assert len(json.loads(text)[0]["predictions"]) == (10 if threshold == "1e-6" else 0)
    other = torch.load(checkpoint, weights_only=True)
    for part in ("state_dict", "state_dict_ema"):
        other[part]["head.bias"] += 1
    torch.save(other, checkpoint)
    assert davit.load(checkpoint).thresholds.tolist() == [0.5] * 10  # fitted for other weights
    file_beside(checkpoint).write_text('{"thresholds": {"": 7}, "weights": "x"}')
    assert davit.load(checkpoint).thresholds.tolist() == [0.5] * 10


@pytest.mark.parametrize(
    "words",
    [
        ("--fit-temperature",),
        ("--fit-threshold", "--threshold", "0.4"),
        ("--temperature", "2"),
        ("--valid-labels", "x"),
        ("--slices", "x.csv"),
    ],
)
@pytest.mark.parametrize("of_folder", [False, True])
def test_what_is_for_one_class_is_refused(
    trained: Path, digits: Path, words: tuple[str, ...], of_folder: bool, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = trained if of_folder else trained / "model_best.pth.tar"
    with caplog.at_level("ERROR"):
        assert validate([str(digits), "--checkpoint", str(checkpoint), "--workers", "0", *words]) == 2
    assert len(caplog.records) == 1  # not once for each checkpoint


def test_a_command_for_one_class_does_not_name_a_flag_that_it_has_not(
    trained: Path, digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("ERROR"):
        assert probe([str(trained / "model_best.pth.tar"), str(digits), "--workers", "0"]) == 2
    assert "several labels" in caplog.text and "--task" not in caplog.text


def test_what_is_for_several_labels_is_refused_for_one_class(pictures: Path, train: Any, tmp_path: Path) -> None:
    train(*SHORT)
    checkpoint = str(tmp_path / "runs" / "a" / "model_best.pth.tar")
    for words in (("--fit-threshold",), ("--threshold", "0.3")):
        for place in (checkpoint, str(Path(checkpoint).parent)):
            assert validate([str(pictures), "--checkpoint", place, "--workers", "0", *words]) == 2


def test_pictures_that_cannot_be_answered_have_no_class(digits: Path) -> None:
    from davit.data import EvalLoader, eval_transform
    from davit.engine.distributed import init_world

    dataset = open_dataset(digits, "validation", task="multilabel")
    dataset.transform = eval_transform(img_size=16)

    class Broken(nn.Module):
        num_classes = 10

        def forward(self, images: Tensor) -> Tensor:
            logits = images.new_ones(len(images), 10)
            logits[0, 3] = math.nan
            return logits

    found = evaluate(Broken(), EvalLoader(dataset, batch_size=7), world=init_world("cpu"))
    assert found.nonfinite == math.ceil(24 / 7)
    assert found.measures is not None
    assert found.measures.predicted.tolist() == [24 - found.nonfinite] * 10


SAME = (*MULTI, *SHORT, "--class-weights", "auto", "--sampler", "balanced", "--model-ema", "--recovery-interval", "3")


def test_a_run_that_is_stopped_goes_on_bit_for_bit(digits: Path, tmp_path: Path) -> None:
    """Mixed rows, weights and the balanced order follow from where the run stands."""
    (tmp_path / "whole").mkdir()
    run_here(digits, *SAME, cwd=tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    killing = (
        "import os, signal, sys\nfrom davit.engine import steps, train\nstep = steps.Stepper.step\n"
        "def dies(self, batches, epoch, number, *rest):\n"
        "    if (epoch, number) == (1, 5): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batches, epoch, number, *rest)\n"
        "steps.Stepper.step = dies\nsys.exit(train.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", killing, *train_command(digits, *SAME)[3:]]
    killed = subprocess.run(command, cwd=tmp_path / "parts", env=environment(), check=False, capture_output=True)
    assert killed.returncode == -9
    run_here(digits, *SAME, "--auto-resume", cwd=tmp_path / "parts")
    ends = [folder / "runs" / "a" / "last.pth.tar" for folder in (tmp_path / "whole", tmp_path / "parts")]
    assert weights_hash(ends[0]) == weights_hash(ends[1])


def test_the_batch_that_memory_holds(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by trying with rows of labels, mixed ones too: the run is that of the same numbers."""
    forward, most = DaViT.forward, 6

    def limited(self: DaViT, images: Tensor) -> Tensor:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images)

    monkeypatch.setattr(DaViT, "forward", limited)
    words = [*MULTI, *SHORT, "--epochs", "1", "--mixup", "0.8", "--cutmix", "1", "--model-ema"]
    found = run_here(digits, *words, "--batch-size", "auto", "--global-batch", "24", cwd=tmp_path)
    assert "--batch-size 6 --grad-accum-steps 4" in found.stderr
    auto = weights_hash(tmp_path / "runs/a/last.pth.tar")
    run_here(digits, *words, "--batch-size", "6", "--grad-accum-steps", "4", "--overwrite", cwd=tmp_path)
    assert weights_hash(tmp_path / "runs/a/last.pth.tar") == auto


def test_other_labels_are_other_data(digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_two_digits(data)
    run_here(data, *MULTI, *SHORT, "--epochs", "1", "--warmup-epochs", "0", cwd=tmp_path)
    text = (data / "labels.csv").read_text().splitlines()
    text[1] = text[1].partition(",")[0] + ",0;1;2"
    (data / "labels.csv").write_text("\n".join(text) + "\n")
    done = run_here(data, *MULTI, *SHORT, "--epochs", "2", "--warmup-epochs", "0", "--auto-resume", cwd=tmp_path)
    assert "list of files" in done.stderr


def test_one_class_is_legal_with_several_labels(tmp_path: Path) -> None:
    data = write_two_digits(tmp_path / "data", train=16, val=8)
    lines = (data / "labels.csv").read_text().splitlines()
    rows = [f"{line.partition(',')[0]},{'digit' if number % 2 else ''}" for number, line in enumerate(lines[1:])]
    (data / "labels.csv").write_text("\n".join(["path,labels", *rows]) + "\n")
    run_here(data, *MULTI, *SHORT, "--epochs", "1", "--warmup-epochs", "0", cwd=tmp_path)
    refused = run_here(data, *SHORT, cwd=tmp_path, status=2)
    assert refused.stderr


@pytest.mark.parametrize("words", [("--sampler", "balanced"), ("--class-weights", "auto"), ("--loss", "bce")])
def test_one_class_a_picture_trains_with_them_too(train: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    train(*SHORT, *words)
    assert len(summary(tmp_path / "runs" / "a")) == 2
