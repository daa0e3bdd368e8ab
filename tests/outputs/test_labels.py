"""Label maps: which pixel has which label, and what other programs read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samfast.errors import InputError, OutputError
from samfast.outputs import encode, label_map, write_labels


def square(size: tuple[int, int], y: int, x: int, side: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y : y + side, x : x + side] = True
    return mask


SIZE = (12, 15)
MASKS = [
    square(SIZE, 3, 3, 3),
    square(SIZE, 1, 1, 8),
    square(SIZE, 6, 6, 5),
    square(SIZE, 11, 14, 1),
]


def test_smaller_masks_are_on_top_in_any_order() -> None:
    labels = label_map(MASKS, SIZE)
    expected = np.zeros(SIZE, int)
    for index in (1, 2, 0, 3):  # by falling area
        expected[MASKS[index]] = index + 1
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected)
    turned = label_map(MASKS[::-1], SIZE)
    assert np.array_equal(np.where(turned > 0, 5 - turned.astype(int), 0), expected)


def test_arrays_tensors_and_rle_paint_the_same() -> None:
    labels = label_map(MASKS, SIZE)
    assert np.array_equal(label_map(np.stack(MASKS), SIZE), labels)
    assert np.array_equal(label_map(torch.from_numpy(np.stack(MASKS)), SIZE), labels)
    assert np.array_equal(label_map([encode(mask) for mask in MASKS], SIZE), labels)
    assert np.array_equal(label_map([encode(MASKS[0]), *MASKS[1:]], SIZE), labels)


def test_random_masks_against_plain_painting() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((23, 17)) < share for share in rng.random(40)]
    expected = np.zeros((23, 17), int)
    for index in sorted(range(40), key=lambda index: -masks[index].sum()):
        expected[masks[index]] = index + 1
    assert np.array_equal(label_map(masks, (23, 17)), expected)
    assert np.array_equal(label_map([encode(mask) for mask in masks], (23, 17)), expected)


def test_no_masks() -> None:
    assert np.array_equal(label_map([], (4, 5)), np.zeros((4, 5)))
    assert np.array_equal(label_map(np.zeros((0, 4, 5), bool), (4, 5)), np.zeros((4, 5)))


@pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16), (300, np.uint16)])
def test_png_has_as_many_bits_as_it_needs(tmp_path: Path, count: int, dtype: type) -> None:
    size = (20, 16)
    masks = np.eye(320, dtype=bool).reshape(320, *size)[:count]
    write_labels(tmp_path / "a.png", masks, size)
    expected = np.zeros(320, int)
    expected[:count] = np.arange(1, count + 1)
    with Image.open(tmp_path / "a.png") as picture:
        read = np.array(picture)
    assert read.dtype == dtype
    assert np.array_equal(read, expected.reshape(size))
    header = (tmp_path / "a.png").read_bytes()[:33]
    assert (header[24], header[25]) == (8 * np.dtype(dtype).itemsize, 0)  # bits; grey


def test_other_sizes_and_too_many() -> None:
    with pytest.raises(InputError, match=r"mask 1: is 4 x 4, its image 12 x 15 \(H x W\)"):
        label_map([MASKS[0], np.zeros((4, 4), bool)], SIZE)
    with pytest.raises(InputError, match=r"mask 0: a mask is \(H, W\) bool"):
        label_map([np.zeros(SIZE)], SIZE)  # type: ignore[list-item]
    with pytest.raises(InputError, match="65536 masks; a label map holds at most 65535"):
        label_map(np.zeros((65536, 1, 1), bool), (1, 1))


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        write_labels(tmp_path / "gone" / "a.png", MASKS, SIZE)
