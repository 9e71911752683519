"""Whole models at drawn sizes: ONNX Runtime, OpenVINO and torch.export's programs against PyTorch."""

import math
import random

import pytest
import torch

import davit
from davit.export import ExportOptions, export
from davit.export.check import Reference
from davit.runtimes import open_exported
from tests.conftest import randomise

DRAWN = random.Random(24)
SIZES = [(DRAWN.randint(1, 3), DRAWN.randint(33, 512) | 1, DRAWN.randint(33, 512)) for _ in range(12)]


def checkpoint(folder, name, **kwargs):
    model = randomise(davit.create_model(name, accelerate=False, **kwargs), 5).eval()
    args = {"model": name, "model_kwargs": {k: v for k, v in kwargs.items() if k != "num_classes"}}
    file = folder / "best.pth.tar"
    torch.save({"state_dict": model.state_dict(), "args": {**args, "num_classes": model.num_classes}}, file)
    return file, model


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return (self.model(images),)


class Maps(Logits):
    def forward(self, images):
        maps = self.model.forward_stages(images)
        return tuple(torch.nn.functional.layer_norm(one, one.shape[-1:]).permute(0, 3, 1, 2) for one in maps)


def drawn(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def largest(path, module, sizes):
    """How far an export is from float64 at the worst of several sizes."""
    opened, reference = open_exported(path), Reference(module)
    return max(reference.distance(opened(images), images).runtime for images in (drawn(*size) for size in sizes))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("DaViT_nano", "classification"),
        pytest.param("DaViT_base_fl", "pyramid", marks=pytest.mark.long),
    ],
)
def test_reduced_models_at_twelve_drawn_sizes(tmp_path, name, task):
    kwargs = {"num_classes": 7}
    if name != "DaViT_nano":
        kwargs = {**kwargs, "embed_dims": (16, 32, 48, 64), "num_heads": (2, 2, 4, 4), "depths": (1, 1, 1, 1)}
    file, model = checkpoint(tmp_path, name, **kwargs)
    path = export(file, tmp_path / "a.onnx", ExportOptions(task=task, model_options={"img_size": 64})).path
    assert largest(path, Maps(model) if task == "pyramid" else Logits(model), SIZES) <= 1e-5


def test_a_program_whose_attention_scales_by_the_number_of_positions_is_opened(tmp_path):
    """Its sizes' expressions have a power, of the channel attention of the Florence-2 variants."""
    narrow = {"embed_dims": (16, 32), "num_heads": (2, 2), "depths": (1, 1)}
    file, model = checkpoint(tmp_path, "DaViT_base_fl", num_classes=3, **narrow)
    path = export(file, tmp_path / "a.pt2", ExportOptions(model_options={"img_size": 64})).path
    assert largest(path, Logits(model), SIZES[1:3]) <= 1e-5


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["DaViT_tiny", "DaViT_base_fl"])
def test_whole_models_in_every_runtime(tmp_path, name):
    """Whole models of random weights amplify rounding, PyTorch's too: it differs from float64 by up to 3e-5."""
    file, model = checkpoint(tmp_path, name, num_classes=1000)
    reference = Reference(Logits(model))
    # base takes a minute for all runtimes at each large size; that sizes are free is shown by tiny at all twelve
    sizes = SIZES if name == "DaViT_tiny" else sorted(SIZES, key=math.prod)[:4]
    forms = {".onnx": sizes, ".pt2": sizes, ".xml": sizes[:4], ".pte": [(1, 224, 224)]}
    for suffix, taken in forms.items():
        done = export(file, tmp_path / f"a{suffix}", ExportOptions(model_options={"img_size": 224}))
        assert all(one["pytorch"] > 0 for one in done.metadata.differences)
        opened = open_exported(done.path)
        for size in taken:
            images = drawn(*size)
            distance = reference.distance(opened(images), images)
            assert done.metadata.tolerance == (1e-4 if suffix == ".pte" else 1e-5)  # XNNPACK rounds more
            assert distance.runtime <= distance.allowed(done.metadata.tolerance), (suffix, size, distance)
