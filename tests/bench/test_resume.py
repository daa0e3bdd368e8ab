from __future__ import annotations

import json

import pytest

from samfast.bench.environment import stamp
from samfast.bench.resume import SAME, finished
from samfast.errors import InputError


@pytest.fixture
def here():
    return {**stamp("cpu"), "commit": "abc", "dirty": False}


def write(path, *rows):
    path.write_text(json.dumps(rows))
    return path


def test_finished_rows_of_the_same_stamp(tmp_path, here):
    words = (
        "ok",
        "wrong: relative error 1",
        "failed: lost",
        "refused: no GPU",
        "interrupted",
        "skipped: x",
    )
    rows = [{"status": status, "environment": here} for status in words]
    assert finished(write(tmp_path / "a.json", *rows), here) == rows[:2]
    later = {**here, "date": "2030-01-01"}
    assert finished(tmp_path / "a.json", later) == rows[:2]


@pytest.mark.parametrize("key", SAME)
def test_another_stamp(tmp_path, here, key):
    assert key in here
    other = {**here, key: "another"}
    assert finished(write(tmp_path / "a.json", {"status": "ok", "environment": other}), here) == []


def test_a_changed_tree_keeps_nothing(tmp_path, here):
    dirty = {**here, "dirty": True}
    assert finished(write(tmp_path / "a.json", {"status": "ok", "environment": dirty}), dirty) == []


def test_a_file_that_is_not_there_yet(tmp_path, here):
    assert finished(tmp_path / "none.json", here) == []


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"status": "ok"}]', '[{"environment": {}}]'])
def test_a_file_of_something_else(tmp_path, here, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        finished(tmp_path / "a.json", here)
