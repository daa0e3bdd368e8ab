"""What counts as a fall, and what is only said."""

from __future__ import annotations

import pytest

from samfast.bench.compare import compare
from samfast.bench.results import read
from tests.bench.rows import row, write


@pytest.fixture
def compared(tmp_path):
    """A function: the comparison of two lists of rows."""

    def make(old, new):
        sides = [read(write(tmp_path / f"{n}.json", rows)) for n, rows in enumerate((old, new))]
        return compare(*sides)

    return make


def test_a_fall_beyond_the_spread_of_both(compared):
    # 400 +- 20 and 370 +- 14.8 overlap: 380 to 420, 355.2 to 384.8; at 365 they part.
    inside = compared([row(rate=400.0, spread=0.1)], [row(rate=370.0, spread=0.08)])
    outside = compared([row(rate=400.0, spread=0.1)], [row(rate=365.0, spread=0.08)])
    assert not inside["fell"] and inside["rows"][0]["fell"] == []
    assert outside["fell"] and outside["rows"][0]["fell"] == [
        "encoder_images_per_second",
        "images_per_second",
    ]
    speed = outside["rows"][0]["measures"]["encoder_images_per_second"]
    assert speed == {"old": 400.0, "new": 365.0, "ratio": 365 / 400, "fell": True}


def test_without_a_spread_any_fall_counts_and_a_rise_never_does(compared):
    assert compared([row(rate=400.0, spread=None)], [row(rate=399.9, spread=None)])["fell"]
    assert not compared([row(rate=400.0, spread=None)], [row(rate=400.0, spread=None)])["fell"]
    assert not compared([row(rate=400.0)], [row(rate=4000.0)])["fell"]


@pytest.mark.parametrize(
    ("name", "old", "within", "beyond"),
    [
        ("peak_memory_bytes", 1000, 1019, 1021),
        ("miou", 0.53, 0.5291, 0.5289),
        ("max_relative_error", 0.01, 0.0124, 0.0126),
        ("max_relative_error", 3e-7, 9e-7, 2e-6),
    ],
)
def test_memory_and_accuracy_have_bounds_of_their_own(compared, name, old, within, beyond):
    for value, fell in ((within, []), (beyond, [name]), (old, [])):
        assert compared([row(**{name: old})], [row(**{name: value})])["rows"][0]["fell"] == fell
    better = {"miou": 0.9}.get(name, 0)
    assert not compared([row(**{name: old})], [row(**{name: better})])["fell"]


def agreeing(mask_iou, **accuracy):
    return row(
        agreement={"mask_iou": mask_iou, "flipped_share": 0.0}, accuracy=accuracy or None, miou=0.5
    )


def test_agreement_with_fp32_may_fall_by_a_tenth_of_a_point(compared):
    for value, fell in ((0.9891, []), (0.9889, ["mask_iou"]), (1.0, [])):
        assert compared([agreeing(0.99)], [agreeing(value)])["rows"][0]["fell"] == fell


@pytest.mark.parametrize("key", ["annotations", "point_rule", "min_area", "limit"])
def test_accuracy_on_other_masks_is_not_compared(compared, key):
    on = {"annotations": "a", "point_rule": "seed", "min_area": 0, "limit": None}
    same = compared([agreeing(0.99, **on)], [agreeing(0.5, **on)])["rows"][0]
    assert same["fell"] == ["mask_iou"] and "miou" in same["measures"]
    other = compared([agreeing(0.99, **on)], [agreeing(0.5, **{**on, key: 7})])["rows"][0]
    assert other["fell"] == [] and other["missing"] == []
    assert not {"mask_iou", "miou"} & set(other["measures"])
    assert compared([agreeing(0.99)], [agreeing(0.5, **on)])["rows"][0]["fell"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "vit_h"},
        {"weights": "packaged"},
        {"recipe": "fp8"},
        {"batch_size": 1},
        {"gpu": "Card B"},
    ],
)
def test_only_the_same_is_compared(compared, changes):
    told = compared([row()], [row(**{"rate": 1.0, **changes})])
    assert told["rows"] == [] and not told["fell"]
    assert len(told["only_old"]) == len(told["only_new"]) == 1
    key = {"gpu": "place"}.get(*changes, *changes)
    assert told["only_new"][0][key] == next(iter(changes.values()))


def test_rows_in_one_file_only_are_listed_and_nothing_fell(compared):
    told = compared([row("fp32"), row("fused")], [row("fused"), row("fp8")])
    assert [r["recipe"] for r in told["rows"]] == ["fused"]
    assert [r["recipe"] for r in told["only_old"]] == ["fp32"]
    assert [r["recipe"] for r in told["only_new"]] == ["fp8"]
    assert not told["fell"]


def test_rows_that_are_no_longer_ok_fell_and_others_are_no_figures(compared):
    told = compared([row()], [row(status="wrong: relative error 0.5")])
    assert told["rows"][0]["fell"] == ["status"] and told["rows"][0]["measures"] == {}
    for old, new in ((row(rate=None), row()), (row(rate=None), row(rate=None))):
        told = compared([old], [new])
        assert not told["fell"] and told["rows"][0]["measures"] == {}


def test_what_was_not_measured_again_is_missing(compared):
    told = compared([row(miou=0.5)], [row()])
    assert told["rows"][0]["missing"] == ["miou"] and not told["fell"]
    told = compared([row()], [row(miou=0.5)])
    assert told["rows"][0]["missing"] == [] and "miou" not in told["rows"][0]["measures"]


def test_cpus_are_told_apart(compared):
    told = compared([row(gpu=None, cpu="One")], [row(gpu=None, cpu="Other")])
    assert told["rows"] == [] and told["only_old"][0]["place"] == "CPU One, 16 threads"


def test_differences_of_the_stamps(compared):
    new = row(torch="2.13", commit="fff", settings={"TRITON_X": "1"})
    told = compared([row()], [new])
    assert told["differences"] == {
        "torch": {"old": ["2.11.0"], "new": ["2.13"]},
        "commit": {"old": ["abcdef0123456789"], "new": ["fff"]},
        "settings": {"old": ["{}"], "new": ["{'TRITON_X': '1'}"]},
    }
    assert compared([row()], [row(date="2030")])["differences"] == {}


def test_of_several_rows_the_newest_counts(compared):
    old = [row(rate=500.0, date="2026-02"), row(rate=100.0, date="2026-01")]
    told = compared(old, [row(rate=500.0)])
    assert told["rows"][0]["measures"]["encoder_images_per_second"]["old"] == 500.0


def test_a_zero_has_no_ratio(compared):
    told = compared([row(max_relative_error=0.0)], [row(max_relative_error=0.0)])
    assert told["rows"][0]["measures"]["max_relative_error"]["ratio"] is None
