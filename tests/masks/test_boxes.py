"""Boxes and stability as the original computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samfast.masks import boxes, stability
from tests import oracle

amg = oracle.load().utils.amg


@pytest.mark.parametrize(
    "shape", [(7, 11), (3, 7, 11), (2, 3, 20, 15), (4, 1, 1), (0, 5, 6), (2, 0, 5, 6)]
)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_boxes_of_masks(shape: tuple[int, ...], share: float) -> None:
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < share
    ours = boxes.from_masks(masks)
    assert ours.dtype == torch.int64
    theirs = amg.batched_mask_to_box(masks)
    assert ours.shape == theirs.shape
    assert torch.equal(ours, theirs.long())


def test_to_xywh() -> None:
    ours = boxes.to_xywh(np.array([[3, 4, 10, 6], [0, 0, 0, 0]]))
    assert ours.tolist() == [[3, 4, 7, 2], [0, 0, 0, 0]]


def test_near_crop_edge() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 130, (3000, 2, 2), generator=generator).sort(dim=1).values
    around = corners.flatten(1)
    crop, image = (40, 0, 170, 130), (0, 0, 300, 130)
    ours = boxes.near_crop_edge(around, crop, image)
    assert torch.equal(ours, amg.is_box_near_crop_edge(around, list(crop), list(image)))
    assert 0 < ours.sum() < len(ours)


@pytest.mark.parametrize("shape", [(5, 40, 30), (2, 3, 40, 30)])
def test_stability(shape: tuple[int, ...]) -> None:
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    logits[0] = -9.0
    ours = stability.score(logits, 0.2, 0.7)
    theirs = amg.calculate_stability_score(logits, 0.2, 0.7)
    assert ours.dtype == torch.float32
    assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))
    assert ours[0].isnan().all()


def test_areas() -> None:
    masks = torch.rand(2, 3, 50, 60).gt(0.3)
    assert torch.equal(stability.areas(masks), masks.sum((-2, -1)))
    assert torch.equal(stability.areas(masks[:, :, ::2, 1:]), masks[:, :, ::2, 1:].sum((-2, -1)))
    assert stability.areas(masks[0, 0]) == masks[0, 0].sum()
    assert stability.areas(masks[:0]).shape == (0, 3)
