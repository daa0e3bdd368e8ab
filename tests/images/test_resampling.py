"""Resizing by whole numbers against Pillow, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samfast.images import resampling
from samfast.images.resampling import BITS, columns_first, resample, taps


def pillow(pixels: np.ndarray, new: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((new[1], new[0]), Image.Resampling.BILINEAR))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


LENGTH = st.integers(1, 400)


@settings(max_examples=300, deadline=None)
@given(LENGTH, LENGTH, st.integers(1, 200), st.integers(1, 200))
def test_any_sizes(height: int, width: int, h: int, w: int) -> None:
    pixels = noise(height, width)
    assert np.array_equal(resample(pixels, (h, w)), pillow(pixels, (h, w)))


@settings(max_examples=200, deadline=None)
@given(LENGTH, LENGTH, st.sampled_from([64, 224, 256]))
def test_sizes_as_the_model_takes_them(height: int, width: int, side: int) -> None:
    scale = side / max(height, width)
    new = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    pixels = noise(height, width)
    assert np.array_equal(resample(pixels, new), pillow(pixels, new))


@pytest.mark.parametrize("rows", [-2, -1, 0, 1, 2])
def test_where_the_order_of_passes_changes(rows: int) -> None:
    """Rows that go are twice the columns that go, or nearly."""
    for height, width, w in ((400, 150, 90), (300, 190, 188), (380, 240, 100), (90, 60, 70)):
        h = height - 2 * (width - w) + rows
        if h > 0:
            pixels = noise(height, width)
            assert np.array_equal(resample(pixels, (h, w)), pillow(pixels, (h, w)))


@pytest.mark.parametrize("height", [499, 500, 501, 606, 1100])
def test_very_tall_and_very_wide_images(height: int) -> None:
    for size, new in (
        ((height, 5), (300, 3)),
        ((5, height), (3, 300)),
        ((height, 5), (height + 9, 3)),
    ):
        pixels = noise(*size)
        assert np.array_equal(resample(pixels, new), pillow(pixels, new))


@pytest.mark.parametrize(
    ("version", "tall", "very_tall", "barely"),
    [
        ("10.1.0", False, False, False),
        ("12.1.1", False, False, False),
        ("12.2.0", False, True, False),
        ("12.3.0", False, True, False),
        ("13.0.0", True, True, False),
    ],
)
def test_versions_order_the_passes_in_their_own_ways(
    monkeypatch: pytest.MonkeyPatch, version: str, tall: bool, very_tall: bool, barely: bool
) -> None:
    """As seen with these versions; CI has but one of them."""
    monkeypatch.setattr("PIL.__version__", version)
    assert columns_first((70, 20), (32, 9)) == tall
    assert columns_first((606, 6), (64, 1)) == very_tall
    assert columns_first((606, 6), (606, 1)) == barely


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_a_plain_colour_stays_and_large_images_do(value: int) -> None:
    pixels = np.full((1500, 2100, 3), value, np.uint8)
    assert np.array_equal(resample(pixels, (731, 1024)), pillow(pixels, (731, 1024)))
    pixels = noise(1500, 2100)
    assert np.array_equal(resample(pixels, (731, 1024)), pillow(pixels, (731, 1024)))


@given(LENGTH, LENGTH)
def test_shares_add_up_to_one_and_see_what_is_there(length: int, new: int) -> None:
    table = taps(length, new)
    first, shares = table[:, 0], table[:, 1:].astype(np.int64)
    assert table.dtype == np.int32 and len(table) == new
    assert (first >= 0).all() and (shares >= 0).all()
    assert (abs(shares.sum(1) - (1 << BITS)) <= shares.shape[1]).all()
    last = first + (shares > 0) @ np.ones(shares.shape[1], dtype=np.int64)
    assert (last <= length + shares.shape[1]).all()
    seen = first[:, None] + np.arange(shares.shape[1])
    assert (shares[seen >= length] == 0).all()


def test_it_knows_pillow_or_says_that_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    known = resampling.as_pillow.__wrapped__
    assert known()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not known()
    monkeypatch.undo()
    for later in ("13.1.0", "14.0.0"):
        monkeypatch.setattr("PIL.__version__", later)
        assert not known()
    monkeypatch.undo()
    monkeypatch.setattr(resampling, "columns_first", lambda size, new: not columns_first(size, new))
    assert not known()
    monkeypatch.undo()
    monkeypatch.setattr(resampling, "columns_first", lambda size, new: size[0] > 2 * size[1])
    assert not known()
