"""The kernels of `samfast.masks` against plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from samfast.automatic_masks import logit_crops
from samfast.automatic_masks.kernels import copy_logit_crops as kernels
from samfast.images import input_size
from samfast.masks import bit_masks, nms, postprocess_reference, upscale
from samfast.masks.kernels import box_overlaps, greedy_nms
from samfast.masks.kernels.postprocess_tiles import launch
from samfast.masks.measures import AREA, BOX, INNER, OUTER, Postprocess
from samfast.masks.resize_geometry import ResizeGeometry
from tests.masks.test_mask_runs import unpack
from tests.masks.test_nms import random_boxes

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]
SIZES = [(50, 70), (70, 50), (1, 9), (9, 1), (64, 64), (33, 131), (20, 64)]


def logits(count: int, low: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(low)
    return torch.randn(count, low, low, generator=generator).to(DEVICE, dtype)


def assert_same(
    low_res: torch.Tensor,
    geometry: ResizeGeometry,
    threshold: float,
    offset: float,
    run: Postprocess = launch,
) -> None:
    """The same except at pixels whose logit is within rounding of a threshold."""
    ours = run(low_res, geometry, threshold, offset=offset, masks=True, pack=True)
    want = postprocess_reference.tiles(
        low_res, geometry, threshold, offset=offset, masks=True, pack=True
    )
    assert ours.masks is not None and ours.packed is not None and ours.measures is not None
    assert want.masks is not None and want.packed is not None and want.measures is not None
    assert ours.masks.dtype == torch.bool and ours.masks.shape == want.masks.shape
    assert torch.equal(ours.packed, bit_masks.pack(ours.masks))
    assert want.packed.shape == ours.packed.shape and torch.equal(
        want.packed, bit_masks.pack(want.masks)
    )
    exact = upscale.logits(
        low_res[:, None], geometry.input_size, geometry.original_size, geometry.side
    )[:, 0]
    least = 1e-6 * low_res.abs().nan_to_num().max()
    near = [
        (exact - level).abs() <= least
        for level in (threshold, threshold + offset, threshold - offset)
    ]
    assert not ((ours.masks != want.masks) & ~near[0]).any()
    if (ours.masks == want.masks).all():
        assert torch.equal(ours.measures[:, AREA], want.measures[:, AREA])
        assert torch.equal(ours.measures[:, BOX], want.measures[:, BOX])
    assert (ours.measures[:, INNER] - want.measures[:, INNER]).abs().le(near[1].sum((1, 2))).all()
    assert (ours.measures[:, OUTER] - want.measures[:, OUTER]).abs().le(near[2].sum((1, 2))).all()
    assert ours.measures.dtype == want.measures.dtype and ours.measures.shape == want.measures.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_any_size(size: tuple[int, int], dtype: torch.dtype) -> None:
    geometry = ResizeGeometry(input_size(size, 64), size, 64)
    assert_same(logits(3, 16, dtype), geometry, 0.1, 0.3)


@pytest.mark.skipif(not CUDA, reason="takes minutes in the interpreter")
@pytest.mark.parametrize("size", [(1024, 683), (1500, 2250), (97, 1301)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_sizes(size: tuple[int, int], dtype: torch.dtype) -> None:
    assert_same(
        10 * logits(5, 256, dtype), ResizeGeometry(input_size(size, 1024), size, 1024), 0.0, 1.0
    )


@pytest.mark.parametrize(("side", "low"), [(50, 13), (64, 64), (48, 8)])
def test_other_squares(side: int, low: int) -> None:
    assert_same(
        logits(2, low), ResizeGeometry(input_size((37, 45), side), (37, 45), side), -0.2, 0.5
    )


def test_only_wanted_masks() -> None:
    low_res, geometry = logits(4, 16), ResizeGeometry((64, 48), (70, 52), 64)
    wanted = torch.tensor([True, False, False, True], device=DEVICE)
    asked: Any = {"offset": 0.3, "masks": True, "pack": True}
    for run in (launch, postprocess_reference.tiles):
        whole, some = (
            run(low_res, geometry, 0.1, **asked),
            run(low_res, geometry, 0.1, wanted=wanted, **asked),
        )
        assert some.masks is not None and some.packed is not None
        assert whole.masks is not None and whole.packed is not None
        assert torch.equal(some.masks[wanted], whole.masks[wanted])
        assert torch.equal(some.packed[wanted], whole.packed[wanted])
        assert some.measures is not None and whole.measures is not None
        assert torch.equal(some.measures[wanted], whole.measures[wanted])
        assert not some.measures[~wanted].any()


def test_empty_full_and_nan() -> None:
    low_res = torch.stack([torch.full((16, 16), value) for value in (-5.0, 5.0, float("nan"))]).to(
        DEVICE
    )
    low_res = torch.cat([low_res, logits(1, 16)])
    low_res[3, 4, 5] = float("nan")
    geometry = ResizeGeometry((48, 64), (45, 60), 64)
    assert_same(low_res, geometry, 0.0, 1.0)
    made = launch(low_res, geometry, 0.0, offset=1.0, masks=True)
    assert made.masks is not None and made.measures is not None and made.packed is None
    assert not made.masks[0].any() and made.masks[1].all() and not made.masks[2].any()
    assert made.measures[:3, BOX].tolist() == [[0, 0, 0, 0], [0, 0, 59, 44], [0, 0, 0, 0]]
    assert made.measures[:3, AREA].tolist() == [0, 2700, 0]
    assert made.measures[:2, OUTER].tolist() == made.measures[:2, INNER].tolist() == [0, 2700]


def discs(low: int) -> torch.Tensor:
    """Logits that are flat except at the edges of discs: small, large at a corner, full, a hole."""
    y, x = torch.meshgrid(torch.arange(low), torch.arange(low), indexing="ij")
    away = [
        ((x - cx) ** 2 + (y - cy) ** 2).sqrt() - radius
        for cx, cy, radius in (
            (low / 2, low / 3, low / 9),
            (0, low, low / 1.7),
            (low / 2, low / 2, 2 * low),
        )
    ]
    return torch.stack(
        [*(-(distance * 2).clamp(-6, 6) for distance in away), (away[0] * 2).clamp(-6, 6)]
    ).to(DEVICE)


@pytest.mark.parametrize(
    ("threshold", "offset"), [(0.0, 1.0), (-2.5, -0.7), (5.999, 0.0), (-6.0, 1.0)]
)
def test_flat_logits(threshold: float, offset: float) -> None:
    low_res, geometry = discs(16), ResizeGeometry((64, 48), (80, 61), 64)
    assert_same(low_res, geometry, threshold, offset)
    only = launch(low_res, geometry, threshold, offset=offset).measures
    both = launch(low_res, geometry, threshold, offset=offset, pack=True).measures
    assert only is not None and both is not None and torch.equal(only, both)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf"), -1e30])
def test_one_odd_logit_among_flat_ones(odd: float) -> None:
    geometry = ResizeGeometry((64, 48), (80, 61), 64)
    for flat in (-3.0, 3.0):
        low_res = torch.full((2, 16, 16), flat, device=DEVICE)
        low_res[0, 5, 7] = odd
        ours = launch(low_res, geometry, 0.0, offset=1.0, masks=True)
        want = postprocess_reference.tiles(low_res, geometry, 0.0, offset=1.0, masks=True)
        assert ours.masks is not None and want.masks is not None
        assert torch.equal(ours.masks, want.masks)
        assert ours.measures is not None and want.measures is not None
        assert torch.equal(ours.measures, want.measures)


def test_each_pixel_alone_is_where_it_belongs() -> None:
    geometry = ResizeGeometry((64, 64), (64, 64), 64)
    low_res = torch.full((256, 16, 16), -1.0, device=DEVICE)
    low_res.view(256, 256).fill_diagonal_(30.0)
    chosen = torch.arange(0, 256, 1 if CUDA else 5)  # 5 and 16 are coprime: each row and column
    made = launch(low_res[chosen.to(DEVICE)], geometry, 0.0, offset=0.5).measures
    assert made is not None
    first = (4 * torch.arange(16) - 2).clamp(min=0)
    x0, y0 = made[:, BOX].T[:2].long().cpu()
    assert torch.equal(x0, first.repeat(16)[chosen])
    assert torch.equal(y0, first.repeat_interleave(16)[chosen])


def test_nothing_and_views() -> None:
    geometry = ResizeGeometry((48, 64), (45, 60), 64)
    none = launch(
        torch.zeros(0, 16, 16, device=DEVICE), geometry, 0.0, offset=1.0, masks=True, pack=True
    )
    assert none.masks is not None and none.packed is not None and none.measures is not None
    assert none.masks.shape == (0, 45, 60) and none.packed.shape == (0, 60, 2)
    assert none.measures.shape == (0, 7)
    every_other = logits(6, 16)[::2]
    assert_same(every_other, geometry, 0.0, 1.0)
    assert_same(logits(3, 16).mT, geometry, 0.0, 1.0)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize(("count", "levels"), [(0, 1), (1, 1), (32, 4), (70, 1), (130, 1000)])
def test_suppression_keeps_what_the_host_keeps(
    count: int, levels: int, threshold: float, monkeypatch
) -> None:
    monkeypatch.setattr(nms, "has_triton", lambda device: True)
    boxes = random_boxes(count, count)
    scores = (np.random.default_rng(1).integers(0, levels, count) / levels).astype(
        np.float32
    )  # with ties
    kept = nms.start_keeping(boxes, scores, threshold, torch.device(DEVICE))()
    assert kept.dtype == np.int64
    assert kept.tolist() == nms.keep(boxes, scores, threshold).tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.7, 0.25, 1 / 3, -1.0, 1e-50, 1.0])
def test_overlaps_are_the_host_s_to_the_last_bit(threshold: float) -> None:
    boxes = random_boxes(45, 3, side=5)  # of few sizes, so that many are at a threshold
    overlaps = box_overlaps.launch(torch.from_numpy(boxes).to(DEVICE), threshold)
    ours = unpack(overlaps[:, None], 45)[:, :, 0].cpu().numpy()
    for i, row in enumerate(ours):
        for j, above in enumerate(row):
            pair = boxes[[i, j]]
            kept = nms.keep(pair, np.array([1, 0], dtype=np.float32), threshold)
            assert above == (len(kept) == 1)


def test_overlaps_are_symmetric_bits() -> None:
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 20, 20], [1, 0, 10, 10]], device=DEVICE
    )
    overlaps = box_overlaps.launch(boxes, 0.5)
    assert overlaps.dtype == torch.int32 and overlaps.tolist() == [
        [0b1011],
        [0b1011],
        [0],
        [0b1011],
    ]


def test_a_threshold_between_two_numbers() -> None:
    for threshold in (0.1, 0.7, 1 / 3, 0.5, -0.1, 0.0, 1e-50):
        below = np.float32(box_overlaps.below(threshold))
        assert float(below) <= threshold < float(np.nextafter(below, np.float32(np.inf)))


def test_a_suppressed_box_suppresses_nothing() -> None:
    chain = torch.tensor([0b0010, 0b0100, 0b1000, 0], dtype=torch.int32, device=DEVICE)[:, None]
    assert greedy_nms.launch(chain).tolist() == [True, False, True, False]


@pytest.mark.skipif(not CUDA, reason="takes minutes in the interpreter")
def test_thousands_of_boxes() -> None:
    boxes, scores = (
        random_boxes(3072, 0, side=1000),
        np.random.default_rng(0).random(3072, np.float32),
    )
    kept = nms.start_keeping(boxes, scores, 0.7, torch.device("cuda"))()
    assert kept.tolist() == nms.keep(boxes, scores, 0.7).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("low", [16, 40])
def test_logit_crops(low: int, dtype: torch.dtype) -> None:
    low_res = logits(7, low, dtype)
    places = np.array(
        [[0, 0, low, low], [3, 2, 7, 9], [low - 1, 0, low, 1], [5, 0, 6, low], [0, 9, low, 10]]
    )
    index = np.array([6, 0, 3, 3, 1])
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in places.tolist()]
    begins = np.cumsum(areas) - areas
    table = torch.from_numpy(np.column_stack([index, begins, places])).to(DEVICE)
    values = kernels.cut(low_res, table, sum(areas), max(areas))
    want = [
        low_res[i, y0:y1, x0:x1] for i, (x0, y0, x1, y1) in zip(index, places.tolist(), strict=True)
    ]
    assert torch.equal(values, torch.cat([crop.flatten() for crop in want]))
    low_value = logit_crops.lowest(dtype)
    addresses = values.data_ptr() + begins * values.element_size()
    table_of_addresses = torch.from_numpy(np.column_stack([addresses, places])).to(DEVICE)
    restored = kernels.restore(table_of_addresses, (low, low), dtype, low_value)
    expected = torch.full_like(restored, low_value)
    for crop, part, (x0, y0, x1, y1) in zip(expected, want, places.tolist(), strict=True):
        crop[y0:y1, x0:x1] = part
    assert torch.equal(restored, expected)
    strided = low_res.transpose(1, 2)
    assert torch.equal(
        kernels.cut(strided, table, sum(areas), max(areas)),
        kernels.cut(strided.contiguous(), table, sum(areas), max(areas)),
    )
