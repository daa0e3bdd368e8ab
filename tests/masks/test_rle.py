"""Runs as the original and pycocotools write them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from samfast import coco_rle
from samfast.masks import rle
from tests import oracle

amg = oracle.load().utils.amg
MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)))


@settings(deadline=None)
@given(MASKS)
def test_runs_are_the_originals(masks) -> None:
    tensor = torch.from_numpy(masks)
    ours = [rle.uncompressed(runs, *masks.shape[1:]) for runs in rle.encode(tensor)]
    assert ours == amg.mask_to_rle_pytorch(tensor)
    for runs, mask in zip(ours, masks, strict=True):
        decoded = coco_rle.decode(runs)
        assert decoded.dtype == bool
        assert np.array_equal(decoded, mask)
        assert coco_rle.area_of(runs) == mask.sum()
        assert coco_rle.encode(runs) == {
            "size": list(mask.shape),
            "counts": coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode(),
        }


def test_a_batch_of_large_masks() -> None:
    y, x = np.mgrid[:300, :200]
    masks = torch.from_numpy(
        np.stack([(x - 100) ** 2 + (y - 150) ** 2 < r * r for r in (0, 3, 90, 400)])
    )
    ours = [rle.uncompressed(runs, 300, 200) for runs in rle.encode(masks)]
    assert ours == amg.mask_to_rle_pytorch(masks)
    assert ours[0]["counts"] == [60000]
    assert ours[3]["counts"] == [0, 60000]


def test_a_view_of_masks() -> None:
    masks = torch.rand(6, 20, 30).gt(0.5)[::2, 3:17, ::3]
    assert [r.tolist() for r in rle.encode(masks)] == [
        theirs["counts"] for theirs in amg.mask_to_rle_pytorch(masks)
    ]


def test_no_masks() -> None:
    assert rle.encode(torch.zeros(0, 4, 5, dtype=torch.bool)) == []
