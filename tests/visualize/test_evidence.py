"""Check the class activation map: it adds up to the logit, and it is where the object is."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from davit.predict import Predictor
from davit.visualize import class_evidence
from tests.visualize.conftest import RADIUS, SIDE, as_input, scene


@pytest.mark.parametrize("options", [{}, {"norm_layer": partial(torch.nn.LayerNorm, bias=False)}], ids=["", "no bias"])
@pytest.mark.parametrize("size", [(128, 128), (150, 211)])
def test_the_places_add_up_to_the_logit(
    small: Callable[..., Any], picture: Callable[..., Tensor], size: tuple[int, int], options: dict[str, Any]
) -> None:
    model, image = small(**options), picture(1, height=size[0], width=size[1])
    with torch.no_grad():
        logits = model(image)[0]
    for evidence in class_evidence(model, image, range(7)):
        assert evidence.method == "exact" and evidence.map_HW.shape == (-(-size[0] // 32), -(-size[1] // 32))
        total = evidence.map_HW.mean().item() + evidence.offset
        assert total == pytest.approx((logits[evidence.class_index] - logits.mean()).item(), abs=1e-4)


def test_the_evidence_of_all_classes_cancels(small: Callable[..., Any], picture: Callable[..., Tensor]) -> None:
    """It is for a class rather than for the average one."""
    maps = [evidence.map_HW for evidence in class_evidence(small(), picture(1, height=128, width=128), range(7))]
    torch.testing.assert_close(torch.stack(maps).sum(0), torch.zeros(4, 4), atol=1e-4, rtol=0)
    assert torch.stack(maps).std() > 0.01


def on_the_object(predictor: Predictor, seeds: range) -> tuple[int, int]:
    """How many maps peak on the object, of how many pictures classified rightly."""
    hits = right = 0
    for seed in seeds:
        one = scene(seed)
        image = as_input([one])
        with torch.no_grad():
            if int(predictor.model(image).argmax()) != one.colour:
                continue
        right += 1
        (evidence,) = class_evidence(predictor.model, image, [one.colour])
        rows, columns = evidence.map_HW.shape
        row, column = divmod(int(evidence.map_HW.argmax()), columns)
        cell = SIDE / rows
        away = max(abs((row + 0.5) * cell - one.centre[0]), abs((column + 0.5) * cell - one.centre[1]))
        hits += away <= RADIUS + cell / 2
    return hits, right


def test_the_map_peaks_on_the_object(predictor: Predictor) -> None:
    """By chance 15 of 100 would."""
    hits, right = on_the_object(predictor, range(1000, 1060))
    assert right >= 54
    assert hits >= 0.9 * right


def test_occlusion_peaks_there_too(predictor: Predictor) -> None:
    """Pooled by its maximum, the model still tells the colours apart, and its head is no mean."""
    predictor.model.global_pool = "max"
    hits, right = on_the_object(predictor, range(1000, 1020))
    assert right >= 15
    assert hits >= 0.75 * right


def test_occlusion_is_the_loss_of_the_logit(small: Callable[..., Any], picture: Callable[..., Tensor]) -> None:
    model, image = small(), picture(1, height=32, width=40)  # its last map is 1 x 2
    first, second = class_evidence(model, image, [2, 5])
    assert first.method == "occlusion" and first.map_HW.shape == (8, 8)
    hidden = image.clone()
    for channel in range(3):
        hidden[:, channel, 4:16, 25:40] = image[0, channel].flatten().sort().values[(32 * 40 - 1) // 2]
    with torch.no_grad():
        before, after = model(image)[0], model(hidden)[0]
    loss = (before - before.mean()) - (after - after.mean())
    assert first.map_HW[2, 6].item() == pytest.approx(loss[2].item(), abs=1e-5)
    assert second.map_HW[2, 6].item() == pytest.approx(loss[5].item(), abs=1e-5)


def test_other_models_and_poolings_are_occluded(small: Callable[..., Any], picture: Callable[..., Tensor]) -> None:
    others = [small(global_pool="max"), small(global_pool="avgmax")]
    for model in (timm.create_model("resnet10t", num_classes=4).eval(), *others):
        (evidence,) = class_evidence(model, picture(1, height=128, width=128), [1])
        assert evidence.method == "occlusion" and evidence.map_HW.abs().max() > 0


def test_pictures_smaller_than_the_tiles(small: Callable[..., Any], picture: Callable[..., Tensor]) -> None:
    (evidence,) = class_evidence(small(), picture(1, height=5, width=3), [0])
    assert evidence.map_HW.shape == (5, 3) and evidence.map_HW.isfinite().all()


def test_mistakes(small: Callable[..., Any], picture: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"7 .* 0 to 6"):
        class_evidence(small(), picture(1), [0, 7])
    with pytest.raises(ValueError, match=r"\(2, 3"):
        class_evidence(small(), picture(2), [0])
