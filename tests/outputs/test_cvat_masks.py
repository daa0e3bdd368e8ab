"""CVAT's masks, against decoders that follow its documentation of the format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samfast.errors import InputError
from samfast.outputs import cvat_crop, cvat_runs

MASKS = arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20)))


def pasted(pixels, box, shape):
    left, top, right, bottom = box
    mask = np.zeros(shape, bool)
    mask[top : bottom + 1, left : right + 1] = np.reshape(
        pixels, (bottom - top + 1, right - left + 1)
    )
    return mask


def from_runs(points, shape):
    *runs, left, top, right, bottom = points
    pixels = np.concatenate([np.full(length, i % 2) for i, length in enumerate(runs)])
    return pasted(pixels, (left, top, right, bottom), shape)


@given(mask=MASKS)
def test_a_mask_comes_back(mask):
    assume(mask.any())
    points = cvat_runs(mask)
    assert np.array_equal(from_runs(points, mask.shape), mask)
    assert all(length > 0 for length in points[1:-4])
    crop, box = cvat_crop(mask)
    assert crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any()
    assert np.array_equal(pasted(crop, box, mask.shape), mask)
    assert points[-4:] == box


def test_the_first_run_is_of_zeros():
    mask = np.zeros((30, 20), bool)
    mask[20:22, 10:13] = [[True, True, True], [False, True, True]]
    assert cvat_runs(mask) == [0, 3, 1, 2, 10, 20, 12, 21]
    mask[20, 10] = False
    assert cvat_runs(mask) == [0, 4, 11, 20, 12, 21]


@pytest.mark.parametrize("encode", [cvat_crop, cvat_runs])
def test_an_empty_mask_is_refused(encode):
    with pytest.raises(InputError, match="empty"):
        encode(np.zeros((3, 4), bool))
