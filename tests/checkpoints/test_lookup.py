"""From a name, a path or a Hugging Face id to a file."""

from __future__ import annotations

import hashlib
import re
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samfast import checkpoints
from samfast.checkpoints import KNOWN, Known, listing, resolve
from samfast.checkpoints.state_dict import load_checkpoint
from samfast.errors import CheckpointError, CheckpointNotFoundError, DownloadError
from samfast.model.config import CONFIGS
from samfast.model.sam import build
from tests.checkpoints.server import Behaviour, Server

DATA = b"weights" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(urllib.request, "_opener", None)
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def server(monkeypatch):
    with Server(Behaviour(DATA)) as running:
        known = Known("net", "net.pth", 5, "none", url=running.url, size=len(DATA), sha256=SHA)
        monkeypatch.setitem(KNOWN, "net", known)
        yield running


# ---------------------------------------------------------------------------------------- the table


def test_every_model_has_an_entry():
    assert list(KNOWN) == list(CONFIGS)
    assert all(known.name == name for name, known in KNOWN.items())


@pytest.mark.parametrize("name", list(KNOWN))
def test_parameters_are_counted(name):
    with torch.device("meta"):
        sam = build(CONFIGS[name])
    assert KNOWN[name].parameters == sum(parameter.numel() for parameter in sam.parameters())


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_what_is_published_fits_together(name):
    known = KNOWN[name]
    assert known.sha256 is not None
    assert re.fullmatch(r"[0-9a-f]{64}", known.sha256)
    assert known.file.startswith(f"sam_{name}_")
    assert known.url == f"https://dl.fbaipublicfiles.com/segment_anything/{known.file}"
    # Float32 parameters, the matrix of 2 x 128, and what the format adds.
    values = 4 * (known.parameters + 256)
    assert known.size is not None
    assert values < known.size < values + 300_000


# ------------------------------------------------------------------------------------------ by name


def test_a_download_happens_once(server, cache, capsys):
    for _ in range(2):
        assert resolve("net") == cache / "net.pth"
    assert (cache / "net.pth").read_bytes() == DATA
    assert len(server.behaviour.requests) == 1
    assert capsys.readouterr().out == ""


def test_a_file_put_there_by_hand_is_taken(server, cache):
    cache.mkdir(parents=True)
    (cache / "net.pth").write_bytes(DATA)
    assert resolve("net") == cache / "net.pth"
    assert server.behaviour.requests == []


@pytest.mark.parametrize(("content", "word"), [(DATA[:-1], "bytes"), (b"W" + DATA[1:], "SHA-256")])
def test_a_damaged_cached_file_is_said(server, cache, content, word):
    cache.mkdir(parents=True)
    (cache / "net.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"net\.pth: .*{word}.*delete it"):
        resolve("net")


def test_offline_says_which_file_to_put_where(monkeypatch, cache):
    monkeypatch.setitem(
        KNOWN, "vit_b", replace(KNOWN["vit_b"], url="http://127.0.0.1:9/sam_vit_b_01ec64.pth")
    )
    with pytest.raises(DownloadError) as caught:
        resolve("vit_b")
    for word in (
        "http://127.0.0.1:9/sam_vit_b_01ec64.pth",
        str(cache / "sam_vit_b_01ec64.pth"),
        "checkpoint=",
    ):
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["vit_q", "", None])
def test_an_unknown_name(name):
    with pytest.raises(CheckpointError, match="vit_xs, vit_b, vit_l, vit_h"):
        resolve(name)


def test_packaged_weights_that_are_missing(monkeypatch):
    monkeypatch.setitem(KNOWN, "box", Known("box", "box.safetensors", 1, "none"))
    with pytest.raises(CheckpointNotFoundError, match=r"box\.safetensors: .*reinstall samfast"):
        resolve("box")


