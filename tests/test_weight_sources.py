"""Sources of weights: each name leads to its own weights, and never to published ones."""

import hashlib
import json
import re
from pathlib import Path
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import davit
import davit.pretrained
from davit.checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from davit.engine import run_folder
from davit.hub.export import ExportOptions, export
from davit.pretrained import PretrainedError, hub_file, read_source, resolve, split_source
from tests.conftest import SMALL, randomise
from tests.hub.conftest import NAMES, exported, never_published, nothing_here, on_the_hub, trained  # noqa: F401


def hashes(model: torch.nn.Module) -> set[str]:
    return {hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in model.state_dict().values()}


def same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    state, wanted = model.state_dict(), other.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("architecture", ["timm", "davit"])
def test_from_the_hubs_cache(exported, on_the_hub, never_published, architecture):  # noqa: F811
    folder, model = exported("DaViT_tiny", ExportOptions(architecture=architecture), **SMALL)
    name = on_the_hub(folder)
    by_timm = timm.create_model(name, pretrained=True)
    assert hashes(by_timm) == hashes(davit.load(name).model) == hashes(model)
    assert type(by_timm).__module__ == ("davit.model" if architecture == "davit" else "timm.models.davit")
    assert davit.load(name).class_names == tuple(NAMES)
    assert hashes(davit.create_model(name, pretrained=True, accelerate=False)) == hashes(model)
    assert hashes(davit.load(name.replace("hf-hub", "hf_hub")).model) == hashes(model)
    # the config alone
    untrained = timm.create_model(name)
    assert untrained.num_classes == len(NAMES) and hashes(untrained) != hashes(model)


def test_a_revision(trained, tmp_path, on_the_hub, never_published):  # noqa: F811
    models = {}
    for revision in ("main", "v1.0", "refs-pr-1"):
        path, model = trained(folder=f"run-{revision}")
        with torch.no_grad():
            model.head.bias += len(models)
        torch.save({**torch.load(path), "state_dict": model.state_dict()}, path)
        models[on_the_hub(export(path, tmp_path / f"out-{revision}").folder, revision)] = model
    for name, model in models.items():
        assert hashes(timm.create_model(name, pretrained=True)) == hashes(davit.load(name).model) == hashes(model)
    commit = "0" * 39 + "1"
    assert hashes(davit.load(f"hf-hub:me/mine@{commit}").model) == hashes(models["hf-hub:me/mine@v1.0"])


@pytest.mark.parametrize("architecture", ["timm", "davit"])
def test_overrides_of_a_model_of_the_hub(exported, on_the_hub, never_published, architecture, caplog):  # noqa: F811
    folder, model = exported("DaViT_nano", ExportOptions(architecture=architecture))
    name = on_the_hub(folder)
    other = timm.create_model(name, pretrained=True, num_classes=3)
    assert other.num_classes == 3 and len(hashes(model) - hashes(other)) == 2  # the head's weight and bias
    if architecture == "davit":
        assert "another number of classes" in caplog.text
    grey = timm.create_model(name, pretrained=True, in_chans=1)
    stem = grey.state_dict()["stem.conv.weight" if architecture == "timm" else "patch_embeds.0.proj.weight"]
    assert torch.allclose(stem, model.patch_embeds[0].proj.weight.sum(1, keepdim=True))
    maps = timm.create_model(name, pretrained=True, features_only=True, out_indices=(1, 3))
    found = maps(torch.zeros(1, 3, 32, 32))
    assert [tuple(one.shape) for one in found] == [(1, 64, 4, 4), (1, 160, 1, 1)]
    headless = timm.create_model(name, pretrained=True, num_classes=0)
    assert headless(torch.zeros(1, 3, 32, 32)).shape == (1, 160)


def test_bands_from_another_number_than_three(exported, never_published):  # noqa: F811
    folder, model = exported("DaViT_nano", ExportOptions(architecture="davit"), in_chans=2)
    five = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=5)
    weight = model.patch_embeds[0].proj.weight
    assert torch.allclose(five.patch_embeds[0].proj.weight, weight[:, [0, 1, 0, 1, 0]] * 2 / 5)


