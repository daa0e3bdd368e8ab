"""Polygons of masks, against matplotlib, which says whether a pixel's centre is inside a ring."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path

from samfast.errors import InputError
from samfast.outputs.polygons import mask_to_polygons

MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def filled(ring, shape):
    """1 for the pixels whose centre lies inside; none lies outside of the ring's box."""
    left, top = np.floor(ring.min(0)).astype(int).clip(0)
    right, bottom = np.ceil(ring.max(0)).astype(int)
    inside = np.zeros(shape, int)
    rows, columns = np.mgrid[top : min(bottom, shape[0]), left : min(right, shape[1])]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5
    inside[top:bottom, left:right] = Path(ring).contains_points(centres).reshape(rows.shape)
    return inside


def signed_area(ring):
    x, y = ring.T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


@given(mask=MASKS)
def test_polygons_filled_are_the_mask_again_each_pixel_once(mask):
    count = np.zeros(mask.shape, int)
    for polygon in mask_to_polygons(mask):
        count += filled(polygon.exterior, mask.shape)
        for hole in polygon.holes:
            count -= filled(hole, mask.shape)
    assert np.array_equal(count, mask)


@given(mask=MASKS)
def test_rings_are_valid(mask):
    for polygon in mask_to_polygons(mask):
        assert signed_area(polygon.exterior) > 0
        assert all(signed_area(hole) < 0 for hole in polygon.holes)
        for ring in (polygon.exterior, *polygon.holes):
            assert len(np.unique(ring, axis=0)) == len(ring)  # it does not touch itself
            steps = np.roll(ring, -1, axis=0) - ring
            along_row = steps[:, 1] == 0
            assert np.array_equal(along_row, steps[:, 0] != 0)
            assert np.array_equal(along_row, ~np.roll(along_row, 1))  # no corner is superfluous


@given(mask=MASKS)
def test_a_polygon_is_what_is_connected_by_edges(mask):
    from scipy import ndimage

    assert len(mask_to_polygons(mask)) == ndimage.label(mask)[1]


def test_pixels_are_bounded_at_their_edges():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    mask[2, 3] = False
    (polygon,) = mask_to_polygons(mask)
    assert polygon.exterior.tolist() == [[2, 1], [6, 1], [6, 4], [2, 4]]
    assert [hole.tolist() for hole in polygon.holes] == [[[3, 2], [3, 3], [4, 3], [4, 2]]]


def test_holes_that_touch_at_a_corner_are_two():
    mask = np.ones((4, 4), bool)
    mask[1, 1] = mask[2, 2] = False
    (polygon,) = mask_to_polygons(mask)
    assert len(polygon.holes) == 2


def test_an_empty_mask_has_no_polygon():
    assert mask_to_polygons(np.zeros((3, 4), bool)) == []


def test_only_masks_are_taken():
    with pytest.raises(InputError, match=r"\(H, W\) bool"):
        mask_to_polygons(np.ones((3, 4)))
