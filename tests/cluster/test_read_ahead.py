"""Reading ahead: in order, bounded, and without threads left behind."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from samfast.cluster import read_ahead as module
from samfast.cluster.read_ahead import ReadEntry, read_ahead
from samfast.cluster.shards import Entry
from samfast.cluster.sources import Reader
from samfast.errors import SourceGoneError
from samfast.images import LoadedImage

READER = Reader("", listed=True)


def entries(count):
    return [Entry(f"{number}") for number in range(count)]


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("samfast-reader")]


@pytest.fixture
def started(monkeypatch):
    """The keys of entries whose reading began; images of 3000 bytes, the even ones slow."""
    begun: list[str] = []

    def read(reader, entry, *, with_id):
        begun.append(entry.key)
        time.sleep(0.01 * (int(entry.key) % 2 == 0))
        return ReadEntry(entry, LoadedImage(np.zeros((10, 100, 3), np.uint8), entry.key), None)

    monkeypatch.setattr(module, "read_entry", read)
    return begun


@pytest.mark.parametrize("threads", [1, 4])
def test_images_come_in_order(started, threads):
    with read_ahead(READER, entries(20), threads) as images:
        assert [each.entry.key for each in images] == [f"{number}" for number in range(20)]
    assert readers() == []


def test_no_more_than_twice_as_many_images_as_threads_are_read_ahead(started):
    with read_ahead(READER, entries(50), 3) as images:
        next(images)
        time.sleep(0.2)
        assert len(started) == 7
        next(images)
        time.sleep(0.2)
        assert len(started) == 8
    assert readers() == []


def test_large_images_are_read_one_for_each_thread(started, monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXEL_BYTES", 5000)
    most = 0
    with read_ahead(READER, entries(30), 2) as images:
        for number, _ in enumerate(images):
            time.sleep(0.02)
            most = max(most, len(started) - number - 1)
    assert most <= 4


def test_an_error_comes_after_the_images_before_it(monkeypatch):
    def read(reader, entry, *, with_id):
        if entry.key == "3":
            raise SourceGoneError("gone")
        return ReadEntry(entry, None, None)

    monkeypatch.setattr(module, "read_entry", read)
    keys = []

    def take():
        with read_ahead(READER, entries(9), 2) as images:
            for each in images:
                keys.append(each.entry.key)

    with pytest.raises(SourceGoneError):
        take()
    assert keys == ["0", "1", "2"]
    assert readers() == []