@pytest.mark.parametrize("safe", [True, False, "both"])
def test_folders_that_timm_writes(tmp_path, never_published, safe):  # noqa: F811
    model = randomise(timm.create_model("davit_tiny", num_classes=3, **SMALL), 1).eval()
    labels = {"label_names": ["cat", "dog", "owl"], "label_descriptions": {"cat": "a small lion"}}
    timm.models.save_for_hf(model, tmp_path / "theirs", model_config=labels, safe_serialization=safe)
    read = davit.load(f"local-dir:{tmp_path}/theirs")
    assert isinstance(read.model, davit.DaViT) and hashes(read.model) == hashes(model)
    assert read.class_names == ("a small lion (cat)", "dog", "owl")
    assert read.config["crop_pct"] == pytest.approx(0.95) and read.config["input_size"] == (3, 224, 224)
    images = torch.randn(1, 3, 50, 40)
    with torch.inference_mode():
        assert (read.model(images) - model(images)).abs().max() < 1e-5
    # one of ours, registered in timm
    ours = randomise(timm.create_model("DaViT_nano", num_classes=3, window_size=3), 1)
    timm.models.save_for_hf(ours, tmp_path / "ours", model_config=labels, safe_serialization=safe)
    for again in (
        timm.create_model(f"local-dir:{tmp_path}/ours", pretrained=True),
        davit.load(tmp_path / "ours").model,
    ):
        assert same(again, ours) and again.main_blocks[0][0][0].attn.window_size == 3


QK = {"attention_types": ["spatial", "channel_qk"]}


@pytest.mark.parametrize("form", ["ours", "transformers", "detector", "timm", "timm_named"])
def test_a_config_says_whose_function_the_weights_are(tmp_path, never_published, form):  # noqa: F811
    """Safetensors have no notes, and the names of these weights do not tell, or tell another function."""
    folder, numbers = tmp_path / "theirs", {"embed_dims": (32, 64, 128, 160), "num_heads": (1, 2, 4, 5)}
    timms = {**numbers, "depths": (1, 1, 1, 1), "window_size": 4}
    if form == "ours":
        model = randomise(timm.create_model("DaViT_nano", num_classes=3, **QK), 1)
        timm.models.save_for_hf(model, folder, model_args=QK, safe_serialization=True)
        assert same(timm.create_model(f"local-dir:{folder}", pretrained=True), model)
        with pytest.raises(CheckpointError):
            timm.create_model(f"local-dir:{folder}", pretrained=True, attention_types=["spatial", "channel"])
        overlay = {"file": str(folder / "model.safetensors")}
        with pytest.raises(CheckpointError):
            timm.create_model("DaViT_nano", num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay)
        assert same(davit.load(folder).model, model)
    elif form.startswith("timm"):
        args = {**timms, "channel_attn_v2": True, "named_blocks": form == "timm_named"}
        model = randomise(timm.create_model("davit_base", num_classes=3, **args), 1)
        timm.models.save_for_hf(model, folder, model_args=args, safe_serialization=True)
        assert hashes(davit.load(folder).model) == hashes(model)
    else:
        pytest.importorskip("transformers")
        from transformers import DetrConfig, DetrForObjectDetection

        from davit.transformers import DavitBackbone, DavitConfig

        config = DavitConfig(variant="DaViT_nano", **QK)
        if form == "transformers":
            DavitBackbone(config).save_pretrained(folder)
        else:
            small = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 8)
            small |= dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
            heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
            DetrForObjectDetection(DetrConfig(backbone_config=config, **small, **heads)).save_pretrained(folder)
    right, wrong = (davit.create_model("DaViT_nano", num_classes=3, **kwargs) for kwargs in (QK, {}))
    before = hashes(wrong)
    for source in (folder, folder / "model.safetensors"):
        assert read_source(source).function == read_checkpoint(source).function == "florence2"
        assert load_checkpoint(right, source).share > 0.99
        with pytest.raises(CheckpointError):
            load_checkpoint(wrong, source)
    assert hashes(wrong) == before


