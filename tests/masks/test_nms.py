"""Suppression keeps what torchvision's keeps, in its order."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from samfast.masks import nms
from tests import oracle


def random_boxes(count: int, seed: int, side: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, side, (count, 2, 2)), axis=1)
    return corners.reshape(count, 4)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("levels", [1, 4, 1000])
def test_keeps_what_torchvision_keeps(threshold: float, levels: int) -> None:
    for seed in range(4):
        boxes = random_boxes(60, seed)
        rng = np.random.default_rng(seed)
        scores = (rng.integers(0, levels, 60) / levels).astype(np.float32)  # with ties
        theirs = oracle.batched_nms(
            torch.from_numpy(boxes).float(), torch.from_numpy(scores), torch.zeros(60), threshold
        )
        ours = nms.keep(boxes, scores, threshold)
        assert ours.dtype == np.int64
        assert ours.tolist() == theirs.tolist()
        on_device = nms.start_keeping(boxes, scores, threshold, torch.device("cpu"))()
        assert on_device.dtype == np.int64 and on_device.tolist() == theirs.tolist()


def test_at_the_threshold_a_box_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]])  # their IoU is exactly a half
    scores = np.array([0.9, 0.8])
    assert nms.keep(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms.keep(boxes, scores, 0.4999).tolist() == [0]


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = np.zeros((3, 4), dtype=np.int64)
    assert nms.keep(boxes, np.array([0.1, 0.2, 0.3]), 0.5).tolist() == [2, 1, 0]


def test_none() -> None:
    kept = nms.keep(np.zeros((0, 4)), np.zeros(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == np.int64


def test_many_boxes_need_no_square_matrix() -> None:
    rng = np.random.default_rng(0)
    boxes = np.repeat(random_boxes(100, 0, side=900), 2000, axis=0) + rng.integers(
        0, 3, (200_000, 4)
    )
    start = time.perf_counter()
    kept = nms.keep(boxes, rng.random(200_000), 0.5)  # the IoU of all pairs would take 160 GB
    assert 0 < len(kept) < 5000
    assert time.perf_counter() - start < 60
