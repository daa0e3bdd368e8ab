"""Agreement with fp32's masks: exact on masks whose overlap is known, and one image at a time."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from samfast.bench.fp32_reference import Fp32Masks, MaskAgreement
from samfast.errors import OutputError
from samfast.types import Masks

SIZE = (10, 20)


def answer(*objects, best=None):
    """Masks of (top, left, height, width) rectangles, three an object; None is an empty one."""
    masks = torch.zeros(len(objects), 3, *SIZE, dtype=torch.bool)
    for row, rectangles in zip(masks, objects, strict=True):
        for mask, place in zip(row, rectangles, strict=True):
            if place is not None:
                top, left, height, width = place
                mask[top : top + height, left : left + width] = True
    iou = torch.zeros(len(objects), 3)
    for row, index in zip(iou, best or [0] * len(objects), strict=True):
        row[index] = 1
    return Masks(masks, iou, torch.zeros(len(objects), 3, 4, 4))


A, B, C = (0, 0, 4, 10), (0, 0, 2, 10), (5, 5, 4, 10)


def test_masks_come_back_as_they_were(tmp_path):
    generator = torch.Generator().manual_seed(0)
    noise = Masks(
        torch.rand(4, 3, *SIZE, generator=generator) > 0.5,
        torch.rand(4, 3, generator=generator),
        torch.zeros(1),
    )
    store = Fp32Masks(tmp_path)
    store.save(7, noise)
    same = MaskAgreement(store)
    same.add(7, noise)
    assert same.figures() == {
        "mask_iou": 1.0,
        "flipped_share": 0.0,
        "images": 1,
        "masks": 12,
        "other_best": 0.0,
    }
    flipped = Masks(~noise.masks, noise.iou, noise.low_res)
    other = MaskAgreement(store)
    other.add(7, flipped)
    figures = other.figures()
    assert figures is not None
    assert (figures["mask_iou"], figures["flipped_share"]) == (0.0, 1.0)


def test_figures_are_exact(tmp_path):
    store = Fp32Masks(tmp_path)
    store.save(0, answer((A, B, None), (C, C, C)))
    store.save(1, answer((A, None, None)))
    agreement = MaskAgreement(store)
    # A against B is 20 of 40 pixels and flips 20 of 200; against nothing 0 and flips 40.
    agreement.add(0, answer((B, B, None), (C, C, C), best=[0, 2]))
    agreement.add(1, answer((A, None, A), best=[1]))
    figures = agreement.figures()
    assert figures is not None
    assert figures["mask_iou"] == pytest.approx((0.5 + 1 + 1 + 3 + 1 + 1 + 0) / 9)
    assert figures["flipped_share"] == pytest.approx((20 + 40) / 200 / 9)
    assert (figures["images"], figures["masks"]) == (2, 9)
    assert figures["other_best"] == pytest.approx(2 / 3)


def test_nothing_asked_is_no_agreement(tmp_path):
    store = Fp32Masks(tmp_path)
    store.save(0, answer())
    agreement = MaskAgreement(store)
    assert agreement.figures() is None
    agreement.add(0, answer())
    assert agreement.figures() is None


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        Fp32Masks(tmp_path).save(0, answer((A, B, C)))
    assert list(tmp_path.iterdir()) == []
