"""Crops and grids of points as the original lays them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samfast.automatic_masks import image_crops, point_grids
from tests import oracle

amg = oracle.load().utils.amg


@pytest.mark.parametrize("size", [(480, 640), (641, 427), (100, 1000), (3, 5)])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("overlap", [0.0, 512 / 1500, 1.0])
def test_crop_boxes(size: tuple[int, int], layers: int, overlap: float) -> None:
    theirs = amg.generate_crop_boxes(size, layers, overlap)
    ours = image_crops.crop_boxes(size, layers, overlap)
    assert [list(box) for box, _ in ours] == theirs[0]
    assert [layer for _, layer in ours] == theirs[1]


@pytest.mark.parametrize("crop", [(0, 0, 9, 7), (2, 3, 6, 7), (0, 1, 9, 2)])
def test_uncrop(crop: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = crop
    masks = torch.rand(3, y1 - y0, x1 - x0).gt(0.4)
    ours = image_crops.uncrop(masks, crop, (7, 9))
    assert ours.dtype == torch.bool
    assert torch.equal(ours, amg.uncrop_masks(masks, list(crop), 7, 9))


@pytest.mark.parametrize(("side", "layers", "downscale"), [(1, 0, 1), (32, 2, 2), (7, 1, 3)])
def test_grids(side: int, layers: int, downscale: int) -> None:
    theirs = amg.build_all_layer_point_grids(side, layers, downscale)
    ours = point_grids.grids(side, layers, downscale)
    assert len(ours) == len(theirs)
    for our_crop, their_crop in zip(ours, theirs, strict=True):
        assert np.array_equal(our_crop, their_crop)