def test_a_config_of_the_other_function_is_not_believed(exported, tmp_path):  # noqa: F811
    folder, _ = exported(**QK)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["channel_attn_v2"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        davit.load(folder)


def test_shards_and_a_whole_file_are_read_alike_by_every_way_in(trained, tmp_path, caplog):  # noqa: F811
    (first, model), (_, other) = trained(folder="a"), trained(folder="b")
    randomise(other, 8)
    folder = export(first, tmp_path / "out", ExportOptions(architecture="davit")).folder
    whole = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(2):
        part = dict(list(whole.items())[number::2])
        weight_map |= dict.fromkeys(part, file := f"model-{number + 1:05}-of-00002.safetensors")
        safetensors.torch.save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def read_everyway() -> list[torch.nn.Module]:
        loaded = davit.create_model("DaViT_nano", num_classes=len(NAMES))
        load_checkpoint(loaded, folder)
        return [loaded, timm.create_model(f"local-dir:{folder}", pretrained=True), davit.load(folder).model]

    assert all(hashes(one) == hashes(model) for one in read_everyway())
    assert not [record for record in caplog.records if "index" in record.message]
    safetensors.torch.save_file(other.state_dict(), folder / "model.safetensors")  # all libraries look for this first
    assert all(hashes(one) == hashes(other) for one in read_everyway())
    assert [record for record in caplog.records if "index" in record.message]


def test_an_overlay_that_is_not_read_is_said(exported, caplog):  # noqa: F811
    folder, model = exported("DaViT_nano", ExportOptions(architecture="davit"))
    overlay = {"state_dict": randomise(davit.create_model("DaViT_nano", num_classes=len(NAMES)), 5).state_dict()}
    ways = [({}, 0), (overlay, 1), ({**overlay, "source": ""}, 0)]
    for given, warnings in ways:
        caplog.clear()
        read = timm.create_model(f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=given)
        assert (hashes(read) == hashes(model)) == ("source" not in given)
        assert len([one for one in caplog.records if one.name == "davit.registry"]) == warnings


def test_a_timm_model_that_ours_cannot_express_stays_timms(tmp_path, never_published):  # noqa: F811
    model = randomise(timm.create_model("davit_tiny", num_classes=3, head_norm_first=True, **SMALL), 1)
    timm.models.save_for_hf(model, tmp_path / "theirs", safe_serialization=True)
    read = davit.load(tmp_path / "theirs").model
    assert type(read).__module__ == "timm.models.davit" and same(read, model)


def test_folders_of_transformers(tmp_path, exported, never_published):  # noqa: F811
    transformers = pytest.importorskip("transformers")
    folder, model = exported()
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(folder)
    wrapped.save_pretrained(tmp_path / "theirs")
    read = davit.load(tmp_path / "theirs")
    assert hashes(read.model) == hashes(model) and read.class_names == tuple(NAMES)


@pytest.mark.parametrize(
    "names, described",
    [
        ({"0": "a", "2": "c"}, ("a", "class 1", "c")),
        ({"0": "a", "1": "b", "2": "c", "x": "?"}, ("a", "b", "c")),
        (["a", "b", 3], ("a", "b", "3")),
        ([], ("class 0", "class 1", "class 2")),
        ({"x": "?"}, ("class 0", "class 1", "class 2")),
        ({"2": "c", "0": "a", "9": "?"}, ("a", "class 1", "c")),
    ],
)
def test_class_names_of_a_config(exported, caplog, names, described):  # noqa: F811
    folder, _ = exported(num_classes=3)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "label_names": names}))
    assert davit.load(folder).class_names == described
    said = [one for one in caplog.records if one.name == "davit.pretrained" and "?" not in one.message]
    assert bool(said) == (isinstance(names, dict) and "?" in names.values())


