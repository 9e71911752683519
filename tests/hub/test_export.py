"""Exported folders: what timm, transformers and we read from them is the model that was exported."""

import json
import logging
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch
import yaml

import davit
from davit import VARIANTS
from davit.hub.__main__ import main
from davit.hub.export import FILES, DifferentError, ExportOptions, export
from tests.conftest import randomise
from tests.hub.conftest import NAMES, PYTHON, WITHOUT_DAVIT

EXPRESSIBLE = [
    ("DaViT_nano", {}, "davit_tiny"),
    ("DaViT_nano", {"window_size": 12, "cpe_act": True, "qkv_bias": False}, "davit_tiny"),
    ("DaViT_nano", {"overlapped_patch": True, "mlp_ratio": 2.5}, "davit_tiny"),
    ("DaViT_nano", {"attention_types": ["channel", "spatial", "channel"]}, "davit_tiny"),
    ("DaViT_nano", {"attention_types": ["channel"], "ffn": False}, "davit_tiny"),
    ("DaViT_nano", {"global_pool": "max"}, "davit_tiny"),
    ("DaViT_nano", {"in_chans": 1}, "davit_tiny"),
    ("DaViT_nano", {"in_chans": 5, "num_classes": 2}, "davit_tiny"),
    ("DaViT_tiny", {}, "davit_tiny"),
    ("DaViT_large_window12_384", {"embed_dims": [16, 32, 48, 64], "num_heads": [2, 2, 4, 4]}, "davit_large"),
    ("DaViT_huge", {"embed_dims": [16, 32, 48, 64], "num_heads": [2, 2, 4, 4]}, "davit_huge"),
]


