"""The rules for points, sampled once for each annotation file and rule; boxes and their masks."""

from __future__ import annotations

import numpy as np
import pytest

from samfast.bench import accuracy, mask_points
from samfast.bench.coco_dataset import Dataset, open_dataset
from samfast.bench.mask_points import RULES, box_of, edt, filled, seed
from samfast.errors import OutputError
from tests.bench import coco
from tests.bench.coco import rectangle
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
def test_points_are_what_the_rule_says(folder, tmp_path, rule):
    data = open_dataset(folder)
    points = mask_points.sample(data, rule, folder=tmp_path / "kept")
    expected = {
        each.number: RULES[rule](each.mask()) for image in data for each in image.annotations
    }
    assert points == expected
    assert mask_points.sample(data, rule, folder=tmp_path / "kept") == expected  # through the file


def test_what_was_sampled_is_not_sampled_again(folder, tmp_path, counted):
    kept = tmp_path / "kept"
    first = mask_points.sample(open_dataset(folder), "edt", limit=1, folder=kept)
    assert (len(first), len(counted)) == (3, 3)
    done: list[int] = []
    whole = mask_points.sample(open_dataset(folder), "edt", folder=kept, progress=done.append)
    assert (len(whole), len(counted), sum(done)) == (9, 9, 6)
    assert mask_points.sample(open_dataset(folder), "edt", folder=kept) == whole
    assert len(counted) == 9
    coco.edit(folder, lambda content: content.update(note="changed"))
    mask_points.sample(open_dataset(folder), "edt", folder=kept)
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
    points = mask_points.sample(part, "edt", folder=tmp_path / "kept")
    assert list(points) == [each.number for each in whole.images[1].annotations]
    assert not (tmp_path / "kept").exists()


def test_empty_and_damaged_masks_have_no_point(folder, tmp_path):
    def change(content):
        content["annotations"][0]["segmentation"] = coco.compressed(np.zeros(SIZE, dtype=bool))
        content["annotations"][1]["segmentation"]["counts"] = "0"

    points = mask_points.sample(open_dataset(coco.edit(folder, change)), "edt", folder=tmp_path)
    assert sorted(points) == list(range(2, 9))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def no_object(path):
    path.write_text("[1]")


def no_point(path):
    path.write_text('{"4": [1]}')


@pytest.mark.parametrize("harm", [truncate, no_object, no_point])
def test_a_damaged_file_is_replaced_with_a_line(folder, tmp_path, counted, caplog, harm):
    right = mask_points.sample(open_dataset(folder), "edt", folder=tmp_path / "kept")
    (path,) = (tmp_path / "kept").iterdir()
    harm(path)
    caplog.clear()
    assert mask_points.sample(open_dataset(folder), "edt", folder=tmp_path / "kept") == right
    assert len(counted) == 18
    (line,) = caplog.messages
    assert str(path) in line and "damaged" in line and "sampled again" in line
    mask_points.sample(open_dataset(folder), "edt", folder=tmp_path / "kept")
    assert len(counted) == 18


def test_an_interrupt_keeps_what_was_found(folder, tmp_path, counted):
    seen: list[int] = []

    def interrupt(count):
        seen.append(count)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mask_points.sample(
            open_dataset(folder), "edt", folder=tmp_path / "kept", progress=interrupt
        )
    counted.clear()
    assert len(mask_points.sample(open_dataset(folder), "edt", folder=tmp_path / "kept")) == 9
    assert len(counted) == 5


@pytest.mark.parametrize("trouble", ["full", "no folder"])
def test_a_cache_that_cannot_be_written_is_said(folder, tmp_path, monkeypatch, caplog, trouble):
    place = tmp_path / "kept"
    if trouble == "full":

        def full(path, data):
            raise OutputError(
                f"{path}: cannot be written: No space left on device; free some space"
            )

        monkeypatch.setattr(mask_points, "atomic_write", full)
    else:
        place.write_text("a file")
    assert len(mask_points.sample(open_dataset(folder), "edt", folder=place)) == 9
    (line,) = caplog.messages
    assert "not kept" in line and str(place) in line


