"""Outlines through the centres of pixels: drawn and filled they are the mask again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from samfast.outputs import mask_to_contours, simplify_ring

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def drawn(contour, shape):
    """The pixels that an outline crosses, and those it encloses."""
    image = np.zeros(shape, bool)
    for start, end in zip(contour, np.roll(contour, -1, 0), strict=True):
        length = max(abs(end - start).max(), 1)
        # Outlines go along rows, columns and diagonals, so that these are whole numbers.
        for step in range(length + 1):
            x, y = start + (end - start) * step // length
            image[y, x] = True
    return ndimage.binary_fill_holes(image)


@given(mask=MASKS)
def test_a_contour_filled_is_its_region_without_holes(mask):
    labels, count = ndimage.label(mask)
    contours = mask_to_contours(mask)
    assert len(contours) == count
    for contour in contours:
        region = labels == labels[contour[0, 1], contour[0, 0]]
        assert np.array_equal(drawn(contour, mask.shape), ndimage.binary_fill_holes(region))


def test_corners_only():
    mask = np.zeros((6, 9), bool)
    mask[1:5, 3:8] = True
    (contour,) = mask_to_contours(mask)
    assert contour.tolist() == [[3, 1], [7, 1], [7, 4], [3, 4]]


def test_a_single_pixel_and_a_line():
    mask = np.zeros((5, 9), bool)
    mask[1, 2] = True
    mask[3, 1:8] = True
    single, line = mask_to_contours(mask)
    assert single.tolist() == [[2, 1]]
    assert line.tolist() == [[1, 3], [7, 3]]


@given(mask=MASKS)
def test_opencv_fills_a_contour_to_its_region(mask):
    cv2 = pytest.importorskip("cv2")
    for contour in mask_to_contours(mask):
        filled = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [contour.astype(np.int32)], 1)
        assert np.array_equal(filled > 0, drawn(contour, mask.shape))


def distance(point, start, end):
    along = end - start
    position = np.clip((point - start) @ along / max(along @ along, 1), 0, 1)
    return np.linalg.norm(point - start - position * along)


@given(mask=MASKS, tolerance=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_what_is_left_out_lies_near_what_is_kept(mask, tolerance):
    for contour in mask_to_contours(mask):
        simple = simplify_ring(contour, tolerance)
        assert len(simple) <= len(contour)
        assert {tuple(corner) for corner in simple} <= {tuple(corner) for corner in contour}
        sides = list(zip(simple, np.roll(simple, -1, 0), strict=True))
        for point in contour.astype(float):
            assert (
                min(distance(point, *map(np.float64, side)) for side in sides) <= tolerance + 1e-9
            )


def test_tolerance_zero_keeps_the_shape():
    square = np.array([[0, 0], [2, 0], [5, 0], [5, 5], [0, 5], [0, 3]])
    assert simplify_ring(square, 0).tolist() == [[0, 0], [5, 0], [5, 5], [0, 5]]
