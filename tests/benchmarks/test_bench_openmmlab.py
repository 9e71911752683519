"""Check that detectors and segmentors are compared by their backbone, and by nothing else."""

import pytest
import torch

from davit.kernels import why_plain


@pytest.fixture
def script(script):
    return script("openmmlab_throughput")


def case(script, model, **more):
    return script.Case(model, "float32", "eager", **{"task": "upernet", "size": (64, 96), "batch": 2, **more})


def test_a_case_has_the_backbone_that_it_names(script):
    ours, plain = (script.build(case(script, name)) for name in ("DaViT_tiny", "DaViT_tiny:plain"))
    assert why_plain(plain.backbone) and not why_plain(ours.backbone)
    peer = script.build(case(script, "convnext_tiny"))
    assert type(peer.backbone).__name__ == "TimmLevels"
    assert [n for n, _ in peer.named_parameters() if not n.startswith("backbone")] == [
        n for n, _ in ours.named_parameters() if not n.startswith("backbone")
    ]


def test_any_config_with_its_own_backbone(script):
    built = script.build(case(script, script.OWN, task="davit_small_rtmdet_100e_coco"))
    assert built.backbone.depths == (1, 1, 9, 1) and script.is_detector("davit_small_rtmdet_100e_coco")
    assert not script.is_detector("upernet")
    with pytest.raises(SystemExit):
        script.main(["--methods", "davit_dino_1x_cocoa"])


@pytest.mark.parametrize("name", ["davit_tiny", "swin_tiny_patch4_window7_224", "convnext_tiny"])
def test_peers_give_the_maps_that_the_heads_read(script, name):
    levels = script.TimmLevels(name, (64, 96))(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in levels] == [(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]


def test_a_step_of_training_moves_the_weights(script, monkeypatch):
    built = []
    build = script.build
    monkeypatch.setattr(script, "build", lambda case: built.append(build(case)) or built[-1])
    step = script.prepared(case(script, "DaViT_tiny", mode="training", task="retinanet"))
    before = {name: p.detach().clone() for name, p in built[0].named_parameters()}
    step()
    moved = {name.split(".")[0] for name, p in built[0].named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"backbone", "neck", "bbox_head"}
