"""Small regions of many masks, removed in runs, against one mask after the other in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from samfast import coco_rle
from samfast.masks import boxes, regions, rle, run_regions
from samfast.masks.run_regions import CleanedMasks

AREAS = st.sampled_from([0, 0.5, 1, 2, 2.5, 3, 5, 9, 20, 50, 300, 1e9])


def remove_small_in_pixels(
    masks: Sequence[np.ndarray], size: tuple[int, int], area: float
) -> CleanedMasks:
    """As `run_regions.remove_small`, one decoded mask after the other."""
    runs, unchanged = [], np.ones(len(masks), dtype=bool)
    found, areas = np.zeros((len(masks), 4), dtype=np.int64), np.zeros(len(masks), dtype=np.int64)
    for index, given_runs in enumerate(masks):
        mask = coco_rle.decode({"size": size, "counts": given_runs})
        mask, filled = regions.remove_small(mask, area, "holes")
        mask, dropped = regions.remove_small(mask, area, "islands")
        unchanged[index] = not (filled or dropped)
        pixels = torch.from_numpy(np.ascontiguousarray(mask))[None]
        runs.append(given_runs if unchanged[index] else rle.encode(pixels)[0])
        found[index] = boxes.from_masks(pixels)[0].numpy()
        areas[index] = mask.sum()
    return CleanedMasks(runs, found, areas, unchanged)


def assert_as_in_pixels(
    runs: Sequence[np.ndarray], size: tuple[int, int], area: float
) -> CleanedMasks:
    before = [each.copy() for each in runs]
    cleaned = run_regions.remove_small(runs, size, area)
    expected = remove_small_in_pixels(before, size, area)
    assert len(cleaned.runs) == len(runs)
    for given_runs, copy, ours, theirs, same in zip(
        runs, before, cleaned.runs, expected.runs, expected.unchanged, strict=True
    ):
        assert np.array_equal(given_runs, copy)
        assert ours.dtype == theirs.dtype == np.int64
        assert ours.tolist() == theirs.tolist()
        assert (ours is given_runs) == same
    for name in ("boxes", "area", "unchanged"):
        ours, theirs = getattr(cleaned, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.tolist() == theirs.tolist()
    return cleaned


def encode(masks: np.ndarray) -> list[np.ndarray]:
    return rle.encode(torch.from_numpy(np.ascontiguousarray(masks)))


def drawn(*rows: str) -> np.ndarray:
    """A mask of which # are the pixels."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


@st.composite
def any_masks(draw: st.DrawFn) -> np.ndarray:
    """Masks of one size, perhaps with nothing or only themselves around them, on some sides."""
    shape = st.tuples(st.integers(1, 4), st.integers(1, 10), st.integers(1, 10))
    masks = draw(arrays.arrays(bool, shape))
    margins = st.tuples(st.integers(0, 5), st.integers(0, 5))
    around = draw(st.booleans())
    return np.pad(masks, ((0, 0), draw(margins), draw(margins)), constant_values=around)


@settings(deadline=None, max_examples=400)
@given(any_masks(), AREAS)
@example(np.zeros((1, 1, 1), dtype=bool), 1)
@example(np.zeros((2, 1, 1), dtype=bool), 2)
@example(np.ones((2, 1, 1), dtype=bool), 2)
@example(np.ones((3, 4, 5), dtype=bool), 21)
@example(np.zeros((3, 4, 5), dtype=bool), 21)
def test_any_masks(masks: np.ndarray, area: float) -> None:
    assert_as_in_pixels(encode(masks), masks.shape[1:], area)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(20, 70), st.integers(20, 70)),
    st.sampled_from([0.0, 0.7, 1.5, 3.0]),
    st.floats(0.1, 0.9),
    AREAS,
)
def test_blobs(seed: int, size: tuple[int, int], blur: float, share: float, area: float) -> None:
    """Smoothed noise: long borders, holes in islands in holes, and regions of many branches."""
    noise = np.random.default_rng(seed).standard_normal((5, *size))
    noise = ndimage.gaussian_filter(noise, (0, blur, blur))
    assert_as_in_pixels(encode(noise > np.quantile(noise, share)), size, area)


