"""Every config of a detector: what it costs, that it builds, learns and predicts."""

import csv
import re
from pathlib import Path

import pytest
import torch

from davit.openmmlab import flops
from davit.openmmlab.cli import train_main as train
from tests.conftest import REPOSITORY
from tests.openmmlab.conftest import DET, Go, build, config

TABLE = {
    # millions of parameters as spec/openmmlab.md has them, published GFLOPs at 1280 x 800
    "davit_maskrcnn_1x_coco": (47.87, 263),
    "davit_small_maskrcnn_1x_coco": (69.25, 351),
    "davit_base_maskrcnn_1x_coco": (107.33, 491),
    "davit_retinanet_1x_coco": (38.53, 244),
    "davit_small_retinanet_1x_coco": (59.92, 332),
    "davit_base_retinanet_1x_coco": (98.57, 471),
}
ALL = sorted(file.stem for file in DET.glob("davit_*_coco.py"))


def test_each_config_names_its_own_command() -> None:
    assert len(ALL) == 28
    for name in ALL:
        assert f"configs/{name}.py 8" in (DET / f"{name}.py").read_text()


@pytest.mark.parametrize("name", TABLE)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build(DET / f"{name}.py")
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == f"{TABLE[name][0]:.2f}"
    levels = [child for child, _ in model.backbone.named_children() if re.fullmatch(r"norm\d", child)]
    assert levels == [f"norm{level}" for level in ((1, 2, 3) if "retinanet" in name else (0, 1, 2, 3))]


def test_three_times_the_schedule() -> None:
    for name in [name for name in ALL if "3x" in name]:
        cfg = config(DET / f"{name}.py")
        assert cfg.train_cfg.max_epochs == 36 and cfg.param_scheduler[1].milestones == [27, 33]
        assert cfg.model.backbone.drop_path_rate == 0.2
        if name.replace("3x", "1x") in ALL:
            short = config(DET / f"{name.replace('3x', '1x')}.py")
            assert short.train_cfg.max_epochs == 12 and short.param_scheduler[1].milestones == [8, 11]
            assert short.model.backbone.drop_path_rate == 0.1
            cfg.model.backbone.drop_path_rate = 0.1
            assert cfg.model == short.model


def test_flops_of_a_small_picture() -> None:
    """Nearly all of a RetinaNet's are in proportion to the pixels."""
    found = flops.cost_of(config(DET / "davit_retinanet_1x_coco.py"), "small", (224, 224))
    assert found.flops * (800 * 1280) / (224 * 224) == pytest.approx(244e9, rel=0.01)
    assert set(found.shares) == {"backbone", "neck", "bbox_head"} and sum(found.shares.values()) == found.flops


@pytest.mark.long
@pytest.mark.parametrize("name", TABLE)
def test_flops_of_the_table(name: str) -> None:
    found = flops.cost_of(config(DET / f"{name}.py"), name)
    assert found.flops == pytest.approx(TABLE[name][1] * 1e9, rel=0.01)


def test_get_flops_prints_a_line(go: Go) -> None:
    said = go(flops.main, DET / "davit_nano_maskrcnn_digits.py", "--shape", "128")
    assert re.search(r"davit_nano_maskrcnn_digits: .*128 x 128 \(backbone [\d.]+, neck [\d.]+", said)
    assert "1 2 3" in go(flops.main, DET / "davit_nano_maskrcnn_digits.py", "--shape", "1", "2", "3", status=2)


def test_the_written_table_is_of_these_configs() -> None:
    rows = list(csv.DictReader((REPOSITORY / "benchmarks/results/openmmlab_costs/costs.csv").open()))
    found = {row["config"]: (row["parameters_M"], float(row["gflops"])) for row in rows}
    for name, (parameters, published) in TABLE.items():
        assert found[name][0] == f"{parameters:.2f}"
        assert found[name][1] == pytest.approx(published, rel=0.01)
    of_the_paper = {name for name in ALL if re.search("maskrcnn|retinanet", name) and "_fl_" not in name}
    assert of_the_paper <= set(found)


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_a_step_and_a_prediction_on_coco(go: Go, shared: Path, tmp_path: Path, name: str) -> None:
    words = [DET / f"{name}.py", "--data-root", shared / "data/coco-tiny", "--work-dir", tmp_path / "out"]
    options = ["train_cfg.max_epochs=1", "train_dataloader.batch_size=1", "default_hooks.checkpoint.save_best=None"]
    for split in ("train", "val"):
        options += [f"{split}_dataloader.num_workers=0", f"{split}_dataloader.dataset.indices=1"]
    go(train, *words, "--cfg-options", *options)
    assert (tmp_path / "out/epoch_1.pth").exists()
