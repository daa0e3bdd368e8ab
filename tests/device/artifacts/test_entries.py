"""Listing and clearing the cache."""

from __future__ import annotations

import json

import pytest
import torch

from samfast.device import artifacts, machine
from samfast.device.artifacts import Key
from samfast.errors import OutputError


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"bundle", None))
    return tmp_path


def kept(batch_size=1):
    return artifacts.save(
        Key("a card, compute capability 9.0", "vit_b", 1024, "bf16", batch_size), 1.0, 0.0
    )


def tuned(folder, **about):
    path = folder / "tuned" / "attention.json"
    path.parent.mkdir()
    path.write_text(json.dumps(about))
    return path


def test_an_empty_cache():
    assert artifacts.entries() == []
    assert artifacts.clear() == 0


def test_entries_say_what_they_are_for(folder):
    path = kept(8)
    other = tuned(
        folder, device="a card", date="2026-01-01T00:00:00+00:00", versions={"triton": "0.1"}
    )
    first, second = artifacts.entries()
    assert (first.kind, first.path, first.device, first.model) == (
        "compiled",
        path,
        "a card, compute capability 9.0",
        "vit_b",
    )
    assert (first.recipe, first.batch_size, first.versions, first.stale) == (
        "bf16",
        8,
        machine.versions(),
        False,
    )
    assert first.bytes == path.stat().st_size + path.with_suffix(".json").stat().st_size
    assert (second.kind, second.path, second.device, second.model) == (
        "tuned",
        other,
        "a card",
        None,
    )
    assert (second.date, second.stale) == ("2026-01-01T00:00:00+00:00", True)


def test_the_newest_comes_first():
    for batch_size, date in ((1, "2025"), (2, "2027"), (3, "2026")):
        path = kept(batch_size).with_suffix(".json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"date": date}))
    assert [entry.batch_size for entry in artifacts.entries()] == [2, 3, 1]


@pytest.mark.parametrize("content", ["", "[]", '{"for": 3, "versions": 4, "date": null}', b"\xff"])
def test_a_damaged_description_is_listed_without_words(content):
    path = kept()
    path.with_suffix(".json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    (entry,) = artifacts.entries()
    assert (entry.path, entry.model, entry.batch_size, entry.versions) == (path, None, None, {})
    assert entry.date[:2] == "20"


@pytest.mark.parametrize("missing", [".bin", ".json"])
def test_half_an_entry_is_listed_and_cleared(folder, missing):
    kept().with_suffix(missing).unlink()
    assert len(artifacts.entries()) == 1
    artifacts.clear()
    assert list((folder / "compiled").iterdir()) == []


def test_clearing_deletes_entries_and_leftovers_and_nothing_else(folder):
    path = kept()
    (folder / "compiled" / ".samfast-1.tmp").write_bytes(b"12345")
    tuned(folder)
    checkpoint = folder / "checkpoints" / "sam.pth"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    expected = sum(
        file.stat().st_size for name in ("compiled", "tuned") for file in (folder / name).iterdir()
    )
    assert expected > path.stat().st_size
    assert artifacts.clear() == expected
    assert artifacts.entries() == []
    assert checkpoint.exists()
    assert list((folder / "compiled").iterdir()) == []


def test_a_link_is_deleted_and_not_what_it_points_to(folder):
    target = folder / "precious"
    target.write_text("x")
    (folder / "compiled").mkdir()
    (folder / "compiled" / "a.bin").symlink_to(target)
    artifacts.clear()
    assert target.exists()
    assert list((folder / "compiled").iterdir()) == []


def test_what_cannot_be_deleted_is_named(folder, monkeypatch):
    path = kept()

    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "unlink", refuse)
    with pytest.raises(OutputError, match="cannot be deleted: Permission denied"):
        artifacts.clear()
