"""Masks of a batch are encoded as each mask alone, whatever their sizes and order."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco

from samfast.serve.encoded_masks import encode_masks
from samfast.types import Masks

SIZES = ((37, 50), (64, 31), (37, 50), (1, 1), (33, 40), (64, 31))


def assert_encoded_as_alone(device: str) -> None:
    """Encode masks on the device, some of them empty or full, and compare with pycocotools."""
    draw = np.random.default_rng(0)
    answers, pixels = [], []
    for count, (height, width) in enumerate(SIZES):
        masks = draw.random((count, 3, height, width)) < draw.random((count, 3, 1, 1))
        masks[:1, 0] = False
        masks[1:2, 1] = True
        iou = draw.random((count, 3)).astype(np.float32)
        low_res = torch.zeros(count, 3, 4, 4, device=device)
        on_device = torch.from_numpy(masks).to(device), torch.from_numpy(iou).to(device)
        answers.append(Masks(on_device[0], on_device[1], low_res))
        pixels.append((masks.reshape(-1, height, width), iou.reshape(-1)))
    for (masks, iou), encoded in zip(pixels, encode_masks(answers), strict=True):
        assert len(encoded) == len(masks)
        for mask, rating, each in zip(masks, iou, encoded, strict=True):
            counted = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
            assert each.counts == counted["counts"].decode()
            assert each.area == mask.sum()
            rows, columns = np.nonzero(mask)
            box = (0, 0, 0, 0)
            if len(rows):
                left, top = columns.min(), rows.min()
                box = (left, top, columns.max() - left + 1, rows.max() - top + 1)
            assert each.bbox == box
            assert each.iou == rating


def test_a_batch_of_many_sizes():
    assert_encoded_as_alone("cpu")


def test_nothing_is_encoded_of_nothing():
    assert encode_masks([]) == []
