"""Compute features of models of many kinds: one vector per image, or an error that says what to choose."""

from typing import Any

import pytest
import timm
import torch

from davit.engine.features import embed_images, free_memory, pooled_features
from davit.engine.precision import Precision

CPU = Precision("cpu")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "DaViT_nano"])
def test_features_are_what_the_classifier_gets(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    images = torch.randn(3, 3, 32 if name == "DaViT_nano" else 64, 32 if name == "DaViT_nano" else 64)
    if name == "test_vit":
        images = torch.randn(3, 3, 160, 160)
    with torch.inference_mode():
        features = pooled_features(model, images)
        classifier = model.get_classifier()
        torch.testing.assert_close(classifier(features), model(images))
    assert features.shape == (3, model.head_hidden_size)
    torch.testing.assert_close(embed_images(model, images, CPU), features)


class _Map(torch.nn.Module):
    """Gives features of a shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(x), *self.shape)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x


def test_a_map_of_one_place_is_a_vector() -> None:
    assert pooled_features(_Map(7, 1, 1), torch.zeros(2, 3, 4, 4)).shape == (2, 7)


@pytest.mark.parametrize("model", [_Map(7, 2, 2), _Map(5, 7), torch.nn.Linear(2, 2)], ids=["map", "tokens", "none"])
def test_what_is_no_vector_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=type(model).__name__):
        pooled_features(model, torch.zeros(2, 3, 4, 4))


def test_half_of_a_batch_is_tried_where_memory_is_short() -> None:
    class Small(_Map):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise torch.cuda.OutOfMemoryError("too many")
            return x.flatten(1)

    images = torch.arange(28.0).reshape(7, 1, 2, 2)
    assert torch.equal(embed_images(Small(), images, CPU), images.flatten(1))


def test_free_memory_is_a_number_of_bytes() -> None:
    assert (free_memory() or 1 << 30) > 1 << 20
