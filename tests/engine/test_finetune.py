"""Fine-tuning: frozen layers, the classifier's own rate, early stop, a schedule in parts."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import davit
from davit.engine.finetune import classifier_parameters, freeze, head_group, parameter_groups, training_mode
from davit.engine.flags import say_unused, train_parser
from davit.engine.run_folder import read_state
from tests.engine.runs import SHORT, run_here, small_model, summary, weights_hash


class NormedNet(nn.Module):
    """Two stages with batch norms and dropout, as timm's models name them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)) for _ in "ab"
        )
        self.head = nn.Linear(4, 3)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def train_steps(model: nn.Module, steps: int = 3) -> None:
    """A few steps of SGD on noise."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    training_mode(model)
    for _ in range(steps):
        model(torch.randn(4, 3, 16, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("what", "frozen"),
    [(0, ["stem"]), (1, ["stem", "stages.0"]), (2, ["stem", "stages.0", "stages.1"]), ("all", ["stem", "stages"])],
)
def test_what_is_frozen_keeps_every_bit_and_the_rest_learns(what: Any, frozen: list[str]) -> None:
    torch.manual_seed(0)
    model = NormedNet()
    freeze(model, what)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model)
    for name, tensor in model.state_dict().items():
        is_same = torch.equal(tensor, before[name])
        assert is_same == any(name.startswith(f"{part}.") for part in frozen), name
    modes = {name: module.training for name, module in model.named_modules() if name}
    assert not any(modes[name] for name in modes for part in frozen if name.startswith(f"{part}."))
    assert modes["head"]


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize(("what", "trained"), [(0, 1.0), (1, 0.5), ("all", 0.0)])
def test_a_davit_with_frozen_stages(what: Any, trained: float, accelerate: bool) -> None:
    model = small_model(drop_path_rate=0.5, accelerate=accelerate)
    freeze(model, what)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    learns = {"head"} if what == "all" else {"head", "norms", "main_blocks.1", "patch_embeds.1"}
    learns |= {"main_blocks.0"} if what == 0 else set()
    assert changed == {name for name in before if any(name.startswith(f"{part}.") for part in learns)}
    assert sum(block.training for block in model.main_blocks) / 2 == trained


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_other_models_have_stages_or_blocks_too(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    freeze(model, 1)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and not frozen & set(classifier_parameters(model))
    freeze(model, "all")
    left = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert left == classifier_parameters(model)


def test_stages_that_are_not_there() -> None:
    for model, what in [(small_model(), 3), (nn.Sequential(nn.Linear(2, 2)), "all"), (nn.Linear(2, 2), 0)]:
        with pytest.raises(ValueError):
            freeze(model, what)
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_the_classifier_has_a_rate_of_its_own(layer_decay: float | None) -> None:
    model = small_model()
    options: dict[str, Any] = {"weight_decay": 0.1, "layer_decay": layer_decay, "layer_decay_min_scale": 0.3}
    groups = parameter_groups(model, **options, head_scale=10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(p)]: group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    assert scales.keys() == set(names.values())
    assert scales["head.weight"] == scales["head.bias"] == 10
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays["head.weight"] == 0.1 and decays["head.bias"] == 0
    rest = {scale for name, scale in scales.items() if not name.startswith("head.")}
    assert rest == ({1.0} if layer_decay is None else {0.5, 0.3})
    found = groups[head_group(torch.optim.SGD(groups, lr=1), model)]["params"]
    assert {names[id(parameter)] for parameter in found} <= {"head.weight", "head.bias"}


def test_layers_and_head_of_a_student_beside_a_projection() -> None:
    whole = nn.ModuleDict({"student": small_model(), "projection": nn.Linear(3, 4)})
    student, projection = whole["student"], whole["projection"]
    options: dict[str, Any] = {"weight_decay": 0.1, "layer_decay": 0.5, "layer_decay_min_scale": 0.3, "head_scale": 10}
    groups = parameter_groups(whole, **options, student=student)
    facts = {id(p): (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(facts) == len(list(whole.parameters()))
    alone = parameter_groups(student, **options)
    for group in alone:
        assert all(facts[id(p)] == (group["lr_scale"], group["weight_decay"]) for p in group["params"])
    assert facts[id(projection.weight)] == (1, 0.1) and facts[id(projection.bias)] == (1, 0)


@pytest.mark.parametrize("words", ["--freeze 1 --head-lr-scale 5", "--freeze all --model-ema"])
def test_a_run_that_freezes_resumes_to_the_bit(pictures: Path, tmp_path: Path, words: str) -> None:
    flags = [*SHORT, *words.split(), "--epochs", "3"]
    run_here(pictures, *flags, "--experiment", "whole", cwd=tmp_path)
    run_here(pictures, *flags, "--stop-epoch", "2", cwd=tmp_path)
    assert len(summary(tmp_path / "runs/a")) == 2
    run_here(pictures, *flags, "--auto-resume", cwd=tmp_path)
    parts = [tmp_path / "runs" / name / "last.pth.tar" for name in ("whole", "a")]
    assert weights_hash(parts[0]) == weights_hash(parts[1])
    head = [float(row["lr"]) for row in summary(tmp_path / "runs/a")]
    if "head" in words:  # the rate that is written is the classifier's
        assert head[0] == pytest.approx(5 * train_parser().parse_args([]).warmup_lr)


def test_other_frozen_layers_after_a_resume(pictures: Path, tmp_path: Path) -> None:
    run_here(pictures, *SHORT, "--freeze", "all", "--epochs", "1", cwd=tmp_path)
    first = read_state(tmp_path / "runs/a/last.pth.tar")
    run_here(pictures, *SHORT, "--freeze", "0", "--auto-resume", cwd=tmp_path)
    last = read_state(tmp_path / "runs/a/last.pth.tar")
    assert sum(map(len, first["parameters"])) == 2 < sum(map(len, last["parameters"]))
    stem = "patch_embeds.0.proj.weight"
    assert torch.equal(first["state_dict"][stem], last["state_dict"][stem])


def test_early_stop_counts_epochs_since_the_best(pictures: Path, tmp_path: Path) -> None:
    # nothing is learnt, so that every epoch is as good as the first
    flags = [*SHORT, "--lr", "0", "--warmup-lr", "0", "--min-lr", "0", "--epochs", "9"]
    run_here(pictures, *flags, "--early-stop", "2", cwd=tmp_path)
    assert len(summary(tmp_path / "runs/a")) == 3
    run_here(pictures, *flags, "--early-stop", "2", "--auto-resume", cwd=tmp_path)
    assert len(summary(tmp_path / "runs/a")) == 3
    run_here(pictures, *flags, "--early-stop", "4", "--auto-resume", cwd=tmp_path)
    assert len(summary(tmp_path / "runs/a")) == 5


def test_early_stop_waits_for_an_evaluation(pictures: Path, tmp_path: Path) -> None:
    flags = [*SHORT, "--lr", "0", "--warmup-lr", "0", "--min-lr", "0", "--epochs", "9", "--val-interval", "3"]
    run_here(pictures, *flags, "--early-stop", "1", cwd=tmp_path)
    assert [bool(row["eval_top1"]) for row in summary(tmp_path / "runs/a")] == [False, False, True] * 2


def test_the_classifiers_first_values(pictures: Path, tmp_path: Path) -> None:
    still = ["--lr", "0", "--warmup-lr", "0", "--min-lr", "0", "--weight-decay", "0", "--epochs", "1"]
    heads = {}
    for name, words in {"plain": [], "scaled": ["--head-init-scale", "0.5", "--head-init-bias", "-3"]}.items():
        run_here(pictures, *SHORT, *still, *words, "--experiment", name, cwd=tmp_path)
        heads[name] = read_state(tmp_path / "runs" / name / "last.pth.tar")["state_dict"]
    assert torch.equal(0.5 * heads["plain"]["head.weight"], heads["scaled"]["head.weight"])
    assert heads["scaled"]["head.bias"].eq(-3).all() and heads["plain"]["head.bias"].eq(0).all()


@pytest.mark.parametrize(
    "words", ["--freeze -1", "--freeze 1.5", "--freeze some", "--freeze 7", "--opt-kwargs nothing=1"]
)
def test_mistakes_end_with_status_2(pictures: Path, tmp_path: Path, words: str) -> None:
    run_here(pictures, *SHORT, *words.split(), cwd=tmp_path, status=2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("--lora-alpha 4 --torchcompile-mode default --distill-temperature 2 --layer-decay-min-scale 0.1", 4),
        ("--lora-alpha 4 --lora 2 --layer-decay 0.5 --layer-decay-min-scale 0.1 --distill-weight 1", 0),
        ("--task-weight 0.5 --teacher some_model", 0),
    ],
)
def test_flags_without_the_one_that_they_go_with_are_named(
    words: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    say_unused(train_parser().parse_args(["DIR", *words.split()]))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * count


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--keep-epochs", "2,3,50"), ["--keep-epochs 3,50"]),
        (("--keep-epochs", "1,2"), []),
        (("--stop-epoch", "3"), ["--stop-epoch 3"]),
        (("--stop-epoch", "2", "--early-stop", "1"), []),
        (("--early-stop", "2"), ["--early-stop 2"]),
        (("--mixup-off-epoch", "2"), ["--mixup-off-epoch 2"]),
        (("--mixup-off-epoch", "2", "--mixup", "0", "--cutmix", "0"), []),
    ],
)
def test_epochs_that_are_never_reached_are_named(
    pictures: Path, tmp_path: Path, words: tuple[str, ...], named: list[str]
) -> None:
    done = run_here(pictures, *SHORT, *words, "--dry-run", cwd=tmp_path)
    assert [one for one in named if one not in done.stderr] == []
    assert done.stderr.count("has no effect") == len(named)


def test_options_reach_the_optimizer(pictures: Path, tmp_path: Path) -> None:
    run_here(pictures, *SHORT, "--opt", "sgd", "--opt-kwargs", "nesterov=false", "--epochs", "1", cwd=tmp_path)
    groups = read_state(tmp_path / "runs/a/last.pth.tar")["optimizer"]["param_groups"]
    assert {group["nesterov"] for group in groups} == {False}


@pytest.mark.parametrize(
    ("words", "factor"),
    [("--head-lr-scale 3", 3.0), ("--layer-decay 0.5", 1.0), ("--layer-decay 0.5 --head-lr-scale 4", 4.0)],
)
def test_the_rate_that_is_logged_is_the_heads(pictures: Path, tmp_path: Path, words: str, factor: float) -> None:
    """Where layers differ; the other layers of a decay have less, and the log says so once."""
    plain = [*SHORT, "--lr", "0.01", "--log-interval", "1"]
    run_here(pictures, *plain, cwd=tmp_path)
    said = run_here(pictures, *plain, *words.split(), "--experiment", "b", cwd=tmp_path).stderr
    one, other = ([float(row["lr"]) for row in summary(tmp_path / "runs" / name)] for name in "ab")
    assert other == pytest.approx([factor * rate for rate in one])
    rates = [group["lr"] for group in read_state(tmp_path / "runs/b/last.pth.tar")["optimizer"]["param_groups"]]
    assert min(rates) < max(rates) and said.count("different rates") == 1
    assert f"lr {other[0]:.4g}" in said, "of the epoch's line too"


def test_evaluation_after_every_third_epoch_and_the_last(pictures: Path, tmp_path: Path) -> None:
    flags = [*SHORT, "--epochs", "5", "--val-interval", "3"]
    run_here(pictures, *flags, cwd=tmp_path, curves=True)
    assert [bool(row["eval_top1"]) for row in summary(tmp_path / "runs/a")] == [False, False, True, False, True]
    assert sorted(file.name for file in (tmp_path / "runs/a").glob("checkpoint-*")) == [
        "checkpoint-2.pth.tar",
        "checkpoint-4.pth.tar",
    ]
    run_here(pictures, *flags, "--experiment", "b", "--stop-epoch", "1", cwd=tmp_path)
    run_here(pictures, *flags, "--experiment", "b", "--auto-resume", cwd=tmp_path)
    hashes = {weights_hash(tmp_path / "runs" / name / "last.pth.tar") for name in "ab"}
    assert len(hashes) == 1
    run_here(pictures, *flags, "--sched", "plateau", "--experiment", "c", cwd=tmp_path, status=2)


@pytest.mark.parametrize(("words", "decay"), [("", 0.2), ("--decay-epochs 2", 2.0)])
def test_wsd_decays_within_any_number_of_epochs(pictures: Path, tmp_path: Path, words: str, decay: float) -> None:
    run_here(pictures, *SHORT, "--sched", "wsd", "--epochs", "12", *words.split(), cwd=tmp_path)
    rates = [float(row["lr"]) for row in summary(tmp_path / "runs/a")]
    assert rates[-1] < rates[1] == max(rates)
    assert read_state(tmp_path / "runs/a/last.pth.tar")["args"]["decay_epochs"] == decay


@pytest.mark.parametrize(
    "words",
    [
        "--sched wsd --epochs 3",
        "--sched wsd --epochs 7",
        "--sched wsd --epochs 1 --warmup-epochs 0",
        "--sched rsqrt --epochs 3 --sched-on-updates",
    ],
)
def test_decays_within_few_epochs(pictures: Path, tmp_path: Path, words: str) -> None:
    run_here(pictures, *SHORT, *words.split(), cwd=tmp_path)
    rates = [float(row["lr"]) for row in summary(tmp_path / "runs/a")]
    assert rates[-1] < max(rates) or len(rates) == 1


@pytest.mark.parametrize("words", ["--sched wsd --warmup-epochs 5", "--sched rsqrt --warmup-epochs 0"])
def test_a_warm_up_that_leaves_nothing_to_decay_is_named(pictures: Path, tmp_path: Path, words: str) -> None:
    done = run_here(pictures, *SHORT, "--epochs", "3", *words.split(), cwd=tmp_path, status=2)
    assert "--warmup-epochs" in done.stderr


@pytest.mark.parametrize(("decay", "is_said"), [("0.99996", True), ("0.5", False)])
def test_an_average_that_the_run_is_too_short_for_is_said(
    pictures: Path, tmp_path: Path, decay: str, is_said: bool
) -> None:
    done = run_here(pictures, *SHORT, "--model-ema", "--model-ema-decay", decay, "--dry-run", cwd=tmp_path)
    assert ("--model-ema-decay" in done.stderr) == is_said


def test_an_average_that_warms_up_fits_any_run(pictures: Path, tmp_path: Path) -> None:
    done = run_here(pictures, *SHORT, "--model-ema", "--model-ema-warmup", "--dry-run", cwd=tmp_path)
    assert "--model-ema-decay" not in done.stderr


def test_a_single_class_is_refused(pictures: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        first = sorted((pictures / split).iterdir())[0]
        (tmp_path / "one" / split).mkdir(parents=True)
        (tmp_path / "one" / split / first.name).symlink_to(first)
    run_here(tmp_path / "one", *SHORT, cwd=tmp_path, status=2)
    run_here(tmp_path / "one", *SHORT, "--num-classes", "2", cwd=tmp_path, status=2)


def test_adapters_train_merge_and_resume(pictures: Path, tmp_path: Path) -> None:
    first = tmp_path / "start.pth"
    torch.save(small_model().state_dict(), first)
    flags = [*SHORT, "--lora", "2", "--epochs", "3", "--model-ema", "--initial-checkpoint", str(first)]
    run_here(pictures, *flags, "--experiment", "whole", cwd=tmp_path)
    run_here(pictures, *flags, "--stop-epoch", "1", cwd=tmp_path)
    run_here(pictures, *flags, "--auto-resume", cwd=tmp_path)
    runs = tmp_path / "runs"
    assert weights_hash(runs / "whole/last.pth.tar") == weights_hash(runs / "a/last.pth.tar")

    raw = read_state(runs / "a/model_best.pth.tar")["state_dict_ema"]
    merged = load_file(runs / "a/merged.safetensors")
    start = small_model().state_dict()
    assert merged.keys() == start.keys()
    adapted = {name.removesuffix(".lora_A.default.weight") for name in raw if ".lora_A." in name}
    assert len(adapted) == 16  # four linear layers of each of four blocks
    for name, tensor in merged.items():
        layer = name.rpartition(".")[0]
        if name.endswith(".weight") and layer in adapted:
            product = raw[f"{layer}.lora_B.default.weight"] @ raw[f"{layer}.lora_A.default.weight"]
            assert torch.allclose(tensor, start[name] + 2 * product, atol=1e-6)  # alpha is twice the rank
        elif not name.startswith("head."):
            assert torch.equal(tensor, start[name]), name
    assert not torch.equal(merged["head.weight"], start["head.weight"])

    peft = pytest.importorskip("peft")
    base = peft.PeftModel.from_pretrained(small_model(accelerate=False), runs / "a/adapter")
    for name, tensor in base.merge_and_unload().state_dict().items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name

    pixels = torch.randn(2, 3, 16, 16)
    plain = small_model().eval()
    plain.load_state_dict(merged)
    loaded = davit.load(runs / "a/model_best.pth.tar", device="cpu")
    assert torch.allclose(loaded.model(pixels), plain(pixels), atol=1e-5)
    run_here(pictures, *flags, "--freeze", "1", "--experiment", "b", cwd=tmp_path, status=2)
