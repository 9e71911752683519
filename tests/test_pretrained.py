"""Published weights: found where they were put, checked before use, or else the way to them."""

import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

import davit.pretrained
from davit import DaViT
from davit.checkpoint import CheckpointError
from davit.pretrained import (
    PUBLISHED,
    PretrainedError,
    Published,
    PublishedFile,
    fetch_pretrained,
    load_pretrained,
    weights_folder,
)
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
        if name.endswith("safetensors"):
            safetensors.torch.save_file(model.state_dict(), path, {"format": "pt"})
        else:
            torch.save(model.state_dict(), path)
        digest = {"right": hashlib.sha256(path.read_bytes()).hexdigest(), "wrong": "0" * 64, "unknown": None}[known]
        files = tuple(PublishedFile(file.name, digest) for file in PUBLISHED["DaViT_tiny"].files)
        monkeypatch.setitem(davit.pretrained.PUBLISHED, "DaViT_tiny", Published("timm/davit_tiny.msft_in1k", files))
        return path, model.eval()

    return publish


@pytest.mark.parametrize(
    "where, known, name",
    [
        ("folder", "right", "model.safetensors"),
        ("folder", "unknown", "pytorch_model.bin"),
        ("cache", "right", "pytorch_model.bin"),
        ("cache", "unknown", "model.safetensors"),
    ],
)
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
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PretrainedError, match=r"[0-9a-f]{64}.*0{64}") as caught:
        load_pretrained(model, "DaViT_tiny")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert load_pretrained(model, "DaViT_tiny", file=path).complete  # the user's own choice is not checked


def test_the_folder_comes_before_the_cache(publish):
    cached, _ = publish("cache")
    by_hand, _ = publish("folder")
    assert fetch_pretrained("DaViT_tiny") == by_hand != cached


@pytest.mark.parametrize("variant", list(PUBLISHED))
def test_offline_says_which_file_to_put_where(variant):
    with pytest.raises(PretrainedError) as caught:
        fetch_pretrained(variant)
    check_the_way_out(str(caught.value), variant)


def test_a_network_that_refuses_says_the_same(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(PretrainedError) as caught:
        fetch_pretrained("DaViT_tiny")
    check_the_way_out(str(caught.value), "DaViT_tiny")


def check_the_way_out(text: str, variant: str) -> None:
    published = PUBLISHED[variant]
    assert "\n" not in text
    assert variant in text and f"/{published.hub_id}/resolve/main/model.safetensors" in text
    (place,) = re.findall(r"put it at (\S+) ", text)
    assert Path(place) == weights_folder() / f"{published.hub_id.split('/')[1]}.safetensors"
    # following the advice works
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_bytes(b"the published weights")
    if published.files[0].sha256 is None:
        assert fetch_pretrained(variant) == Path(place)
    else:
        with pytest.raises(PretrainedError, match="sha256"):
            fetch_pretrained(variant)


class FakeHub(BaseHTTPRequestHandler):
    """As much of a hub as a download needs; it has only one .bin file."""

    content = b"not really weights"

    def do_HEAD(self) -> None:
        found = self.path.endswith("/timm/davit_base.msft_in1k/resolve/main/pytorch_model.bin") or re.search(
            r"/timm/davit_base.msft_in1k/resolve/b{40}/pytorch_model.bin", self.path
        )
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("Content-Length", str(len(self.content)))
            self.send_header("X-Repo-Commit", "b" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_download_from_a_hub_that_lacks_the_first_file(tmp_path, monkeypatch):
    """Through the hub's own client."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    path = template.removeprefix(huggingface_hub.constants.ENDPOINT)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        assert fetch_pretrained("DaViT_base").read_bytes() == FakeHub.content
        with pytest.raises(PretrainedError) as caught:
            fetch_pretrained("DaViT_tiny")
    finally:
        server.shutdown()
    assert "EntryNotFound" in str(caught.value) and str(weights_folder()) in str(caught.value)


def test_what_was_downloaded_is_checked_too(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: str(tmp_path / names[1]))
    with pytest.raises(PretrainedError, match="sha256"):
        fetch_pretrained("DaViT_tiny")


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
        for file in published.files:
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


@pytest.mark.parametrize("options", [{"num_classes": 5}, {"in_chans": 1}, {"num_classes": 0}])
def test_another_head_or_other_channels_are_reported(publish, options):
    _, published = publish("folder")
    model = DaViT(**SMALL, **options)
    report = load_pretrained(model, "DaViT_tiny")
    assert not report.complete
    assert torch.equal(
        model.state_dict()["main_blocks.3.0.1.mlp.fc2.bias"], published.stages[3].blocks[0][1].mlp.fc2.bias
    )


def test_weights_of_another_shape_are_refused(publish):
    publish("folder")
    with pytest.raises(CheckpointError, match="DaViT_tiny"):
        load_pretrained(DaViT(), "DaViT_tiny")