def brute(mask):
    """The rule from its words: the first pixel in row-major order with the farthest nearest
    background."""
    padded = np.pad(mask, 1)
    background = np.argwhere(~padded) - 1
    best, place = -1, None
    for row, column in np.argwhere(mask):
        squared = ((background - (row, column)) ** 2).sum(axis=1).min()
        if squared > best:
            best, place = squared, (float(column), float(row))
    return place


def ring(size=15, outer=7, inner=3):
    rows, columns = np.mgrid[:size, :size] - size // 2
    distance = np.hypot(rows, columns)
    return (distance <= outer) & (distance > inner)


def test_one_pixel():
    mask = rectangle((5, 6), 3, 4, 1, 1)
    assert edt(mask) == seed(mask) == (4.0, 3.0)


def test_the_outside_of_the_image_is_background():
    # Without that rule the farthest pixel of a half-covered image is on the image's edge.
    assert edt(rectangle((9, 9), 0, 0, 9, 5)) == (2.0, 2.0)
    assert edt(np.ones((5, 5), dtype=bool)) == (2.0, 2.0)


def test_ties_go_to_the_first_in_row_major_order():
    assert edt(rectangle((10, 10), 2, 3, 2, 2)) == (3.0, 2.0)
    two = rectangle((20, 20), 12, 1, 3, 3) | rectangle((20, 20), 5, 14, 3, 3)
    assert edt(two) == (15.0, 6.0)
    across = rectangle((20, 20), 5, 14, 3, 3) | rectangle((20, 20), 5, 1, 3, 3)
    assert edt(across) == (2.0, 6.0)


def test_a_ring_is_asked_inside_itself():
    x, y = edt(ring())
    assert ring()[int(y), int(x)]
    assert seed(ring()) == edt(ring())  # its centre of mass is in the hole


def test_seed_is_the_centre_of_mass_where_that_is_inside():
    shape = rectangle((20, 20), 2, 2, 6, 1) | rectangle((20, 20), 7, 2, 1, 9)
    assert seed(shape) == edt(shape)  # an L: its centre of mass is outside
    lopsided = rectangle((20, 30), 4, 3, 5, 20) | rectangle((20, 30), 4, 3, 9, 5)
    rows, columns = np.nonzero(lopsided)
    assert seed(lopsided) == (float(np.rint(columns.mean())), float(np.rint(rows.mean())))
    assert seed(lopsided) != edt(lopsided)


@pytest.mark.parametrize("number", range(40))
def test_edt_against_the_rule_in_words(number):
    generator = np.random.default_rng(number)
    mask = (
        generator.random((generator.integers(1, 14), generator.integers(1, 14)))
        > generator.random() * 0.9
    )
    if not mask.any():
        mask[0, 0] = True
    assert edt(mask) == brute(mask)
    x, y = seed(mask)
    assert mask[int(y), int(x)]


def test_box_and_its_mask():
    mask = ring()
    box = box_of(mask)
    assert box == (0.0, 0.0, 15.0, 15.0)
    assert filled(box, (15, 15)).all()
    for area in [(1, 2, 3, 4), (0, 0, 1, 1), (2, 0, 8, 9)]:
        mask = rectangle((10, 9), *area)
        assert np.array_equal(filled(box_of(mask), (10, 9)), mask)


def test_a_box_with_fractions_or_beyond_the_image():
    assert np.array_equal(filled((1.6, 0.4, 2.0, 2.0), (4, 6)), rectangle((4, 6), 0, 2, 2, 2))
    assert np.array_equal(filled((-3.0, 2.0, 50.0, 50.0), (4, 6)), rectangle((4, 6), 2, 0, 2, 6))
