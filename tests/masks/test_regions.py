"""Small holes and islands, against a plain flood fill with OpenCV's rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samfast.errors import InputError
from samfast.masks import regions


def flood(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """The regions of a mask, 8-connected, numbered by the first 2x2 block that each has a pixel
    in."""
    left = set(zip(*np.nonzero(mask), strict=True))
    regions = []
    while left:
        region = [min(left)]
        left.remove(region[0])
        for y, x in region:
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    region.append(near)
        regions.append(region)
    return sorted(regions, key=lambda region: min((y // 2, x // 2) for y, x in region))


def as_original(mask: np.ndarray, area: float, mode: str) -> tuple[np.ndarray, bool]:
    holes = mode == "holes"
    flooded = flood(~mask if holes else mask)
    small = [region for region in flooded if len(region) < area]
    if not small:
        return mask, False
    out = mask.copy()
    if not holes and len(small) == len(flooded):
        sizes = [len(region) for region in flooded]
        small.remove(flooded[int(np.argmax(sizes))])
    for region in small:
        for place in region:
            out[place] = holes
    return out, True


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """A mask, perhaps with nothing around it, on some sides or all."""
    mask = draw(arrays.arrays(bool, st.tuples(st.integers(1, 10), st.integers(1, 10))))
    margins = st.tuples(st.integers(0, 5), st.integers(0, 5))
    return np.pad(mask, (draw(margins), draw(margins)))


@settings(deadline=None)
@given(
    masks(),
    st.sampled_from([0, 1, 2, 3, 5, 20, 1000]),
    st.sampled_from(["holes", "islands"]),
)
def test_as_a_flood_fill_does(mask: np.ndarray, area: int, mode: str) -> None:
    before = mask.copy()
    ours, changed = regions.remove_small(mask, area, mode)
    theirs, expected = as_original(mask, area, mode)
    assert changed == expected
    assert ours.dtype == bool
    assert np.array_equal(ours, theirs)
    assert np.array_equal(mask, before)


def test_corners_connect() -> None:
    mask = np.eye(5, dtype=bool)
    assert regions.remove_small(mask, 5, "islands")[1] is False
    assert (
        regions.remove_small(mask, 6, "islands")[0].sum() == 5
    )  # the only one, so the largest: it stays


def test_of_equal_islands_opencv_keeps_the_one_in_the_first_block() -> None:
    mask = np.zeros((2, 4), dtype=bool)
    mask[0, 3] = mask[1, 0] = (
        True  # row by row the right one comes first, block by block the left one
    )
    kept, changed = regions.remove_small(mask, 2, "islands")
    assert changed
    assert kept.tolist() == [[False] * 4, [True, False, False, False]]


def test_unknown_mode() -> None:
    with pytest.raises(InputError, match="holes and islands"):
        regions.remove_small(np.zeros((2, 2), dtype=bool), 1, "bumps")
