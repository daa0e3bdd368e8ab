"""What the filters left, in words, and which option finds more."""

from __future__ import annotations

import pytest

from samfast.automatic_masks.options import AutomaticOptions
from samfast.cli.segment_report import advice, describe_filters
from samfast.types import FilterCounts


@pytest.mark.parametrize(
    ("counts", "option"),
    [
        (FilterCounts(1024, 3072, 0, 0, 0, 0, 0, 0), "lower --pred-iou-thresh"),
        (FilterCounts(1024, 3072, 5, 4, 4, 2, 2, 2), "lower --pred-iou-thresh"),
        (FilterCounts(1024, 3072, 2000, 9, 9, 3, 3, 3), "lower --stability-score-thresh"),
        (FilterCounts(16, 48, 40, 38, 38, 4, 4, 4), "raise --points-per-side"),
    ],
)
def test_advice_names_the_filter_that_dropped_most(counts, option):
    assert advice(counts) == f"{option} to find more"


def test_many_masks_need_no_advice():
    assert advice(FilterCounts(1024, 3072, 400, 300, 300, 40, 40, 40)) is None


def test_crop_edges_are_mentioned_where_they_matter():
    counts = FilterCounts(64, 192, 100, 90, 80, 20, 12, 11)
    text = describe_filters(counts, AutomaticOptions(crop_n_layers=1))
    assert "80 not cut off by a crop's edge" in text
    assert text.endswith("11 without duplicates")
