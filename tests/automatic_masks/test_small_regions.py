"""Records without small regions are those that cleaning one mask after the other gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samfast.masks import run_regions
from tests.automatic_masks.test_generate import PICTURES, Blobs
from tests.automatic_masks.test_segmenter import fast
from tests.masks.test_run_regions import remove_small_in_pixels


def as_lists(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records whose masks can be compared by ==."""
    return [
        {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in record.items()
        }
        for record in records
    ]


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
@pytest.mark.parametrize("area", [1, 40, 150.5, 400])
@pytest.mark.parametrize("crops", [0, 1])
def test_records_of_blobs(
    mode: str, area: float, crops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"output_mode": mode, "min_mask_region_area": area, "crop_n_layers": crops}

    def records() -> Any:
        return [*Blobs(batch_across_crops=False).records(PICTURES[:3], 4, **options)]

    ours = records()
    monkeypatch.setattr(run_regions, "remove_small", remove_small_in_pixels)
    theirs = records()
    assert min(map(len, ours)) >= 3
    assert [as_lists(each) for each in ours] == [as_lists(each) for each in theirs]
    assert [each.counts for each in ours] == [each.counts for each in theirs]


@pytest.mark.parametrize("mode", ["binary_mask", "coco_rle"])
def test_records_of_segment(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((60, 80), (90, 41))]
    sam = fast()

    def records(area: float) -> list[list[dict[str, Any]]]:
        answer = sam.segment(
            photos,
            points_per_side=4,
            pred_iou_thresh=-9.0,
            stability_score_thresh=0.0,
            box_nms_thresh=1.0,
            crop_nms_thresh=1.0,
            min_mask_region_area=area,
            output_mode=mode,
        )
        return [as_lists(each) for each in answer]

    ours, uncleaned = records(30), records(0)
    assert min(map(len, ours)) >= 10
    assert ours != uncleaned
    monkeypatch.setattr(run_regions, "remove_small", remove_small_in_pixels)
    assert records(30) == ours
