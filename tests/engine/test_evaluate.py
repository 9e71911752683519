"""Check the one evaluation: right figures, each image once, and nothing of the training disturbed."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davit.choices import BUNDLED_REAL
from davit.data import BadImageError, DataError, EvalLoader, PictureDataset, eval_transform, open_dataset
from davit.engine.distributed import PeerError, StoppedError, World, in_step, is_out_of_memory
from davit.engine.evaluate import Evaluation, MiscountError, evaluate
from davit.engine.labels import Labels, real_labels, subset_labels
from davit.engine.load_model import TestTimePool, pooling_window
from davit.registry import create_model
from tests.engine.runs import small_model

ALONE = World(0, 0, 1, torch.device("cpu"))
READ = eval_transform(img_size=16)


@pytest.fixture
def dataset(pictures: Path) -> PictureDataset:
    """13 validation images of 3 classes."""
    return open_dataset(pictures, "val", transform=READ)


def loader(dataset: PictureDataset, batch_size: int = 5, **options: Any) -> EvalLoader:
    return EvalLoader(dataset, batch_size=batch_size, **options)


def run(model: nn.Module, dataset: PictureDataset, batch_size: int = 5, **options: Any) -> Evaluation:
    return evaluate(model, loader(dataset, batch_size), world=ALONE, **options)


def logits_and_targets(model: nn.Module, dataset: PictureDataset) -> tuple[Tensor, Tensor]:
    images, targets = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    with torch.no_grad():
        return model.eval()(torch.stack(images)), torch.tensor(targets)


class Answers(nn.Module):
    """Give logits by a rule, whatever the weights."""

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, images: Tensor) -> Tensor:
        return self.rule(images)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 1), (64, 0)])
def test_figures_are_those_of_a_plain_computation(dataset: PictureDataset, batch_size: int, workers: int) -> None:
    model = small_model(num_classes=9)
    logits, targets = logits_and_targets(model, dataset)
    found = evaluate(model, loader(dataset, batch_size, workers=workers), world=ALONE)
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)  # how many classes are before the right one
    assert (found.correct1, found.correct5) == (int((ranks < 1).sum()), int((ranks < 5).sum()))
    assert 0 < found.correct5 < len(dataset)
    assert found.count == found.scored == len(dataset) == 13
    assert found.top1 == pytest.approx(100 * float((ranks < 1).float().mean()))
    assert found.top5 == pytest.approx(100 * float((ranks < 5).float().mean()))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    assert found.skipped == found.nonfinite == 0
    assert found.images_per_second > 0 and 0 < found.data_wait < 1 and 10 < found.peak_memory_mb < 1e6


def test_the_interval_is_wilsons() -> None:
    low, high = Evaluation(10, 10, 8, 8, 0.0, 0, 0, 1.0, 0.0, 1.0).top1_interval
    for end in (low / 100, high / 100):  # by its definition: 1.96 standard deviations away from the share found
        assert abs(0.8 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 10))
    assert Evaluation(0, 0, 0, 0, 0.0, 0, 0, 1.0, 0.0, 1.0).top1_interval == (0, 100)


def test_logits_that_are_not_numbers_are_reported_and_wrong(dataset: PictureDataset) -> None:
    def rule(images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 3)
        logits[:, 0] = 1
        logits[0] = torch.nan  # the first of each batch
        return logits

    found = run(Answers(rule), dataset, batch_size=4)
    of_class_0 = [i for i in range(13) if dataset.source.open(i)[1] == 0]
    assert found.nonfinite == 4
    assert found.correct1 == len([i for i in of_class_0 if i % 4]) < len(of_class_0)
    assert math.isnan(found.loss)


def test_modules_get_their_modes_back_also_after_an_error(dataset: PictureDataset) -> None:
    model = small_model().train()
    model.patch_embeds.eval()
    before = [module.training for module in model.modules()]
    run(model, dataset)
    assert [module.training for module in model.modules()] == before

    model.norms.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, dataset)
    assert [module.training for module in model.modules()] == before


def test_inference_mode_autocast_and_the_random_states(dataset: PictureDataset) -> None:
    found = set()

    def rule(images: Tensor) -> Tensor:
        logits = torch.rand(len(images), 3) @ torch.ones(3, 3)
        found.add((logits.dtype, logits.is_inference()))
        return logits

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    for workers in (0, 1):
        evaluate(Answers(rule), loader(dataset, workers=workers), world=ALONE, autocast=autocast)
    assert found == {(torch.bfloat16, True)} and not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_bad_pictures_stop_it_or_are_counted(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "val", tmp_path / "val")
    (tmp_path / "val" / "red" / "0.png").write_bytes(b"")
    dataset = open_dataset(tmp_path, "val", transform=READ)
    with pytest.raises(BadImageError, match=r"red/0\.png"):
        run(small_model(), dataset)
    # batches of one: a batch of nothing but the bad image is never handed out
    skipping = loader(dataset, 1, skip_bad_images=True)
    for _ in range(2):
        found = evaluate(small_model(), skipping, world=ALONE)
        assert (found.count, found.skipped) == (12, 1)
        assert [Path(file).name for file in found.bad_images] == ["0.png"]


def test_a_limit_ends_early_and_the_next_pass_is_whole(dataset: PictureDataset) -> None:
    ours = loader(dataset, workers=1)
    assert evaluate(small_model(), ours, world=ALONE, limit_batches=2).count == 10
    assert evaluate(small_model(), ours, world=ALONE).count == 13


@pytest.mark.parametrize("positions", [[0, 1, 2, 3], [*range(13), 5], [0, 0, *range(2, 13)]])
def test_a_picture_lost_or_seen_twice_is_an_internal_error(dataset: PictureDataset, positions: list[int]) -> None:
    faulty = loader(dataset, 64)
    (whole,) = faulty.batches()
    fields = {name: getattr(whole, name)[positions] for name in ("images", "targets", "indices")}
    faulty.batches = lambda: iter([whole._replace(**fields)])  # type: ignore[method-assign]
    with pytest.raises(MiscountError):
        evaluate(small_model(), faulty, world=ALONE)


def test_a_class_that_the_model_lacks_is_an_error_before_it_can_break_the_device(dataset: PictureDataset) -> None:
    with pytest.raises(DataError, match=r"class 2 .* 0 to 1"):
        run(small_model(num_classes=2), dataset)


@pytest.mark.parametrize(
    ("reports", "expected", "is_memory", "status"),
    [
        ([("MemoryError: ", True, 1), None], PeerError, True, 1),
        ([("MemoryError: ", True, 1), ("OSError: no disk", False, 4)], PeerError, False, 1),
        (["stopped", None], StoppedError, False, None),
        (["stopped", ("OSError: no disk", False, 4)], PeerError, False, 4),  # a failure comes first
    ],
)
def test_what_happens_to_another_process_stops_this_one(
    reports: list[Any], expected: Any, is_memory: bool, status: int | None
) -> None:
    world: Any = SimpleNamespace(size=3, gather=lambda mine: [mine, *reports])
    with pytest.raises(expected) as raised, in_step(world):
        pass
    assert getattr(raised.value, "exit_status", None) == status
    assert is_out_of_memory(raised.value) is is_memory
    with pytest.raises(expected), in_step(world):
        raise StoppedError
    told: list[Any] = []
    world.gather = lambda mine: told.append(mine) or [mine, *reports]
    with pytest.raises(OSError), in_step(world):
        raise OSError(28, "No space left on device")
    assert told[0][1:] == (False, 4)  # as this process ends, so do the others


def test_what_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**52)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape '[2, 3]' is invalid for input of size 7"))
    assert not is_out_of_memory(ValueError("cuda error: out of memory"))


# -- other labels


def write_lines(folder: Path, *lines: object) -> Path:
    file = folder / "labels.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("class_map", "columns", "wanted"),  # wanted: the class index of an image -> its column
    [(None, [6, 2], {0: 0, 1: 1}), ({"blue": 4, "red": 2, "green": 0}, [2, 4, 5], {4: 1, 2: 0})],
    ids=["in the order of the folders", "by the model's own indices"],
)
def test_a_subset_of_classes_competes_alone(
    tmp_path: Path, pictures: Path, class_map: dict[str, int] | None, columns: list[int], wanted: dict[int, int]
) -> None:
    for name in ("blue", "red"):
        shutil.copytree(pictures / "val" / name, tmp_path / "val" / name)
    dataset = open_dataset(tmp_path, "val", class_map=class_map, transform=READ)
    model = small_model(num_classes=7)
    found = run(model, dataset, labels=subset_labels(write_lines(tmp_path, *columns), dataset, 7))
    logits, targets = logits_and_targets(model, dataset)
    competing, right = logits[:, columns], torch.tensor([wanted[target] for target in targets.tolist()])
    assert found.correct1 == int((competing.argmax(1) == right).sum())
    assert found.loss == pytest.approx(float(F.cross_entropy(competing, right)), rel=1e-5)
    assert found.top5 == 100


@pytest.mark.parametrize(
    ("lines", "num_classes", "value"),
    [
        *(((0, 9), 7, "9"), ((0, "dog"), 7, "dog"), ((1, 1), 7, "twice"), ((), 7, "no index")),
        *(((0, 1), 3, "red"), ((0, 1), 7, "3 classes.* 2 .* 7")),
    ],
)
def test_subsets_that_cannot_be_used(
    dataset: PictureDataset, tmp_path: Path, lines: tuple[object, ...], num_classes: int, value: str
) -> None:
    with pytest.raises(DataError, match=value):
        subset_labels(write_lines(tmp_path, *lines), dataset, num_classes)
    with pytest.raises(DataError, match=r"none\.txt"):
        subset_labels(tmp_path / "none.txt", dataset, num_classes)


@pytest.fixture
def imagenet_like(tmp_path: Path, pictures: Path) -> PictureDataset:
    """Six images under ImageNet's names, of numbers 2, 3, 5, 7, 8, 9."""
    numbers = iter((5, 2, 9, 3, 8, 7))
    for name in ("blue", "green", "red"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(2):
            copy = tmp_path / "val" / name / f"ILSVRC2012_val_{next(numbers):08d}.png"
            shutil.copy(pictures / "val" / name / f"{i}.png", copy)
    return open_dataset(tmp_path, "val", transform=READ)


def test_real_labels_are_found_by_file_name(imagenet_like: PictureDataset, tmp_path: Path) -> None:
    answers = [[0], [2, 6], [], [1], [5, 6, 0], [4], [], [3], [6], [6]]  # of the images 1 to 10
    (tmp_path / "real.json").write_text(json.dumps(answers))
    model = small_model(num_classes=7, seed=3)
    found = run(model, imagenet_like, 4, labels=real_labels(tmp_path / "real.json", imagenet_like, Labels()))
    logits, _ = logits_and_targets(model, imagenet_like)
    numbers = [int(name[-12:-4]) for name in imagenet_like.filenames()]
    right = [answers[number - 1] for number in numbers]
    first = logits.topk(5, dim=1).indices.tolist()
    assert found.correct1 == sum(row[0] in classes for row, classes in zip(first, right, strict=True))
    assert found.correct5 == sum(bool({*row} & {*classes}) for row, classes in zip(first, right, strict=True))
    assert (found.count, found.scored) == (6, 4)  # 3 and 7 have no label
    assert found.top5 == 100 * found.correct5 / 4

    assert len(real_labels(BUNDLED_REAL, imagenet_like, Labels()).real or ()) == 6
    subset = Labels(columns=(6, 0, 5))
    found = run(model, imagenet_like, labels=real_labels(tmp_path / "real.json", imagenet_like, subset))
    best = torch.tensor([6, 0, 5])[logits[:, [6, 0, 5]].argmax(1)].tolist()
    assert found.correct1 == sum(one in classes for one, classes in zip(best, right, strict=True))


@pytest.mark.parametrize("text", ["[[1]]", "[[1], 2]", "{", "[[], [], [], [], [], [], [], [], []]"])
def test_real_labels_that_cannot_be_used(
    imagenet_like: PictureDataset, dataset: PictureDataset, tmp_path: Path, text: str
) -> None:
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(DataError, match=r"real\.json"):
        real_labels(tmp_path / "real.json", imagenet_like, Labels())
    with pytest.raises(DataError, match=r"blue/0\.png"):  # no image of ImageNet's
        real_labels(BUNDLED_REAL, dataset, Labels())


# -- test-time pooling


@pytest.mark.parametrize("name", ["resnet10t", "DaViT_nano"])
def test_pooling_is_the_head_on_each_window(name: str) -> None:
    torch.manual_seed(0)
    model, images = create_model(name, num_classes=5).eval(), torch.randn(2, 3, 128, 96)
    assert pooling_window(model, (96, 64), (128, 96)) == (3, 2)
    with torch.no_grad():
        maps = model.forward_features(images)  # (2, C, 4, 3)
        windows = [maps[:, :, y : y + 3, x : x + 2] for y in range(2) for x in range(2)]
        logits = torch.stack([model.forward_head(window) for window in windows])
        pooled = TestTimePool(model, (3, 2))(images)
    torch.testing.assert_close(pooled, 0.5 * (logits.mean(0) + logits.amax(0)), rtol=1e-4, atol=1e-5)


def test_pooling_is_for_larger_pictures_and_for_maps() -> None:
    model = small_model().eval()
    for size in ((64, 64), (64, 128), (32, 32)):
        assert pooling_window(model, (64, 64), size) is None
    with pytest.raises(ValueError, match="VisionTransformer"):
        pooling_window(timm.create_model("test_vit").eval(), (160, 160), (192, 192))