def test_an_old_config_without_parts(exported, never_published):  # noqa: F811
    folder, model = exported("DaViT_tiny", ExportOptions(architecture="davit"))
    config = json.loads((folder / "config.json").read_text())
    flat = {"architecture": "DaViT_tiny", **config["pretrained_cfg"], "labels": NAMES, "crop_pct": 0.7}
    (folder / "config.json").write_text(json.dumps(flat))
    read = davit.load(folder)
    assert read.class_names == tuple(NAMES) and read.config["crop_pct"] == 0.7 and hashes(read.model) == hashes(model)
    assert hashes(timm.create_model(f"local-dir:{folder}", pretrained=True)) == hashes(model)


# ---- paths ----


def test_folders_of_runs(tmp_path, trained):  # noqa: F811
    assert davit.pretrained.BEST_OF_A_RUN == (run_folder.BEST, run_folder.LAST, run_folder.PREVIOUS)
    path, model = trained()
    for name in ("last.pth.tar", "previous.pth.tar", "checkpoint-1.pth.tar"):
        (path.parent / name).write_bytes(b"not this one")
    assert resolve(path.parent).file == path and hashes(davit.load(path.parent).model) == hashes(model)
    assert resolve(f"local-dir:{path.parent}").file == path
    path.rename(path.with_name("last.pth.tar"))
    assert resolve(path.parent).file.name == "last.pth.tar"
    assert resolve(path.parent / "last.pth.tar").config is None


def test_folders_of_detectors(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("epoch_2.pth", "epoch_10.pth"):
        (folder / name).write_bytes(b"x")
    assert resolve(folder).file.name == "epoch_10.pth"
    (folder / "last_checkpoint").write_text("/elsewhere/work/epoch_2.pth")
    assert resolve(folder).file.name == "epoch_2.pth"
    for name in ("best_coco_bbox_mAP_epoch_2.pth", "best_coco_bbox_mAP_epoch_10.pth", "best_model.pth"):
        (folder / name).write_bytes(b"x")
    assert resolve(folder).file.name == "best_coco_bbox_mAP_epoch_10.pth"


def test_other_folders(tmp_path):
    with pytest.raises(CheckpointError):
        read_source(tmp_path)
    torch.save(randomise(davit.DaViT(**SMALL), 0).state_dict(), tmp_path / "one.pth")
    assert resolve(tmp_path).file.name == "one.pth" and read_source(tmp_path).davit is not None
    (tmp_path / "two.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"one\.pth.*two\.safetensors"):
        resolve(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert resolve(tmp_path).file.name == "pytorch_model.bin"
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors.index.json")
    assert resolve(tmp_path).file == tmp_path


def test_a_file_beside_its_config(exported):  # noqa: F811
    folder, model = exported(window_size=3)
    read = davit.load(folder / "model.safetensors").model
    assert read.main_blocks[0][0][0].attn.window_size == 3 and hashes(read) == hashes(model)
    assert read_source(folder / "model.safetensors", ema="never").metadata["architecture"] == "davit_tiny"


def test_pickles_alone_are_read_safely(exported, never_published):  # noqa: F811
    folder, model = exported("DaViT_nano", ExportOptions(architecture="davit"))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert hashes(davit.load(folder).model) == hashes(model)
    assert hashes(timm.create_model(f"local-dir:{folder}", pretrained=True)) == hashes(model)

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"state_dict": model.state_dict(), "x": Evil()}, folder / "pytorch_model.bin")
    for load in (davit.load, lambda name: timm.create_model(f"local-dir:{name}", pretrained=True)):
        with pytest.raises(CheckpointError):
            load(folder)
    (folder / "pytorch_model.bin").rename(folder / "other.pth")
    (folder / "other.bin").write_bytes(b"")
    assert resolve(folder).file.name == "other.pth"


# ---- what is refused ----


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:",
        "hf_hub:",
        "hf-hub: ",
        "local-dir:",
        "hf-hub:me/mine@",
        "hf-hub:me/mine@a@b",
        "hf-hub:a/b/c",
        "hf-hub:../x",
        "hf-hub:me/mine@../../x",
        "hfhub:me/mine",
        "local:dir/x",
        "https://huggingface.co/me/mine",
        "s3://bucket/x.pth",
        "local-dir:/nowhere/at/all",
        "me/mine",
    ],
)
def test_malformed_names(name, never_published):  # noqa: F811
    with pytest.raises(ValueError, match=re.escape(name.strip().partition("//")[0])):
        davit.load(name)


