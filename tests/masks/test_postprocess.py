"""Masks and measures of low-resolution logits are those of the original's steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from samfast.images import input_size
from samfast.masks import bit_masks, boxes, postprocess, postprocess_reference, stability, upscale
from samfast.masks.measures import AREA, BOX, INNER, OUTER
from samfast.masks.resize_geometry import ResizeGeometry


def as_original(low_res: torch.Tensor, geometry: ResizeGeometry) -> torch.Tensor:
    square = F.interpolate(
        low_res[:, None], (geometry.side, geometry.side), mode="bilinear", align_corners=False
    )
    inside = square[..., : geometry.input_size[0], : geometry.input_size[1]]
    return F.interpolate(inside, geometry.original_size, mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize("size", [(120, 90), (60, 200), (256, 256), (1, 3)])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_as_the_original(size: tuple[int, int], chunk: int | None, monkeypatch) -> None:
    geometry = ResizeGeometry(input_size(size, 256), size, 256)
    low_res = torch.randn(5, 64, 64, generator=torch.Generator().manual_seed(0))
    low_res[3] = -4
    logits = as_original(low_res, geometry)
    want = logits > 0.2
    assert torch.equal(postprocess.masks(low_res, geometry, 0.2), want)
    assert torch.equal(postprocess.packed(low_res, geometry, 0.2), bit_masks.pack(want))
    measures, masks = postprocess.measured_masks(low_res, geometry, 0.2, 0.5)
    assert torch.equal(masks, want)
    if chunk is not None:
        monkeypatch.setattr(upscale, "masks_per_chunk", lambda *args: chunk)
    chunked = postprocess_reference.tiles(low_res, geometry, 0.2, offset=0.5, masks=True, pack=True)
    assert chunked.masks is not None and torch.equal(chunked.masks, want)
    assert chunked.packed is not None and torch.equal(chunked.packed, bit_masks.pack(want))
    assert chunked.measures is not None
    for measured in (measures, postprocess.measure(low_res, geometry, 0.2, 0.5), chunked.measures):
        assert measured[:, AREA].tolist() == want.sum((1, 2)).tolist()
        assert torch.equal(measured[:, BOX].long(), boxes.from_masks(want))
        assert measured[:, INNER].tolist() == (logits > 0.7).sum((1, 2)).tolist()
        assert measured[:, OUTER].tolist() == (logits > -0.3).sum((1, 2)).tolist()
        theirs = stability.score(logits, 0.2, 0.5)
        ours = measured[:, INNER] / measured[:, OUTER]
        assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


def test_nothing() -> None:
    geometry = ResizeGeometry((256, 192), (120, 90), 256)
    none = torch.zeros(0, 64, 64)
    assert postprocess.masks(none, geometry).shape == (0, 120, 90)
    assert postprocess.packed(none, geometry).shape == (0, 90, 4)
    assert postprocess.measure(none, geometry, 0.0, 1.0).shape == (0, 7)


def test_nan_is_never_set() -> None:
    low_res = torch.full((1, 16, 16), float("nan"))
    measures, masks = postprocess.measured_masks(
        low_res, ResizeGeometry((64, 64), (30, 30), 64), -1e30, 1.0
    )
    assert not masks.any()
    assert measures[:, BOX].tolist() == [[0, 0, 0, 0]]


def test_images_of_a_batch(monkeypatch) -> None:
    geometries = [ResizeGeometry((64, 48), (40, 30), 64)] * 2 + [
        ResizeGeometry((64, 64), (9, 9), 64),
        ResizeGeometry((64, 48), (40, 30), 64),
    ]
    offsets = [0, 2, 2, 5, 6]
    low_res = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    launches = []
    inner = postprocess.masks

    def launched(part, *rest):
        launches.append(part.shape[:2].numel())
        return inner(part, *rest)

    monkeypatch.setattr(postprocess, "masks", launched)
    per_image = postprocess.masks_of_images(low_res, offsets, geometries, 0.1)
    assert launches == [6, 9, 3]
    assert [tuple(masks.shape) for masks in per_image] == [
        (2, 3, 40, 30),
        (0, 3, 40, 30),
        (3, 3, 9, 9),
        (1, 3, 40, 30),
    ]
    for i, masks in enumerate(per_image):
        of_image = low_res[offsets[i] : offsets[i + 1]]
        assert torch.equal(masks.flatten(0, 1), inner(of_image, geometries[i], 0.1))


def test_shapes_without_values() -> None:
    low_res = torch.empty(4, 64, 64, device="meta")
    assert postprocess.masks(low_res, ResizeGeometry((256, 192), (120, 90), 256)).shape == (
        4,
        120,
        90,
    )
