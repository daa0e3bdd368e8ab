"""Label Studio's run lengths, against a decoder that reads bit after bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samfast import coco_rle
from samfast.errors import InputError
from samfast.outputs import brush_rle

MASKS = arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def decoded(rle):
    """The words that a stream of bytes tells, read as @thi.ng/rle-pack's `decode` reads it."""
    bits = np.unpackbits(np.array(rle, np.uint8)).tolist()
    place = 0

    def read(width):
        nonlocal place
        value = int("".join(map(str, bits[place : place + width])), 2)
        place += width
        return value

    count, word_bits = read(32), read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < count:
        repeats = read(1)
        length = read(length_bits[read(2)]) + 1
        words += [read(word_bits)] * length if repeats else [read(word_bits) for _ in range(length)]
    assert len(bits) - place < 8
    assert not any(bits[place:])
    return np.array(words, np.uint8)


@given(mask=MASKS)
def test_a_mask_comes_back(mask):
    words = decoded(brush_rle(mask)).reshape(*mask.shape, 4)
    assert np.array_equal(words, np.repeat(np.where(mask, 255, 0)[..., None], 4, axis=2))


@pytest.mark.parametrize("pixels", [2, 4, 5, 64, 65, 16384, 16385, 40000])
def test_each_kind_of_length(pixels):
    mask = np.zeros((1, pixels + 1), bool)
    mask[0, :pixels] = True
    words = decoded(brush_rle(mask)).reshape(-1, 4)
    assert np.array_equal(words[:, 3] > 0, mask[0])


def test_run_lengths_are_taken_too():
    mask = np.random.default_rng(0).random((30, 20)) > 0.5
    assert brush_rle(coco_rle.encode(mask)) == brush_rle(mask)


def test_a_mask_without_pixels():
    assert decoded(brush_rle(np.zeros((0, 5), bool))).size == 0


def test_a_large_mask_takes_few_bytes():
    mask = np.zeros((3000, 4000), bool)
    mask[500:2500, 1000:3000] = True
    assert len(brush_rle(mask)) < 40_000


def test_what_is_no_mask_is_refused():
    with pytest.raises(InputError, match="a mask is"):
        brush_rle(np.zeros((3, 4), np.uint8))