def test_paths_that_look_like_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_source("C:\\weights.pth") == (None, "C:\\weights.pth")
    assert split_source("epoch:3.pth") == (None, "epoch:3.pth")
    Path("hf-hub:").mkdir()
    assert split_source("HF-HUB:me/mine") == ("hf-hub", "me/mine")
    with pytest.raises(CheckpointError):
        davit.load("no/such/file.pth")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"architecture": 3}',
        '{"architecture": "davit_tiny", "model_args": []}',
        "[" * 100000,
        '{"architecture": "davit_tiny", "pretrained_cfg": {"input_size": [3, -1, 4]}}',
        '{"architecture": "davit_tiny", "pretrained_cfg": {"crop_pct": "large"}}',
        '{"architecture": "davit_tiny", "num_classes": true}',
        '{"architecture": "davit_colossal"}',
    ],
)
def test_faulty_configs(exported, never_published, text):  # noqa: F811
    folder, _ = exported()
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        davit.load(folder)
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        davit.create_model(f"local-dir:{folder}", pretrained=True) if text else davit.load(folder)


def test_unknown_architectures_name_near_ones(exported, never_published):  # noqa: F811
    folder, model = exported()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "davit_tinny"}))
    with pytest.raises(CheckpointError, match=r"(?i)davit_tinny.*davit_tiny"):
        davit.load(folder)
    with pytest.raises(CheckpointError, match=r"(?i)davit_tinny.*davit_tiny"):
        davit.create_model(f"local-dir:{folder}")
    assert hashes(davit.load(folder, model="DaViT_nano").model) == hashes(model)  # whoever says it may


