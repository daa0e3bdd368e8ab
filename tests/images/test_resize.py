"""Sizes and pixels exactly as the original's ResizeLongestSide gives them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samfast.errors import ImageError
from samfast.images import input_size, resize_image
from tests import oracle

ResizeLongestSide = oracle.load().utils.transforms.ResizeLongestSide
LENGTH = st.integers(1, 20_000)


@given(LENGTH, LENGTH, st.sampled_from([64, 224, 256, 512, 1000, 1024, 1536]))
def test_input_size_is_the_originals(height: int, width: int, side: int) -> None:
    expected = ResizeLongestSide.get_preprocess_shape(height, width, side)
    if 0 in expected:
        with pytest.raises(ImageError, match="too long and thin"):
            input_size((height, width), side)
    else:
        size = input_size((height, width), side)
        assert size == expected
        assert max(size) == side


def test_input_size_of_every_small_image() -> None:
    """Exhaustive where halves are frequent and rounding could go either way."""
    for side in (64, 1024):
        for height in range(1, 65):
            for width in range(1, 65):
                expected = ResizeLongestSide.get_preprocess_shape(height, width, side)
                assert input_size((height, width), side) == expected


def test_too_long_and_thin() -> None:
    assert input_size((1, 2048), 1024) == (1, 1024)
    said = r"^image: 1 x 2049 \(H x W\) is too long and thin.*; cut it"
    with pytest.raises(ImageError, match=said):
        input_size((1, 2049), 1024)
    with pytest.raises(ImageError, match=r"^strip\.png: 5000 x 2 "):
        input_size((5000, 2), 1024, "strip.png")


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="no pixels"):
        input_size(size, 1024)


SIZES = [(32, 48), (48, 32), (1, 1), (1, 7), (97, 61), (64, 64), (200, 333), (3, 128)]


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("size", SIZES)
def test_resize_is_the_originals_and_pillows(size: tuple[int, int], side: int) -> None:
    pixels = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
    resized = resize_image(pixels, side)
    h, w = input_size(size, side)
    assert resized.shape == (h, w, 3)
    assert resized.dtype == np.uint8
    assert np.array_equal(resized, ResizeLongestSide(side).apply_image(pixels))
    by_pillow = Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR)
    assert np.array_equal(resized, np.array(by_pillow))


def test_a_view_is_resized_as_its_copy() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for view in (pixels[::-1, :, ::-1], pixels.transpose(1, 0, 2), pixels[3:-5, 7:, :]):
        assert np.array_equal(resize_image(view, 50), resize_image(view.copy(), 50))


def test_an_image_of_that_size_is_not_copied() -> None:
    pixels = np.zeros((30, 64, 3), np.uint8)
    assert resize_image(pixels, 64) is pixels


def test_an_image_whose_short_side_would_vanish_is_refused() -> None:
    with pytest.raises(ImageError, match="too long and thin"):
        resize_image(np.zeros((1, 200, 3), np.uint8), 64)
