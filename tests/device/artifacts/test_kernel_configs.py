"""Kernel configurations in the user's cache."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from samfast.device.artifacts import entries, kernel_configs
from samfast.errors import OutputError

ROWS = [{"window": True, "dim": 64}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_saved_is_handed_back_on_that_device_only():
    path = kernel_configs.save("GPU A", "vit_b", 8, ROWS)
    seen: list[Any] = []
    assert kernel_configs.load("GPU A", seen.append) == [path] and seen == [ROWS]
    assert kernel_configs.load("GPU B", seen.append) == [] and len(seen) == 1
    assert path.is_file()
    kernel_configs.save("GPU A", "vit_b", 8, [])
    seen.clear()
    assert kernel_configs.load("GPU A", seen.append) == [path] and seen == [[]]


def test_it_is_listed():
    path = kernel_configs.save("GPU A", "vit_b", 8, ROWS)
    (entry,) = entries()
    assert (entry.kind, entry.path, entry.device, entry.batch_size) == ("tuned", path, "GPU A", 8)
    assert not entry.stale


@pytest.mark.parametrize("damage", ["versions", "json", "rows", "refused"])
def test_a_stale_or_damaged_file_is_dropped_with_a_line(damage, caplog):
    path = kernel_configs.save("GPU A", "vit_b", 8, ROWS)
    about = json.loads(path.read_text())
    if damage == "versions":
        about["versions"]["triton"] = "0.1"
    if damage == "rows":
        del about["rows"]
    path.write_text("{" if damage == "json" else json.dumps(about))

    def use(rows):
        if damage == "refused":
            raise ValueError("no candidate of this version")
        pytest.fail("it must not be used")

    with caplog.at_level(logging.WARNING, logger="samfast"):
        assert kernel_configs.load("GPU A", use) == []
    assert not path.exists()
    assert len(caplog.records) == 1 and "dropped" in caplog.text


def test_nothing_kept_is_nothing_loaded(cache):
    assert kernel_configs.load("GPU A", lambda rows: pytest.fail("there is nothing")) == []
    assert not cache.exists()


def test_a_cache_that_cannot_be_made(cache):
    cache.write_text("a file")
    with pytest.raises(OutputError, match="tuned"):
        kernel_configs.save("GPU A", "vit_b", 8, ROWS)
