"""The rules for points; boxes and their masks."""

from __future__ import annotations

import numpy as np
import pytest

from samfast.bench.mask_points import box_of, edt, filled, seed
from tests.bench.coco import rectangle


def brute(mask):
    """The rule from its words: the first pixel in row-major order with the farthest nearest
    background."""
    padded = np.pad(mask, 1)
    background = np.argwhere(~padded) - 1
    best, place = -1, None
    for row, column in np.argwhere(mask):
        squared = ((background - (row, column)) ** 2).sum(axis=1).min()
        if squared > best:
            best, place = squared, (float(column), float(row))
    return place


def ring(size=15, outer=7, inner=3):
    rows, columns = np.mgrid[:size, :size] - size // 2
    distance = np.hypot(rows, columns)
    return (distance <= outer) & (distance > inner)


def test_one_pixel():
    mask = rectangle((5, 6), 3, 4, 1, 1)
    assert edt(mask) == seed(mask) == (4.0, 3.0)


def test_the_outside_of_the_image_is_background():
    # Without that rule the farthest pixel of a half-covered image is on the image's edge.
    assert edt(rectangle((9, 9), 0, 0, 9, 5)) == (2.0, 2.0)
    assert edt(np.ones((5, 5), dtype=bool)) == (2.0, 2.0)


def test_ties_go_to_the_first_in_row_major_order():
    assert edt(rectangle((10, 10), 2, 3, 2, 2)) == (3.0, 2.0)
    two = rectangle((20, 20), 12, 1, 3, 3) | rectangle((20, 20), 5, 14, 3, 3)
    assert edt(two) == (15.0, 6.0)
    across = rectangle((20, 20), 5, 14, 3, 3) | rectangle((20, 20), 5, 1, 3, 3)
    assert edt(across) == (2.0, 6.0)


def test_a_ring_is_asked_inside_itself():
    x, y = edt(ring())
    assert ring()[int(y), int(x)]
    assert seed(ring()) == edt(ring())  # its centre of mass is in the hole


def test_seed_is_the_centre_of_mass_where_that_is_inside():
    shape = rectangle((20, 20), 2, 2, 6, 1) | rectangle((20, 20), 7, 2, 1, 9)
    assert seed(shape) == edt(shape)  # an L: its centre of mass is outside
    lopsided = rectangle((20, 30), 4, 3, 5, 20) | rectangle((20, 30), 4, 3, 9, 5)
    rows, columns = np.nonzero(lopsided)
    assert seed(lopsided) == (float(np.rint(columns.mean())), float(np.rint(rows.mean())))
    assert seed(lopsided) != edt(lopsided)


@pytest.mark.parametrize("number", range(40))
def test_edt_against_the_rule_in_words(number):
    generator = np.random.default_rng(number)
    mask = (
        generator.random((generator.integers(1, 14), generator.integers(1, 14)))
        > generator.random() * 0.9
    )
    if not mask.any():
        mask[0, 0] = True
    assert edt(mask) == brute(mask)
    x, y = seed(mask)
    assert mask[int(y), int(x)]


def test_box_and_its_mask():
    mask = ring()
    box = box_of(mask)
    assert box == (0.0, 0.0, 15.0, 15.0)
    assert filled(box, (15, 15)).all()
    for area in [(1, 2, 3, 4), (0, 0, 1, 1), (2, 0, 8, 9)]:
        mask = rectangle((10, 9), *area)
        assert np.array_equal(filled(box_of(mask), (10, 9)), mask)


def test_a_box_with_fractions_or_beyond_the_image():
    assert np.array_equal(filled((1.6, 0.4, 2.0, 2.0), (4, 6)), rectangle((4, 6), 0, 2, 2, 2))
    assert np.array_equal(filled((-3.0, 2.0, 50.0, 50.0), (4, 6)), rectangle((4, 6), 2, 0, 2, 6))
