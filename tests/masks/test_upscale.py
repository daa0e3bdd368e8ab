"""Masks of the original size are the original's to the last bit, however few are made at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.images import input_size
from samfast.masks import postprocess, upscale
from samfast.masks.resize_geometry import ResizeGeometry

SIZES = [
    (32, 48),
    (48, 32),
    (1, 9),
    (683, 1024),
    (1024, 683),
    (1024, 1024),
    (431, 640),
    (1500, 1000),
]


def as_original(
    low_res: Tensor, inside: tuple[int, int], size: tuple[int, int], side: int
) -> Tensor:
    square = F.interpolate(low_res, (side, side), mode="bilinear", align_corners=False)
    square = square[..., : inside[0], : inside[1]]
    return F.interpolate(square, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "low"), [(1024, 256), (256, 64), (250, 62)])
def test_logits_are_the_originals(size: tuple[int, int], side: int, low: int) -> None:
    low_res = 5 * torch.randn(2, 3, low, low, generator=torch.Generator().manual_seed(0))
    inside = input_size(size, side)
    ours = upscale.logits(low_res, inside, size, side)
    assert torch.equal(ours, as_original(low_res, inside, size, side))


@pytest.mark.parametrize("budget", [1, 1 << 20, 1 << 26])
@pytest.mark.parametrize("threshold", [0.0, -1.5])
def test_chunks_change_nothing(monkeypatch, budget: int, threshold: float) -> None:
    monkeypatch.setattr(upscale, "CPU_BUDGET", budget)
    low_res = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    masks = postprocess.masks(
        low_res.flatten(0, 1), ResizeGeometry((171, 256), (341, 512), 256), threshold
    )
    assert masks.dtype == torch.bool
    assert torch.equal(
        masks.view(5, 3, 341, 512), as_original(low_res, (171, 256), (341, 512), 256) > threshold
    )


def test_never_more_logits_than_the_budget(monkeypatch) -> None:
    seen = []
    inner = upscale.logits
    monkeypatch.setattr(
        upscale, "logits", lambda part, *rest: seen.append(len(part)) or inner(part, *rest)
    )
    monkeypatch.setattr(upscale, "CPU_BUDGET", 4 * 4 * (256 * 256 + 100 * 200))
    postprocess.masks(torch.zeros(9, 64, 64), ResizeGeometry((128, 256), (100, 200), 256))
    assert seen == [4, 4, 1]


def test_half_precision_is_upscaled_in_float32() -> None:
    low_res = torch.randn(1, 1, 64, 64).to(torch.bfloat16)
    ours = upscale.logits(low_res, (256, 256), (300, 300), 256)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, as_original(low_res.float(), (256, 256), (300, 300), 256))


def test_no_masks() -> None:
    geometry = ResizeGeometry((128, 256), (50, 100), 256)
    assert postprocess.masks(torch.zeros(0, 64, 64), geometry).shape == (0, 50, 100)
    (none,) = postprocess.masks_of_images(torch.zeros(0, 3, 64, 64), (0, 0), [geometry])
    assert none.shape == (0, 3, 50, 100)
