"""Hugging Face ids, against huggingface_hub itself and a hub on 127.0.0.1."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import sys
import threading
import time

import huggingface_hub
import pytest

from samfast.checkpoints import hugging_face
from samfast.checkpoints.hugging_face import fetch, is_hub_id
from samfast.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DownloadError,
    MissingExtraError,
)


@pytest.fixture
def busy():
    """Statuses that the local hub answers with, the last one first, before its list of files."""
    return []


@pytest.fixture
def repository(monkeypatch, tmp_path, busy):
    """A dict of the files of `org/name` on a local hub, which huggingface_hub is sent to."""
    files: dict[str, bytes] = {}
    monkeypatch.setattr(hugging_face, "PAUSES", (0.01, 0.01))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            prefix, api = "/org/name/resolve/main/", "/api/models/org/name"
            if self.path.startswith(prefix) and self.path[len(prefix) :] in files:
                self.answer(200, files[self.path[len(prefix) :]])
            elif self.path.startswith(prefix):
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            elif self.path.startswith(api):
                if busy:
                    self.answer(busy.pop(), b"")
                    return
                siblings = [{"rfilename": name} for name in files]
                self.answer(200, json.dumps({"id": "org/name", "siblings": siblings}).encode())
            else:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def answer(self, status, body, headers=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    send_to(monkeypatch, endpoint, tmp_path / "hub")
    yield files
    server.shutdown()
    thread.join()
    server.server_close()


def send_to(monkeypatch, endpoint, cache):
    monkeypatch.setenv("no_proxy", "*")
    real, api = huggingface_hub.hf_hub_download, huggingface_hub.HfApi
    download = functools.partial(real, endpoint=endpoint, cache_dir=cache, token=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        huggingface_hub, "HfApi", functools.partial(api, endpoint=endpoint, token=False)
    )


def index(*shards):
    return json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}).encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("facebook/sam-vit-base", True),
        ("org/name.v2_x", True),
        ("name", False),
        ("a/b/c", False),
        ("./b", False),
        ("/a/b", False),
        ("org/weights.pth", False),
        ("org/weights.SAFETENSORS", False),
        ("org\\name", False),
    ],
)
def test_what_is_an_id(text, expected):
    assert is_hub_id(text) is expected


def test_safetensors_go_first(repository):
    repository.update({"model.safetensors": b"safe", "pytorch_model.bin": b"pickle"})
    path = fetch("org/name")
    assert (path.name, path.read_bytes()) == ("model.safetensors", b"safe")
    assert not (path.parent / "pytorch_model.bin").exists()  # only one format is downloaded


def test_a_pickle_is_taken_where_there_is_nothing_else(repository):
    repository["pytorch_model.bin"] = b"pickle"
    assert fetch("org/name").read_bytes() == b"pickle"


def test_shards(repository):
    repository.update(
        {
            "model.safetensors.index.json": index(
                "m-1.safetensors", "m-2.safetensors", "m-1.safetensors"
            )
        }
    )
    repository.update({"m-1.safetensors": b"one", "m-2.safetensors": b"two"})
    path = fetch("org/name")
    assert path.name == "model.safetensors.index.json"
    assert [(path.parent / f"m-{i}.safetensors").read_bytes() for i in (1, 2)] == [b"one", b"two"]


def test_a_missing_shard(repository):
    repository["model.safetensors.index.json"] = index("m-1.safetensors")
    with pytest.raises(CheckpointNotFoundError, match=r"org/name: its m-1\.safetensors is missing"):
        fetch("org/name")


def test_a_shard_elsewhere_is_refused(repository):
    repository["model.safetensors.index.json"] = index("../../secret")
    with pytest.raises(CheckpointError, match="not a plain file name"):
        fetch("org/name")


def test_the_only_checkpoint_of_a_repository(repository):
    repository.update(
        {"sam_vit_b_01ec64.pth": b"meta", "README.md": b"hello", "config.json": b"{}"}
    )
    assert fetch("org/name").read_bytes() == b"meta"


def test_several_checkpoints(repository):
    repository.update({"a.pth": b"a", "b.pth": b"b"})
    with pytest.raises(
        CheckpointError, match=r"org/name .*: 2 checkpoints in it \(a\.pth, b\.pth\)"
    ):
        fetch("org/name")


def test_no_checkpoint(repository):
    repository["README.md"] = b"hello"
    with pytest.raises(CheckpointNotFoundError, match=r"org/name .*: no checkpoint"):
        fetch("org/name")


def test_no_such_repository(repository):
    with pytest.raises(
        CheckpointNotFoundError, match="org/other: neither a file here nor a Hugging Face"
    ):
        fetch("org/other")


def test_an_id_that_cannot_be_one(repository):
    with pytest.raises(CheckpointNotFoundError, match=r"org/na--me: neither"):
        fetch("org/na--me")


def test_offline_says_what_to_put_where(monkeypatch, tmp_path):
    send_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError) as caught:
        fetch("org/name")
    message = str(caught.value)
    for word in ("org/name", "model.safetensors", "https://huggingface.co/org/name", "checkpoint="):
        assert word in message, message
    assert "\n" not in message


def test_a_mistyped_path_without_a_network_fails_at_once(monkeypatch, tmp_path):
    send_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub")
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"facebok/sam: no file .* seems to be offline"):
        fetch("facebok/sam")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("statuses", [[503], [429, 500]])
def test_a_busy_hub_is_asked_again(repository, busy, statuses):
    repository["model.safetensors"] = b"safe"
    busy.extend(statuses)
    assert fetch("org/name").read_bytes() == b"safe"


def test_a_hub_that_stays_busy_is_given_up(repository, busy):
    busy.extend([503] * 9)
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch("org/name")


def test_what_is_cached_needs_no_network(repository, monkeypatch):
    repository["pytorch_model.bin"] = b"pickle"
    path = fetch("org/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch("org/name") == path


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(MissingExtraError, match="pip install huggingface_hub"):
        hugging_face.fetch("org/name")
