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
    """And all classes cancel, as evidence is for a class rather than for the average one."""
    model, image = small(**options), picture(1, height=size[0], width=size[1])
    with torch.no_grad():
        logits = model(image)[0]
    found = class_evidence(model, image, range(7))
    maps = torch.stack([evidence.map_HW for evidence in found])
    torch.testing.assert_close(maps.sum(0), torch.zeros(maps.shape[1:]), atol=1e-4, rtol=0)
    assert maps.std() > 0.01
    for evidence in found:
        assert evidence.method == "exact" and evidence.map_HW.shape == (-(-size[0] // 32), -(-size[1] // 32))
        total = evidence.map_HW.mean().item() + evidence.offset
        assert total == pytest.approx((logits[evidence.class_index] - logits.mean()).item(), abs=1e-4)


@pytest.mark.parametrize("pooling, count, share", [("avg", 60, 0.9), ("max", 20, 0.75)])
def test_the_map_peaks_on_the_object(predictor: Predictor, pooling: str, count: int, share: float) -> None:
    """By chance 15 of 100 would; pooled by its maximum, the model still tells the colours apart, by occlusion."""
    predictor.model.global_pool = pooling
    hits = right = 0
    for one in map(scene, range(1000, 1000 + count)):
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
    assert right >= share * count and hits >= share * right


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


def test_other_models_poolings_and_tiny_pictures_are_occluded(
    small: Callable[..., Any], picture: Callable[..., Tensor]
) -> None:
    for model in (timm.create_model("resnet10t", num_classes=4).eval(), small(global_pool="avgmax")):
        (evidence,) = class_evidence(model, picture(1, height=128, width=128), [1])
        assert evidence.method == "occlusion" and evidence.map_HW.abs().max() > 0
    (evidence,) = class_evidence(small(), picture(1, height=5, width=3), [0])
    assert evidence.map_HW.shape == (5, 3) and evidence.map_HW.isfinite().all()
    with pytest.raises(ValueError, match=r"7 .* 0 to 6"):
        class_evidence(small(), picture(1), [0, 7])
    with pytest.raises(ValueError, match=r"\(2, 3"):
        class_evidence(small(), picture(2), [0])
