"""Uploads: what arrives at a hub on this machine, and what is said where nothing can arrive."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from davit.hub.__main__ import main
from davit.hub.export import FILES, ExportOptions, export
from davit.hub.push import PushError, PushOptions, push

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub(monkeypatch) -> Iterator[SimpleNamespace]:
    """A small hub on the loopback: what was asked of it, and the files of each commit."""
    seen = SimpleNamespace(repositories=[], branches=[], commits=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            url = f"http://{self.headers['Host']}"
            if self.path == "/api/repos/create":
                seen.repositories.append(json.loads(body))
                answer = {"url": f"{url}/me/mine", "name": "me/mine"}
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                answer = {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]}
            elif "/branch/" in self.path:
                seen.branches.append(self.path.rsplit("/", 1)[1])
                answer = {}
            else:
                lines = [json.loads(line) for line in body.splitlines()]
                files = {
                    one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
                }
                seen.commits.append((self.path, lines[0]["value"]["summary"], files))
                answer = {"commitUrl": f"{url}/me/mine/commit/abc", "commitOid": "a" * 40, "success": True}
            self._send(answer)

        def do_GET(self) -> None:  # noqa: N802
            self._send({"id": "me/mine", "sha": "b" * 40, "siblings": []})

        def _send(self, answer: object) -> None:
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    made = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **kwargs: made(endpoint=url, token=TOKEN, **kwargs))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield seen
    server.shutdown()
    server.server_close()


def test_a_commit_with_three_files(trained, hub, capsys):
    path, _ = trained()
    words = ["push", str(path), "me/mine", "--license", "mit", "--private", "--message", "First", "--revision", "v2"]
    assert main(words) == 0
    assert hub.repositories[0]["name"] == "mine" and hub.repositories[0]["private"] is True
    ((where, message, files),) = hub.commits
    assert hub.branches == ["v2"] and where.endswith("/commit/v2") and message == "First"
    assert set(files) == set(FILES)
    assert json.loads(files["config.json"])["architecture"] == "davit_tiny"
    card = files["README.md"].decode()
    assert "hf-hub:me/mine" in card and "OWNER/NAME" not in card
    out = capsys.readouterr()
    assert "commit/abc" in out.out and TOKEN not in out.out + out.err


def test_an_export_goes_as_it_is(trained, hub, tmp_path):
    path, _ = trained()
    folder = export(path, tmp_path / "out", ExportOptions(name="Mine")).folder
    (folder / "README.md").write_text("My own words.")
    (folder / "notes.txt").write_text("not for others")
    pushed = push(folder, "me/mine")
    ((_, _, files),) = hub.commits
    assert files == {name: (folder / name).read_bytes() for name in FILES} and pushed.card == "My own words."
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="safetensors"):
        push(folder, "me/mine")


def test_a_dry_run_asks_nobody(trained, monkeypatch, capsys):
    path, _ = trained()
    monkeypatch.setattr(huggingface_hub, "HfApi", MagicMock(side_effect=AssertionError))
    assert main(["push", str(path), "me/mine", "--dry-run", "--license", "mit"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in FILES) and "license: mit" in out and "nothing was uploaded" in out


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "", "me/.."])
def test_names_of_repositories(trained, name):
    with pytest.raises(ValueError, match="OWNER/NAME"):
        push(trained()[0], name)


@pytest.mark.parametrize(
    "error, advice",
    [
        (RepositoryNotFoundError("who are you", response=MagicMock(status_code=401)), "hf auth login"),
        (HfHubHTTPError(f"wrong: {TOKEN}", response=MagicMock(status_code=500)), "try again"),
        (ConnectionError("no route"), "network"),
    ],
)
def test_what_goes_wrong(trained, monkeypatch, capsys, error, advice):
    path: Path = trained()[0]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    monkeypatch.setattr(huggingface_hub, "HfApi", MagicMock(return_value=MagicMock(create_repo=MagicMock(side_effect=error))))
    with pytest.raises(PushError, match=advice) as caught:
        push(path, "me/mine", options=PushOptions(message="x"))
    assert TOKEN not in str(caught.value)
    assert main(["push", str(path), "me/mine"]) == 2
