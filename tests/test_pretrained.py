"""Published weights: found where they were put, checked before use, or else the way to them."""

import copy
import hashlib
import re
import socket
from pathlib import Path
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError

import davit.pretrained
from davit import DaViT
from davit.pretrained import PUBLISHED, PretrainedError, Published, fetch_pretrained, load_pretrained, weights_folder
from tests.conftest import SMALL


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """Empty folders in place of the user's, and no network."""
    monkeypatch.setenv("DAVIT_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """``publish(where, known)``: a small published DaViT_tiny, lying by hand or in the hub's cache."""

    def publish(where: str, known: str = "right", name: str = "model.safetensors") -> tuple[Path, torch.nn.Module]:
        model = timm.create_model("davit_tiny", **SMALL)
        if where == "folder":
            path = tmp_path / "weights" / ("davit_tiny.msft_in1k" + Path(name).suffix)
        else:
            repository = tmp_path / "hub" / "models--timm--davit_tiny.msft_in1k"
            path = repository / "snapshots" / ("a" * 40) / name
            (repository / "refs").mkdir(parents=True)
            (repository / "refs" / "main").write_text("a" * 40)
        path.parent.mkdir(parents=True)
        (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(model.state_dict(), path)
        digest = {"right": hashlib.sha256(path.read_bytes()).hexdigest(), "wrong": "0" * 64, "unknown": None}[known]
        files = dict.fromkeys(PUBLISHED["DaViT_tiny"].files, digest)
        monkeypatch.setitem(davit.pretrained.PUBLISHED, "DaViT_tiny", Published("timm/davit_tiny.msft_in1k", files))
        return path, model.eval()

    return publish


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("where, known", [("folder", "right"), ("cache", "unknown")])
def test_weights_are_found_checked_and_converted(publish, where, known, name):
    path, published = publish(where, known, name)
    assert fetch_pretrained("DaViT_tiny") == path
    model = DaViT(**SMALL).eval()
    report = load_pretrained(model, "DaViT_tiny")
    assert report.complete and report.layout == "timm"
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(image) - published(image)).abs().max() < 1e-5


@pytest.mark.parametrize("where", ["folder", "cache"])
def test_a_file_that_is_not_the_published_one_is_not_used(publish, where):
    path, _ = publish(where, "wrong")
    model = DaViT(**SMALL)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PretrainedError, match=r"[0-9a-f]{64}.*0{64}") as caught:
        load_pretrained(model, "DaViT_tiny")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert load_pretrained(model, "DaViT_tiny", file=path).complete  # the user's own choice is not checked


def test_the_folder_comes_before_the_cache(publish):
    cached, _ = publish("cache")
    by_hand, _ = publish("folder")
    assert fetch_pretrained("DaViT_tiny") == by_hand != cached


@pytest.mark.parametrize("variant, offline", [*((variant, True) for variant in PUBLISHED), ("DaViT_tiny", False)])
def test_without_a_network_the_error_says_which_file_to_put_where(monkeypatch, variant, offline):
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(PretrainedError) as caught:
        fetch_pretrained(variant)
    text, published = str(caught.value), PUBLISHED[variant]
    assert "\n" not in text
    assert variant in text and f"/{published.hub_id}/resolve/main/model.safetensors" in text
    (place,) = re.findall(r"put it at (\S+) ", text)
    assert Path(place) == weights_folder() / f"{published.hub_id.split('/')[1]}.safetensors"
    # following the advice works
    Path(place).parent.mkdir(parents=True)
    Path(place).write_bytes(b"the published weights")
    if published.files["model.safetensors"] is None:
        assert fetch_pretrained(variant) == Path(place)
    else:
        with pytest.raises(PretrainedError, match="sha256"):
            fetch_pretrained(variant)


def test_a_download_goes_on_to_the_next_file_and_is_checked(monkeypatch, tmp_path):
    def ask(url: str) -> None:
        if ("base" in url and url.endswith("model.safetensors")) or "small" in url:
            raise RemoteEntryNotFoundError("404: no such entry", response=MagicMock())

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names, **_: str(tmp_path / names[1]))
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"not really weights")
    assert fetch_pretrained("DaViT_base") == tmp_path / "pytorch_model.bin"
    with pytest.raises(PretrainedError, match="sha256"):
        fetch_pretrained("DaViT_tiny")
    with pytest.raises(PretrainedError, match="RemoteEntryNotFoundError") as caught:
        fetch_pretrained("DaViT_small")
    assert str(weights_folder()) in str(caught.value)


def test_the_default_folder_is_torchs(monkeypatch, tmp_path):
    monkeypatch.delenv("DAVIT_WEIGHTS_DIR")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert weights_folder() == tmp_path / "torch" / "hub" / "checkpoints"
    monkeypatch.setenv("DAVIT_WEIGHTS_DIR", "~/weights")
    assert weights_folder() == Path.home() / "weights"


@pytest.mark.parametrize("variant", ["DaViT_giant", "DaViT_nano", "resnet50"])
def test_variants_without_published_weights_name_those_with(variant):
    with pytest.raises(ValueError, match=f"{variant}.*DaViT_tiny, DaViT_small, DaViT_base"):
        fetch_pretrained(variant)


def test_the_table_agrees_with_timm():
    assert set(PUBLISHED) == {"DaViT_tiny", "DaViT_small", "DaViT_base"}
    for variant, published in PUBLISHED.items():
        cfg = timm.get_pretrained_cfg(f"{variant.lower()}.msft_in1k")
        assert cfg.hf_hub_id == published.hub_id
        assert all(digest is None or re.fullmatch(r"[0-9a-f]{64}", digest) for digest in published.files.values())