@pytest.mark.parametrize("area", [1, 2, 7, 40, 150, 500, 10**6])
def test_figures(area: float) -> None:
    y, x = np.mgrid[:48, :48]
    far = np.maximum(abs(y - 23), abs(x - 23))
    figures = [
        far % 2 == 0,  # rings within rings
        far % 4 < 2,
        (far % 4 == 0) & (x != y),
        x % 3 == 0,  # whole columns
        y % 3 == 0,  # whole rows
        (y % 2 == 0) | (x == 0),  # combs, open to the right and to the left
        (y % 2 == 0) | (x == 47),
        (y % 2 == 1) & (x > 0),
        (x + y) % 2 == 0,  # touches at corners alone
        (x % 4 == 0) & (y % 4 == 0),
        (x // 5 + y // 5) % 2 == 0,
        (x < 5) | (x > 43),  # touches the right side, and the next mask the left one
        (y < 5) | (y > 43),  # touches the bottom, and the top of the next column
        (x - 20) ** 2 + (y - 25) ** 2 < 300,
    ]
    masks = np.stack([*figures, *(~figure for figure in figures)])
    cleaned = assert_as_in_pixels(encode(masks), (48, 48), area)
    assert cleaned.unchanged.all() == (area == 1)


def test_a_filled_hole_joins_islands() -> None:
    mask = drawn(*["##.##..."] * 3)  # islands of 6 until the gap of 3 is filled
    cleaned = assert_as_in_pixels(encode(mask[None]), (3, 8), 6.5)
    assert cleaned.runs[0].tolist() == [0, 15, 9]
    assert cleaned.boxes.tolist() == [[0, 0, 4, 2]]
    # With its hole filled an island of 8 has 9 pixels, and stays beside the larger one.
    mask = drawn("###...######", "#.#...######", "###...######")
    assert assert_as_in_pixels(encode(mask[None]), (3, 12), 9).area.tolist() == [27]


def test_of_equal_islands_the_one_in_the_first_block_stays() -> None:
    mask = drawn("...#", "#...")  # the same block row, and the left block is the first
    other = drawn("#...", "...#")
    cleaned = assert_as_in_pixels(encode(np.stack([mask, other])), (2, 4), 2)
    assert [runs.tolist() for runs in cleaned.runs] == [[1, 1, 6], [0, 1, 7]]
    # A larger one comes last.
    assert_as_in_pixels(encode(drawn("#...#", ".....", "#..##")[None]), (3, 5), 9)


def test_a_small_mask_that_stays_whole_counts_as_changed() -> None:
    mask = drawn("....", ".##.", "....")
    cleaned = assert_as_in_pixels(encode(mask[None]), (3, 4), 3)
    assert cleaned.unchanged.tolist() == [False]
    assert cleaned.runs[0].tolist() == encode(mask[None])[0].tolist()


def test_no_masks() -> None:
    cleaned = run_regions.remove_small([], (4, 5), 10)
    assert cleaned.runs == []
    assert cleaned.boxes.shape == (0, 4)
    assert cleaned.area.shape == cleaned.unchanged.shape == (0,)
    assert cleaned.boxes.dtype == cleaned.area.dtype == np.int64
    assert cleaned.unchanged.dtype == bool


def test_runs_with_empty_ones_between() -> None:
    # Files may split a run in two: 0 0 2 0 3 is 5, and so is a hole of 1 0 2.
    runs = [
        np.array([0, 2, 0, 3, 1, 0, 2, 12, 0, 0]),
        np.array([5, 0, 0, 3, 0, 2, 0, 0, 10]),
        np.array([20, 0, 0]),
        np.array([0, 0, 0, 20]),
    ]
    for area in (1, 3, 4, 6, 30):
        assert_as_in_pixels(runs, (4, 5), area)


@pytest.mark.parametrize("most", [1, 10, 100])
def test_parts_of_the_masks_are_as_all(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    masks = rng.random((9, 20, 30)) < np.linspace(0, 1, 9)[:, None, None]
    monkeypatch.setattr(run_regions, "MAX_RUNS", most)
    calls, remove = [], run_regions._remove_small
    monkeypatch.setattr(
        run_regions, "_remove_small", lambda *args: calls.append(1) or remove(*args)
    )
    assert_as_in_pixels(encode(masks), (20, 30), 6)
    assert len(calls) > 1


def test_without_small_regions_every_mask_is_unchanged() -> None:
    y, x = np.mgrid[:40, :60]
    masks = np.stack([(x - 30) ** 2 + (y - 20) ** 2 < r * r for r in (9, 15, 40)])
    assert assert_as_in_pixels(encode(masks), (40, 60), 100).unchanged.all()
