"""Masks of logit crops are those of the whole logits."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from samfast.automatic_masks import logit_crops
from samfast.images import input_size
from samfast.masks import postprocess
from samfast.masks.measures import BOX
from samfast.masks.resize_geometry import ResizeGeometry

LOW = 16


def spots(
    count: int, seed: int, dtype: torch.dtype = torch.float32, low: int = LOW
) -> torch.Tensor:
    """Logits (count, low, low) above zero in a small rectangle only, or, of the last, nowhere."""
    generator = torch.Generator().manual_seed(seed)
    made = -5 * torch.rand(count, low, low, generator=generator) - 1e-3
    for logits in made[:-1]:
        y, x = (torch.rand(2, generator=generator) * (low - 1)).int().tolist()
        h, w = (torch.rand(2, generator=generator) * 5 + 1).int().tolist()
        part = logits[y : y + h, x : x + w]
        part.copy_(9 * torch.rand(part.shape, generator=generator))
    return made.to(dtype)


def crops_around_masks(
    low_res: torch.Tensor, geometry: ResizeGeometry, threshold: float
) -> logit_crops.LogitCropBatch:
    measures = postprocess.measure(low_res, geometry, threshold, 1.0)
    boxes = measures[:, BOX].cpu().numpy().astype(np.int64)
    places = logit_crops.places_of(boxes, geometry, (low_res.shape[1], low_res.shape[2]))
    return logit_crops.LogitCropBatch(low_res, np.arange(len(low_res)), places)


@settings(deadline=None, max_examples=150)
@given(
    size=st.tuples(st.integers(3, 300), st.integers(3, 300)),
    seed=st.integers(0, 1 << 30),
    threshold=st.sampled_from([0.0, -0.5, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_same_masks(
    size: tuple[int, int], seed: int, threshold: float, dtype: torch.dtype
) -> None:
    assume(max(size) < 60 * min(size))  # nothing would be left of its short side
    geometry = ResizeGeometry(input_size(size, 4 * LOW), size, 4 * LOW)
    low_res = spots(6, seed, dtype)
    batch = crops_around_masks(low_res, geometry, threshold)
    restored = logit_crops.restore(batch.crops())
    assert restored.dtype == dtype and restored.shape == low_res.shape
    assert torch.equal(
        postprocess.masks(restored, geometry, threshold),
        postprocess.masks(low_res, geometry, threshold),
    )
    assert torch.equal(
        postprocess.packed(restored, geometry, threshold),
        postprocess.packed(low_res, geometry, threshold),
    )


def test_crops_take_little_memory_and_need_their_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = ResizeGeometry((64, 48), (128, 96), 64)
    low_res = spots(40, 1)
    batch = crops_around_masks(low_res, geometry, 0.0)
    assert logit_crops.memory_of(batch.crops()) < low_res.numel() * low_res.element_size() / 3
    want = postprocess.masks(low_res, geometry)
    assert torch.equal(postprocess.masks(logit_crops.restore(batch.crops()), geometry), want)
    monkeypatch.setattr(logit_crops, "MARGIN", 0)
    assert not torch.equal(
        postprocess.masks(
            logit_crops.restore(crops_around_masks(low_res, geometry, 0.0).crops()), geometry
        ),
        want,
    )


def test_crops_share_their_batch() -> None:
    low_res = spots(5, 2)
    places = np.array([[0, 0, 16, 16], [3, 2, 7, 9], [15, 15, 16, 16]])
    crops = logit_crops.LogitCropBatch(low_res, np.array([4, 0, 0]), places).crops()
    assert torch.equal(crops[0].values, low_res[4])
    assert torch.equal(crops[1].values, low_res[0, 2:9, 3:7])
    assert [crop.values.numel() for crop in crops] == [256, 28, 1]
    whole_batch = 4 * (256 + 28 + 1)
    assert crops.bytes == crops[2:].bytes == whole_batch
    assert logit_crops.memory_of([*crops, "runs", *crops[1:]]) == whole_batch
    restored = logit_crops.restore(crops[1:])
    assert torch.equal(restored[0, 2:9, 3:7], low_res[0, 2:9, 3:7])
    assert (restored[1] == logit_crops.lowest(torch.float32)).sum() == 16 * 16 - 1


@pytest.mark.parametrize("by", ["cut", "values"])
def test_the_whole_logits_are_kept_until_the_crops_are_cut(by: str) -> None:
    low_res = spots(5, 2)
    kept = weakref.ref(low_res)
    want = low_res[1, 2:9, 3:7].clone()
    batch = logit_crops.LogitCropBatch(low_res, np.array([1]), np.array([[3, 2, 7, 9]]))
    del low_res
    assert kept() is not None and batch.bytes == batch.crops().bytes == 4 * 28
    if by == "cut":
        batch.cut()
    assert torch.equal(batch.crops()[0].values, want) and kept() is None
    batch.cut()
    assert torch.equal(batch.values.view(7, 4), want) and batch.bytes == batch.values.nbytes


def test_crops_of_two_batches_in_another_order() -> None:
    first, second = spots(3, 3), spots(2, 4)
    everywhere = np.tile([0, 0, 16, 16], (3, 1))
    one = logit_crops.LogitCropBatch(first, np.arange(3), everywhere).crops()
    other = logit_crops.LogitCropBatch(second, np.arange(2), everywhere[:2]).crops()
    joined = logit_crops.join([one, other])
    assert torch.equal(logit_crops.restore(joined), torch.cat([first, second]))
    assert joined.bytes == one.bytes + other.bytes
    want = torch.stack([second[1], first[2], first[0]])
    picked = joined.pick(np.array([4, 2, 0]))
    assert torch.equal(logit_crops.restore(picked), want)
    collected = logit_crops.collect([other[1], one[2], one[0]])
    assert torch.equal(logit_crops.restore(collected), want)
    assert picked.bytes == collected.bytes == joined.bytes
    # A batch of which no crop is left is not kept.
    assert joined.pick(np.array([3])).bytes == other.bytes
    assert torch.equal(logit_crops.restore(one[::-1]), first.flip(0))


def test_no_crops() -> None:
    none = logit_crops.LogitCropBatch(
        spots(5, 2), np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.int64)
    ).crops()
    assert len(none) == 0 == logit_crops.memory_of([]) == len(logit_crops.collect([]))
    assert len(logit_crops.join([none, none])) == 0
    assert len(none.pick(np.zeros(0, dtype=np.int64))) == 0