def logits(model: torch.nn.Module, bands: int = 3, size: tuple[int, int] = (40, 52)) -> torch.Tensor:
    images = torch.randn(2, bands, *size, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        return model.eval()(images)


def logits_without_davit(folder: Path, tmp_path: Path, with_transformers: bool) -> dict[str, torch.Tensor]:
    """What timm and transformers compute in a process that cannot import davit."""
    script = f"""{WITHOUT_DAVIT}
import json, torch, timm
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
bands = model.pretrained_cfg["input_size"][0]
images = torch.randn(2, bands, 40, 52, generator=torch.Generator().manual_seed(9))
with torch.inference_mode():
    found = {{"timm": model(images)}}
    if {with_transformers}:
        from transformers import AutoModelForImageClassification
        other = AutoModelForImageClassification.from_pretrained("{folder}").eval()
        found["transformers"] = other(images).logits
        found["names"] = [other.config.id2label[i] for i in range(len(other.config.id2label))]
torch.save(found, "{tmp_path}/found.pt")
"""
    subprocess.run([PYTHON, "-c", script], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    return torch.load(tmp_path / "found.pt")


@pytest.mark.parametrize("name, kwargs, architecture", EXPRESSIBLE)
def test_timm_computes_the_same(exported, never_published, name, kwargs, architecture):
    folder, model = exported(name, **kwargs)
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == architecture
    args = config.get("model_args", {})
    assert "num_classes" not in args and ("in_chans" in args) == ("in_chans" in kwargs)
    assert ("global_pool" in args) == ("global_pool" in kwargs)
    read = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert type(read).__module__ == "timm.models.davit"
    bands = kwargs.get("in_chans", 3)
    assert (logits(read, bands) - logits(model, bands)).abs().max() < 1e-5
    # and ours again: the same tensors, under our names
    again = davit.load(folder)
    assert isinstance(again.model, davit.DaViT)
    state = again.model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert len(state) == len(model.state_dict())
    assert again.model.main_blocks[0][0][0].__class__.__module__.startswith("davit")
    assert (logits(again.model, bands) - logits(model, bands)).abs().max() < 1e-5


@pytest.mark.parametrize("kwargs", [{}, {"in_chans": 2, "global_pool": "avgmax"}])
def test_without_davit(exported, tmp_path, kwargs):
    folder, model = exported(**kwargs)
    found = logits_without_davit(folder, tmp_path, with_transformers=True)
    for library in ("timm", "transformers"):
        assert (found[library] - logits(model, kwargs.get("in_chans", 3))).abs().max() < 1e-5
    assert found["names"] == NAMES


@pytest.mark.skipif("DaViT_base_fl" not in VARIANTS, reason="Florence-2's function is not here")
@pytest.mark.parametrize("overlapped", [True, False])
def test_florence2s_function(exported, overlapped):
    small = {"embed_dims": [16, 32, 48, 64], "num_heads": [2, 2, 4, 4], "depths": [1, 1, 2, 1]}
    folder, model = exported("DaViT_base_fl", **small, overlapped_patch=overlapped)
    assert json.loads((folder / "config.json").read_text())["architecture"] == "davit_base_fl"
    read = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert (logits(read) - logits(model)).abs().max() < 1e-5
    again = davit.load(folder)
    assert isinstance(again.model, davit.DaViT)
    assert (logits(again.model) - logits(model)).abs().max() < 1e-5


@pytest.mark.parametrize("kwargs", [{"ffn": False}, {"patch_size": 2}])
def test_what_timm_cannot_express_needs_davit(exported, never_published, kwargs):
    folder, model = exported(**kwargs)
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "DaViT_nano" and config["model_args"] == kwargs
    card = (folder / "README.md").read_text()
    assert "import davit" in card and "from transformers" not in card
    read = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert (logits(read) - logits(model)).abs().max() < 1e-5
    assert (logits(davit.load(folder).model) - logits(model)).abs().max() < 1e-5


def test_which_architecture_can_be_asked_for(trained, tmp_path):
    path, model = trained()
    ours = export(path, tmp_path / "ours", ExportOptions(architecture="davit"))
    assert ours.architecture == "DaViT_nano" and ours.needs_davit
    state = safetensors.torch.load_file(ours.folder / "model.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    path, _ = trained(folder="other", ffn=False)
    with pytest.raises(ValueError, match="ffn"):
        export(path, tmp_path / "theirs", ExportOptions(architecture="timm"))
    assert not (tmp_path / "theirs").exists()


def test_another_architecture_is_exported_as_itself(tmp_path, trained):
    model = randomise(timm.create_model("resnet10t", num_classes=3), 0)
    torch.save({"state_dict": model.state_dict(), "arch": "resnet10t", "args": {"num_classes": 3}}, tmp_path / "r.pth")
    done = export(tmp_path / "r.pth", tmp_path / "out")
    assert done.architecture == "resnet10t" and not done.needs_davit
    read = timm.create_model(f"local-dir:{done.folder}", pretrained=True)
    assert (logits(read, size=(64, 64)) - logits(model, size=(64, 64))).abs().max() < 1e-5
    assert "davit" not in yaml.safe_load((done.folder / "README.md").read_text().split("---")[1])["tags"]


def test_everything_that_is_said_comes_back(exported):
    folder, _ = exported(options=ExportOptions(license="MIT", data="- a list\n- of data", description="What it is."))
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    read = davit.load(f"local-dir:{folder}")
    assert list(read.class_names) == NAMES
    wanted = {"input_size": (3, 40, 40), "mean": (0.1, 0.2, 0.3), "std": (0.3,) * 3, "crop_pct": 0.8}
    for name, value in wanted.items():
        assert read.config[name] == pytest.approx(value), name
    assert read.config["interpolation"] == "bilinear"
    by_timm = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}"))
    assert by_timm["mean"] == pytest.approx([0.1, 0.2, 0.3]) and list(by_timm["input_size"]) == [3, 40, 40]
    with safetensors.safe_open(folder / "model.safetensors", "pt") as opened:
        assert opened.metadata()["format"] == "pt"


def test_the_card(exported):
    folder, _ = exported(options=ExportOptions(license="My own licence", data="digits: 8x8", name="A | name"))
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["license"] == "other" and fields["license_name"] == "My own licence"
    assert fields["library_name"] == "timm" and fields["pipeline_tag"] == "image-classification"
    assert {"image-classification", "timm", "transformers"} <= set(fields["tags"])
    (entry,) = fields["model-index"]
    assert (
        entry["results"][0]["metrics"][0]["value"] == 90.0 and entry["results"][0]["dataset"]["name"] == "digits: 8x8"
    )
    assert "| 90 | 86.47 to 92.69 | 360 |" in body  # 324 of 360, Wilson
    assert (
        r"a \| name".lower() in body.lower() and "über\\|日本" in body and r"a\x0aline" in body.replace("\\\\", "\\")
    )
    for way in ("timm.create_model", "transformers", "davit.load"):
        assert way in body


def test_names_unknown_and_imagenets(trained, tmp_path, caplog):
    path, _ = trained(num_classes=1000)
    state = torch.load(path)
    state["class_names"] = timm.data.ImageNetInfo("imagenet-1k").label_names()
    torch.save(state, path)
    done = export(path, tmp_path / "imagenet")
    assert "label_names" not in json.loads((done.folder / "config.json").read_text())  # every reader knows them
    assert davit.load(done.folder).class_names[0] == "tench (n01440764)"
    path, _ = trained(folder="nameless", num_classes=3)
    state = torch.load(path)
    del state["class_names"]
    torch.save(state, path)
    with caplog.at_level(logging.WARNING):
        done = export(path, tmp_path / "nameless-out")
    assert "label_names" not in json.loads((done.folder / "config.json").read_text()) and "--class-map" in caplog.text
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    done = export(path, tmp_path / "named", ExportOptions(class_map=str(tmp_path / "names.txt")))
    assert davit.load(done.folder).class_names == ("a", "b", "c")


def test_ema_is_chosen(trained, tmp_path):
    path, model = trained()
    averaged = {name: tensor + 1 if name == "head.bias" else tensor for name, tensor in model.state_dict().items()}
    state = {**torch.load(path), "state_dict_ema": averaged}
    state["results"][1] |= {"ema_top1": 50.0, "ema_loss": 1.0}
    torch.save(state, path)
    for choice, added, accuracy in (("auto", 1, "50.0"), ("always", 1, "50.0"), ("never", 0, "90.0")):
        out = tmp_path / choice
        assert main(["export", str(path), str(out), "--ema", choice]) == 0
        tensors = safetensors.torch.load_file(out / "model.safetensors")
        assert torch.equal(tensors["head.fc.bias"], model.head.bias + added)
        assert f"value: {accuracy}" in (out / "README.md").read_text()


def test_a_folder_that_exists_is_refused(exported, trained, tmp_path):
    folder, _ = exported()
    path = tmp_path / "run" / "model_best.pth.tar"
    before = (folder / "README.md").read_bytes()
    with pytest.raises(ValueError, match="--force"):
        export(path, folder)
    assert main(["export", str(path), str(folder)]) == 2 and (folder / "README.md").read_bytes() == before
    assert main(["export", str(path), str(folder), "--force", "--name", "Another"]) == 0
    assert "# Another" in (folder / "README.md").read_text()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        export(path, folder, force=True)
    with pytest.raises(ValueError, match="is a file"):
        export(path, path)
    (tmp_path / "empty").mkdir()
    assert export(path, tmp_path / "empty").files.keys() == set(FILES)


@pytest.mark.parametrize("failing", FILES)
def test_a_replacement_that_fails_leaves_the_earlier_export(trained, tmp_path, monkeypatch, failing):
    """New weights beside earlier names of classes would be a wrong order."""
    (first, _), (second, _) = trained(folder="a"), trained(folder="b", num_classes=2)
    folder = export(first, tmp_path / "out").folder
    before = {name: (folder / name).read_bytes() for name in FILES}
    replace, times = os.replace, []

    def fail_once(source, target):
        if Path(target) == folder / failing and not times:
            times.append(1)
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="No space"):
        export(second, folder, ExportOptions(), force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert export(second, folder, force=True).folder == folder
    assert len(json.loads((folder / "config.json").read_text())["label_names"]) == 2
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert not list(tmp_path.glob(".out*"))


def test_what_computes_something_else_is_not_written(trained, tmp_path, monkeypatch):
    path, _ = trained()
    created = timm.create_model

    def other(name: str, **kwargs):
        model = created(name, **kwargs)
        if name.startswith("local-dir:"):
            with torch.no_grad():
                model.head.fc.bias += 1e-3
        return model

    monkeypatch.setattr(timm, "create_model", other)
    with pytest.raises(DifferentError):
        export(path, tmp_path / "out")
    assert main(["export", str(path), str(tmp_path / "out")]) == 3
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != "hub") == ["run"]


def test_damaged_weights_are_not_written(trained, tmp_path):
    path, _ = trained()
    state = torch.load(path)
    state["state_dict"]["head.bias"][0] = torch.nan
    torch.save(state, path)
    with pytest.raises(DifferentError, match="finite"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_head_and_faulty_flags(tmp_path, trained):
    path, _ = trained()
    assert main(["export", str(tmp_path / "nothing.pth"), str(tmp_path / "out")]) == 2
    assert main(["export", str(path), str(tmp_path / "out"), "--description", "@nowhere.md"]) == 2
    (tmp_path / "text.md").write_text("Read from a file.")
    assert main(["export", str(path.parent), str(tmp_path / "out"), "--description", f"@{tmp_path}/text.md"]) == 0
    assert "Read from a file." in (tmp_path / "out" / "README.md").read_text()


def test_results_beside_and_without_a_count(trained, tmp_path):
    path, _ = trained()
    state = torch.load(path)
    for name in ("results", "data"):
        del state[name]
    state |= {"epoch": 4, "metric": 81.25}
    torch.save(state, path)
    (path.parent / "summary.csv").write_text("epoch,train_loss,eval_loss,eval_top1,eval_top5\n4,1.0,0.7,81.25,99.5\n")
    text = export(path, tmp_path / "beside").card
    assert "| 81.25 |  | not known |" in text and "| 99.5 |" in text
    (path.parent / "summary.csv").unlink()
    assert "81.25" in export(path, tmp_path / "alone").card
    del state["metric"]
    torch.save(state, path)
    assert "None are noted" in export(path, tmp_path / "none").card


@pytest.mark.long
def test_the_digits_without_davit(tmp_path, repository):
    """As many of the 360 digits are right by timm and by transformers' pipeline as by our own predictions."""
    from davit.data import write_digits

    root = write_digits(tmp_path / "digits")
    words = ["-c", str(repository / "configs" / "digits.yaml"), "--epochs", "4", "--output", str(tmp_path / "runs")]
    from davit.engine.train import main as train

    assert train([str(root), *words, "--experiment", "digits"]) == 0
    done = export(tmp_path / "runs" / "digits", tmp_path / "out")
    files = sorted((Path(root) / "val").glob("*/*.png"))
    assert len(files) == 360
    ours = list(davit.load(tmp_path / "runs" / "digits").predict_each(list(map(str, files)), 1))
    right = sum(found.name == file.parent.name for found, file in zip(ours, files, strict=True))
    script = f"""{WITHOUT_DAVIT}
import pathlib, timm, torch
from PIL import Image
from transformers import pipeline
files = sorted(pathlib.Path("{root}", "val").glob("*/*.png"))
images = [Image.open(file).convert("RGB") for file in files]
model = timm.create_model("local-dir:{done.folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    guessed = model(torch.stack([transform(image) for image in images])).argmax(1).tolist()
names = model.pretrained_cfg["label_names"]
by_timm = sum(names[guess] == file.parent.name for guess, file in zip(guessed, files))
found = pipeline("image-classification", model="{done.folder}")(images)
print(by_timm, sum(guesses[0]["label"] == file.parent.name for guesses, file in zip(found, files)))
"""
    run = subprocess.run(
        [PYTHON, "-c", script], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, stdout=subprocess.PIPE
    )
    assert run.stdout.decode().split() == [str(right)] * 2 and right > 180


def test_an_export_of_several_labels_says_so(trained, tmp_path):
    file, _ = trained()
    state = torch.load(file, weights_only=True)
    state["args"]["task"] = "multilabel"
    torch.save(state, file)
    export(file, tmp_path / "out", ExportOptions())
    ours, theirs = davit.load(file), davit.load(tmp_path / "out")
    assert theirs.thresholds.tolist() == [0.5] * len(NAMES)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    one, two = (model.predict(picture).probabilities for model in (ours, theirs))
    assert torch.allclose(one, two, atol=1e-5)
    assert one.sum().item() != pytest.approx(1, abs=1e-3)
