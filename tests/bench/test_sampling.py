"""Points are sampled once for each annotation file and rule, on threads, and a damaged file of them
is dropped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from samfast.bench import accuracy, sampling
from samfast.bench.dataset import Dataset, open_dataset
from samfast.bench.points import RULES
from samfast.errors import OutputError
from tests.bench import coco
from tests.bench.test_accuracy import Fake

SIZE = (20, 30)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(5)
    return coco.write(
        tmp_path / "set",
        [{"height": 20, "width": 30}] * 3,
        [coco.annotation(i, 1 + i % 3, generator.random(SIZE) > 0.4) for i in range(9)],
    )


@pytest.fixture
def counted(monkeypatch):
    """How many masks were sampled."""
    calls: list[object] = []

    def rule(mask):
        calls.append(mask)
        return RULES_BEFORE["edt"](mask)

    monkeypatch.setitem(RULES, "edt", rule)
    return calls


RULES_BEFORE = dict(RULES)


@pytest.mark.parametrize("rule", ["edt", "seed"])
@pytest.mark.parametrize("threads", [1, 3, None])
def test_threads_find_what_the_rule_says(folder, tmp_path, rule, threads):
    data = open_dataset(folder)
    found = sampling.sample(data, rule, folder=tmp_path / "kept", threads=threads)
    expected = {
        each.number: RULES[rule](each.mask()) for image in data for each in image.annotations
    }
    assert found == expected
    assert sampling.sample(data, rule, folder=tmp_path / "kept") == expected  # through the file


def test_what_was_sampled_is_not_sampled_again(folder, tmp_path, counted):
    kept = tmp_path / "kept"
    first = sampling.sample(open_dataset(folder), "edt", limit=1, folder=kept)
    assert (len(first), len(counted)) == (3, 3)
    done: list[int] = []
    whole = sampling.sample(open_dataset(folder), "edt", folder=kept, progress=done.append)
    assert (len(whole), len(counted), sum(done)) == (9, 9, 6)
    assert sampling.sample(open_dataset(folder), "edt", folder=kept) == whole
    assert len(counted) == 9
    coco.edit(folder, lambda content: content.update(note="changed"))
    sampling.sample(open_dataset(folder), "edt", folder=kept)
    assert len(counted) == 18  # another file, whatever its name


def test_a_second_evaluation_samples_nothing(folder, counted, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFAST_CACHE", str(tmp_path / "cache"))
    first = accuracy.evaluate(Fake(), open_dataset(folder), prompts="point")
    assert len(counted) == 9
    assert len(list((tmp_path / "cache" / "points").glob("*.json"))) == 1
    second = accuracy.evaluate(Fake(), open_dataset(folder), prompts="point")
    assert len(counted) == 9
    assert second["point"] == first["point"]
    accuracy.evaluate(Fake(), open_dataset(folder), prompts="box", point_rule="seed")
    assert len(list((tmp_path / "cache" / "points").glob("*.json"))) == 1  # boxes need no points
    moved = dict.fromkeys(range(9), (0.0, 0.0))
    third = accuracy.evaluate(Fake(), open_dataset(folder), prompts="point", points=moved)
    assert third["point"] != first["point"]


def test_part_of_a_set_is_sampled_and_not_kept(folder, tmp_path):
    whole = open_dataset(folder)
    part = Dataset(whole.images[1:2], whole.name)
    found = sampling.sample(part, "edt", folder=tmp_path / "kept")
    assert list(found) == [each.number for each in whole.images[1].annotations]
    assert not (tmp_path / "kept").exists()


def test_empty_and_damaged_masks_have_no_point(folder, tmp_path):
    def change(content):
        content["annotations"][0]["segmentation"] = coco.compressed(np.zeros(SIZE, dtype=bool))
        content["annotations"][1]["segmentation"]["counts"] = "0"

    found = sampling.sample(open_dataset(coco.edit(folder, change)), "edt", folder=tmp_path)
    assert sorted(found) == list(range(2, 9))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def another_point(path):
    about = json.loads(path.read_text())
    about["points"]["4"][0] += 1.0
    path.write_text(json.dumps(about))


def another_version(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))


def another_set(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": "0"}))


def no_object(path):
    path.write_text("[1]")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, "damaged"),
        (another_point, "damaged"),
        (no_object, "damaged"),
        (another_version, "another version"),
        (another_set, "other annotations"),
    ],
)
def test_a_bad_file_is_dropped_with_a_line(folder, tmp_path, counted, caplog, harm, words):
    right = sampling.sample(open_dataset(folder), "edt", folder=tmp_path / "kept")
    (path,) = (tmp_path / "kept").iterdir()
    harm(path)
    caplog.clear()
    assert sampling.sample(open_dataset(folder), "edt", folder=tmp_path / "kept") == right
    assert len(counted) == 18
    (line,) = caplog.messages
    assert str(path) in line and words in line and "sampled again" in line
    sampling.sample(open_dataset(folder), "edt", folder=tmp_path / "kept")
    assert len(counted) == 18


def test_an_interrupt_keeps_what_was_found(folder, tmp_path, counted):
    seen: list[int] = []

    def interrupt(count):
        seen.append(count)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampling.sample(
            open_dataset(folder), "edt", folder=tmp_path / "kept", threads=1, progress=interrupt
        )
    counted.clear()
    assert len(sampling.sample(open_dataset(folder), "edt", folder=tmp_path / "kept")) == 9
    assert len(counted) == 5


@pytest.mark.parametrize("trouble", ["full", "no folder"])
def test_a_cache_that_cannot_be_written_is_said(folder, tmp_path, monkeypatch, caplog, trouble):
    place = tmp_path / "kept"
    if trouble == "full":

        def full(path, data):
            raise OutputError(
                f"{path}: cannot be written: No space left on device; free some space"
            )

        monkeypatch.setattr(sampling, "atomic_write", full)
    else:
        place.write_text("a file")
    assert len(sampling.sample(open_dataset(folder), "edt", folder=place)) == 9
    (line,) = caplog.messages
    assert "not kept" in line and str(place) in line
