"""Label Studio's run lengths of a brush stroke: a stream of bits, as @thi.ng/rle-pack writes it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.coco_rle import MaskLike

_CHANNELS = 4
"""Label Studio encodes RGBA, and draws the pixels whose alpha is not zero."""

_WORD_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
"""Bits of a run's length, of which each run takes the fewest that hold its length less one."""

_HEADER = (
    (32, None),  # the number of words, which the mask tells
    (5, _WORD_BITS - 1),
    *((4, int(bits) - 1) for bits in _LENGTH_BITS),
)


def brush_rle(mask: MaskLike) -> list[int]:
    """The bytes of a mask for the `rle` of a Label Studio brush label (its SDK: `mask2rle`).

    A header of 32 + 5 + 4 * 4 bits tells the number of words (4 * H * W) and the widths of a word
    and of four kinds of lengths. A run follows as 1 bit (set: its words are equal), 2 bits (the
    kind of length), the length less one, and the word, 255 inside the mask and 0 outside. Words run
    along the rows of the image. Zero bits fill the last byte.

    The SDK's own encoder needs seconds for a photo, since it makes a text of the bits.

    Raises InputError if it is not a mask.

        rle = samfast.outputs.brush_rle(results[0].best()[0].cpu().numpy())
        value = {"format": "rle", "rle": rle, "brushlabels": ["cat"]}
    """
    flat = coco_rle.decode(mask).ravel()
    lengths, words = _runs(flat)
    kind = np.searchsorted(1 << _LENGTH_BITS, lengths)
    length_bits = _LENGTH_BITS[kind]
    codes = (4 + kind << length_bits | lengths - 1) << _WORD_BITS | words
    widths = 3 + length_bits + _WORD_BITS
    header_widths, header = zip(*_HEADER, strict=True)
    total = flat.size * _CHANNELS
    return _packed(
        np.concatenate([[total if code is None else code for code in header], codes]),
        np.concatenate([header_widths, widths]),
    )


def _runs(flat: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lengths, in words, and the words of all runs, none longer than a length can tell."""
    if flat.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    longest = 1 << int(_LENGTH_BITS[-1])
    parts = -(-lengths // longest)
    last = np.cumsum(parts) - 1
    split = np.full(parts.sum(), longest)
    split[last] = lengths - (parts - 1) * longest
    return split, np.repeat(np.where(flat[starts], 255, 0), parts)


def _packed(codes: NDArray[np.int64], widths: NDArray[np.int64]) -> list[int]:
    """Codes of those widths in bits, one after another, as bytes."""
    ends = np.cumsum(widths)
    code = np.repeat(np.arange(len(codes)), widths)
    shift = ends[code] - 1 - np.arange(ends[-1])
    packed: list[int] = np.packbits((codes[code] >> shift & 1).astype(bool)).tolist()
    return packed
