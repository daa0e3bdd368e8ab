"""Kept machine code is read only as it was kept; a damaged entry is dropped and logged."""

from __future__ import annotations

import json
import logging
import os

import pytest

from samfast.device import artifacts
from samfast.device.artifacts import compiled_code, machine_code

PURPOSE = {"device": "a card", "kernel": "f", "options": ["-DDIM=64"], "source": "ab"}
CODE = b"\x7fELF and more"


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path))
    compiled_code.warn_once.cache_clear()
    return tmp_path


@pytest.fixture
def kept(cache_folder):
    machine_code.save(PURPOSE, CODE)
    (path,) = cache_folder.rglob("*.bin")
    return path


def test_what_is_kept_is_read_again(kept):
    assert machine_code.load(PURPOSE) == CODE
    assert machine_code.load(PURPOSE | {"source": "cd"}) is None


def test_the_cache_lists_and_clears_it(kept):
    (entry,) = artifacts.entries()
    assert entry.path == kept and entry.kind == "compiled" and entry.device == "a card"
    artifacts.clear()
    assert machine_code.load(PURPOSE) is None


@pytest.mark.parametrize("damage", ["changed", "short", "no code", "no description", "no JSON"])
def test_a_damaged_entry_is_dropped(kept, damage, caplog):
    described = kept.with_suffix(".json")
    match damage:
        case "changed":
            kept.write_bytes(CODE[:-1] + b"?")
        case "short":
            kept.write_bytes(CODE[:5])
        case "no code":
            kept.unlink()
        case "no description":
            described.unlink()
        case "no JSON":
            described.write_text("{")
    with caplog.at_level(logging.WARNING, "samfast"):
        assert machine_code.load(PURPOSE) is None
    assert "dropped the kernel" in caplog.text
    assert not kept.exists() and not described.exists()


def test_another_entrys_code_is_not_taken(kept):
    described = kept.with_suffix(".json")
    about = json.loads(described.read_text())
    described.write_text(json.dumps(about | {"for": PURPOSE | {"device": "another"}}))
    assert machine_code.load(PURPOSE) is None


@pytest.mark.skipif(os.name != "posix", reason="Windows has none of these permissions")
def test_what_others_may_write_is_not_read(kept, caplog):
    kept.chmod(0o666)
    with caplog.at_level(logging.WARNING, "samfast"):
        assert machine_code.load(PURPOSE) is None
    assert "others may write" in caplog.text and kept.exists()


def test_a_cache_that_cannot_be_written_is_no_error(cache_folder, monkeypatch, caplog):
    (cache_folder / "file").touch()
    monkeypatch.setenv("SAMFAST_CACHE", str(cache_folder / "file" / "cache"))
    machine_code.save(PURPOSE, CODE)
    assert "not kept" in caplog.text