def test_config_and_weights_that_do_not_belong_together(exported, never_published):  # noqa: F811
    folder, _ = exported("DaViT_nano", ExportOptions(architecture="davit"))
    config = json.loads((folder / "config.json").read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 12
    del config["label_names"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="12"):
        davit.load(folder)
    with pytest.raises(CheckpointError, match="12"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_no_weights_and_no_config(exported, on_the_hub, never_published):  # noqa: F811
    folder, _ = exported("DaViT_tiny", ExportOptions(architecture="davit"))
    (folder / "model.safetensors").unlink()
    name = on_the_hub(folder)
    for source in (name, f"local-dir:{folder}"):
        for load in (davit.load, lambda one: timm.create_model(one, pretrained=True)):
            with pytest.raises((CheckpointError, PretrainedError), match=r"weights|safetensors"):
                load(source)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        davit.create_model(f"local-dir:{folder}")


def test_a_config_of_transformers_leaves_it_to_the_weights(exported):  # noqa: F811
    folder, model = exported()
    (folder / "config.json").write_text('{"model_type": "davit"}')
    assert hashes(davit.load(folder).model) == hashes(model)
    with pytest.raises(CheckpointError, match="transformers"):
        davit.create_model(f"local-dir:{folder}")


def _answer(kind: type[Exception]) -> Exception:
    return kind("the hub says no", response=MagicMock(status_code=401))


@pytest.mark.parametrize(
    "error, said",
    [
        (_answer(RepositoryNotFoundError), "HF_TOKEN"),
        (_answer(GatedRepoError), "conditions"),
        (_answer(RevisionNotFoundError), "revision"),
        (_answer(HfHubHTTPError), "cache"),
        (ConnectionRefusedError("no network"), "hf download"),
    ],
)
def test_what_the_hub_answers(monkeypatch, never_published, error, said):  # noqa: F811
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", MagicMock(side_effect=error))
    with pytest.raises(PretrainedError, match=said) as caught:
        davit.load("hf-hub:me/mine@v2")
    assert "me/mine" in str(caught.value) and "\n" not in str(caught.value)


def test_offline_names_what_the_cache_has(exported, on_the_hub, never_published):  # noqa: F811
    on_the_hub(exported()[0])
    with pytest.raises(PretrainedError, match="main"):
        davit.load("hf-hub:me/mine@v9")
    with pytest.raises(PretrainedError, match="HF_HUB_OFFLINE"):
        davit.load("hf-hub:me/other")


def test_a_download(exported, monkeypatch, never_published):  # noqa: F811
    """Only the files that are needed, of the revision; else the other one, or several with an index."""
    folder, model = exported()
    asked = []

    def ask(url: str) -> None:
        if not (folder / url.rsplit("/", 1)[1]).is_file():
            raise _answer(RemoteEntryNotFoundError)

    def fetch(repository: str, file: str, revision: str | None, cache_dir: object) -> str:
        asked.append((repository, file, revision, cache_dir))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert hashes(davit.load("hf-hub:me/mine@v2").model) == hashes(model)
    assert asked == [("me/mine", name, "v2", None) for name in ("config.json", "model.safetensors")]
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert resolve("hf-hub:me/mine", cache_dir="/elsewhere").file.name == "pytorch_model.bin"
    assert asked[-1] == ("me/mine", "pytorch_model.bin", None, "/elsewhere")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(PretrainedError, match="no weights"):
        resolve("hf-hub:me/mine")
    halves = {"a.safetensors": list(tensors)[::2], "b.safetensors": list(tensors)[1::2]}
    for file, names in halves.items():
        safetensors.torch.save_file({name: tensors[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert resolve("hf-hub:me/mine").file == folder
    assert {"a.safetensors", "b.safetensors"} <= {file for _, file, _, _ in asked}
    for bad in ('{"weight_map": {"x": "../y.safetensors"}}', "{}"):
        (folder / "model.safetensors.index.json").write_text(bad)
        with pytest.raises(CheckpointError, match="index"):
            resolve("hf-hub:me/mine")
    with pytest.raises(PretrainedError, match=r"nothing\.txt"):
        hub_file("me/mine", "nothing.txt")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["hf_hub_filename"] = "a.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    assert resolve("hf-hub:me/mine").file.name == "a.safetensors"
    config["pretrained_cfg"]["hf_hub_filename"] = "../../secret"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="secret"):
        resolve("hf-hub:me/mine")


# ---- timm's pretrained_cfg ----


@pytest.fixture
def weights(tmp_path):
    """``weights[name]``: files with weights of a small DaViT_tiny, each with another bias of the head."""
    files = {}
    for number, name in enumerate(("file", "url", "hub", "state_dict")):
        model = randomise(davit.DaViT(**SMALL, num_classes=5), 0)
        with torch.no_grad():
            model.head.bias.fill_(number)
        files[name] = tmp_path / f"{name}.pth"
        torch.save(model.state_dict(), files[name])
    return files


def _bias(**cfg) -> float:
    model = timm.create_model("DaViT_tiny", pretrained=True, num_classes=5, **SMALL, **cfg)
    (value,) = set(model.head.bias.tolist())
    return value


def test_which_source_wins(weights, tmp_path, on_the_hub, never_published):  # noqa: F811
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(weights["hub"].read_bytes())
    on_the_hub(folder)
    everything = {
        "state_dict": torch.load(weights["state_dict"]),
        "file": str(weights["file"]),
        "hf_hub_id": "me/mine",
        "url": weights["url"].as_uri(),
    }
    for key in ("pretrained_cfg_overlay", "pretrained_cfg"):
        order = [("state_dict", 3), ("file", 0), ("hf_hub_id", 2), ("url", 1)]
        left = dict(everything)
        for name, expected in order:
            assert _bias(**{key: dict(left)}, cache_dir=tmp_path / "hub") == expected, (key, name)
            del left[name]
        assert _bias(**{key: {**everything, "source": "hf-hub"}}, cache_dir=tmp_path / "hub") == 2
        assert _bias(**{key: {**everything, "source": "local-dir", "file": str(folder)}}) == 2
    assert (tmp_path / "hub" / "url.pth").is_file()  # torch's folder is not written where another is named
    weights["url"].unlink()
    assert _bias(pretrained_cfg={"url": "https://localhost:9/url.pth"}, cache_dir=tmp_path / "hub") == 1
    assert _bias(pretrained_cfg={"url": ("https://localhost:9/x", "url.pth")}, cache_dir=tmp_path / "hub") == 1


def test_the_published_ones_only_by_default(monkeypatch, weights):
    asked = []

    def fetch(variant: str, cache_dir: object = None) -> Path:
        asked.append((variant, cache_dir))
        return weights["file"]

    monkeypatch.setattr(davit.pretrained, "fetch_pretrained", fetch)
    assert _bias() == 0 and _bias(cache_dir="/elsewhere") == 0
    assert asked == [("DaViT_tiny", None), ("DaViT_tiny", "/elsewhere")]


@pytest.mark.parametrize(
    "cfg",
    [
        {"num_classes": 5},
        {"source": "hf-hub"},
        {"source": "local-dir"},
        {"source": "local-dir", "file": "/nowhere"},
        {"url": "https://localhost:9/weights.pth"},
        {"hf_hub_id": "me/nothing"},
    ],
)
def test_a_source_that_leads_nowhere_is_an_error(cfg, never_published, tmp_path):  # noqa: F811
    with pytest.raises((ValueError, PretrainedError)):
        timm.create_model("DaViT_tiny", pretrained=True, pretrained_cfg=cfg, cache_dir=tmp_path)


def test_the_first_classes_are_left_out(tmp_path, never_published):  # noqa: F811
    model = randomise(davit.DaViT(**SMALL, num_classes=6), 0)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    cfg = {"file": str(tmp_path / "w.pth"), "label_offset": 1, "num_classes": 5}
    read = timm.create_model("DaViT_tiny", pretrained=True, pretrained_cfg=cfg, **SMALL)
    assert torch.equal(read.head.weight, model.head.weight[1:]) and torch.equal(read.head.bias, model.head.bias[1:])


def test_a_loader_of_the_models_own(monkeypatch, weights, never_published):  # noqa: F811
    asked = []
    monkeypatch.setattr(davit.DaViT, "load_pretrained", lambda self, file: asked.append(file), raising=False)
    cfg = {"file": str(weights["file"]), "custom_load": True}
    timm.create_model("DaViT_tiny", pretrained=True, pretrained_cfg=cfg, **SMALL)
    assert asked == [str(weights["file"])]
    monkeypatch.undo()
    assert _bias(pretrained_cfg=cfg) == 0  # without one, all that we can read is read


def test_a_detectors_folder_gives_the_detector(tmp_path, monkeypatch):
    predictor = pytest.importorskip("davit.openmmlab.predictor")
    asked = []
    monkeypatch.setattr(predictor, "Predictor", lambda *args, **kwargs: asked.append((args, kwargs)) or "it")
    (tmp_path / "epoch_1.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError):  # without a config it may be anyone's
        davit.load(tmp_path)
    (tmp_path / "config.py").write_text("")
    assert davit.load(tmp_path, device="cpu", score_threshold=0.5) == "it"
    files = (tmp_path / "config.py", tmp_path / "epoch_1.pth")
    assert asked == [(files, {"device": "cpu", "score_threshold": 0.5})]
    with pytest.raises(ValueError, match="img_size"):
        davit.load(tmp_path, img_size=64)
    (tmp_path / "other.py").write_text("")
    with pytest.raises(CheckpointError, match=r"config\.py, other\.py"):
        davit.load(tmp_path)