def test_packaged_weights_are_in_the_package(monkeypatch):
    monkeypatch.setitem(KNOWN, "box", Known("box", "MODEL_CARD.md", 1, "none"))
    folder = Path(checkpoints.__file__).parent / "weights"
    assert resolve("box").samefile(folder / "MODEL_CARD.md")


# ------------------------------------------------------------------------------------ by path or id


def test_a_path_is_taken_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "org" / "name.pth"
    path.parent.mkdir()
    path.write_bytes(b"x")
    assert resolve("vit_b", path) == path
    assert resolve(None, str(path)) == path
    assert resolve("anything", path.parent) == path.parent
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("vit_b", "~/org/name.pth") == path


@pytest.mark.parametrize(
    "checkpoint", ["none.pth", "a/b.pth", "a/b/c", "./a", Path("org/name"), "x" * 5000, "a\0b"]
)
def test_a_missing_path_is_not_looked_up(checkpoint, monkeypatch):
    monkeypatch.setattr(
        "samfast.checkpoints.lookup.fetch", lambda repo: pytest.fail(f"looked up {repo}")
    )
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        resolve("vit_b", checkpoint)


def test_a_missing_file_in_a_folder_that_is_here_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(
        "samfast.checkpoints.lookup.fetch", lambda repo: pytest.fail(f"looked up {repo}")
    )
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        resolve("vit_b", "weights/best")


def test_an_id_is_looked_up(monkeypatch, tmp_path):
    monkeypatch.setattr("samfast.checkpoints.lookup.fetch", lambda repo: tmp_path / repo)
    assert resolve("vit_b", "facebook/sam-vit-base") == tmp_path / "facebook" / "sam-vit-base"


def test_an_empty_path():
    with pytest.raises(CheckpointNotFoundError, match="empty path"):
        resolve("vit_b", "")


def test_a_missing_published_file_says_where_it_is_from():
    with pytest.raises(
        CheckpointNotFoundError,
        match=r"sam_vit_h_4b8939\.pth: no such file; download https://.*vit_h",
    ):
        resolve("vit_h", "/models/sam_vit_h_4b8939.pth")


# ------------------------------------------------------------------------------------------ listing


def test_listing(cache):
    rows = {row["name"]: row for row in listing()}
    assert list(rows) == ["vit_xs", "vit_b", "vit_l", "vit_h"]
    assert all(
        list(row) == ["name", "parameters", "bytes", "where", "licence"] for row in rows.values()
    )
    assert rows["vit_b"] == {
        "name": "vit_b",
        "parameters": 93_735_472,
        "bytes": 375_042_383,
        "where": "not downloaded",
        "licence": "Apache-2.0",
    }
    assert "NC" in rows["vit_xs"]["licence"]
    cache.mkdir(parents=True)
    (cache / KNOWN["vit_b"].file).write_bytes(b"")
    assert {row["name"]: row["where"] for row in listing()}["vit_b"] == str(
        cache / KNOWN["vit_b"].file
    )


def test_listing_knows_the_size_of_packaged_weights(monkeypatch):
    monkeypatch.setitem(KNOWN, "box", Known("box", "MODEL_CARD.md", 1, "none"))
    monkeypatch.setitem(KNOWN, "gone", Known("gone", "gone.safetensors", 1, "none"))
    rows = {row["name"]: row for row in listing()}
    assert rows["box"]["bytes"] == (Path(rows["box"]["where"])).stat().st_size > 0
    assert rows["gone"]["where"] == "missing from this installation"
    assert rows["gone"]["bytes"] is None


def test_the_packaged_model_loads():
    assert load_checkpoint(resolve("vit_xs"), "vit_xs")[0] == "vit_xs"
    assert resolve("vit_xs").stat().st_size <= 22_000_000


@pytest.mark.parametrize("address", ["http://a.b/sam.pth", "https://huggingface.co/org/name"])
def test_a_web_address_is_no_path(address):
    with pytest.raises(CheckpointNotFoundError, match="a web address; download it"):
        resolve(None, address)
