"""COCO's run-length encoding of one mask: {"size": [H, W], "counts": text or run lengths}.

Runs go down the columns, the first one is of zeros and may be empty. RLE is checked before it is
used, since files come from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import InputError, shown
from samfast.types import Size

MaskLike = NDArray[np.bool_] | Tensor | Mapping[str, Any]
"""(H, W) bool array or tensor, or COCO RLE {"size": [H, W], "counts": str, bytes or list of run
lengths}."""

MaskSequence = Sequence[MaskLike] | NDArray[np.bool_] | Tensor
"""N masks, or an (N, H, W) bool array or tensor."""

MAX_DIGITS = 8
"""Characters of a number in COCO's text: 40 bits, more than any image's run needs."""

_BAD_TEXT = "RLE counts hold characters that are not COCO's; the record is damaged"


def encode(mask: MaskLike) -> dict[str, Any]:
    """A mask as COCO RLE {"size": [H, W], "counts": str}, ready for JSON (original:
    `coco_encode_rle`).

    mask  RLE is checked, and run lengths become text

    Raises InputError if it is not a mask.
    """
    from pycocotools import mask as coco

    if isinstance(mask, Mapping):
        size, runs = run_lengths(mask)
        counts = mask["counts"]
        if not isinstance(counts, str | bytes):
            rle = {"size": list(size), "counts": runs.tolist()}
            counts = coco.frPyObjects(rle, *size)["counts"]
    else:
        dense = dense_mask(mask)
        size, counts = dense.shape, coco.encode(np.asfortranarray(dense, dtype=np.uint8))["counts"]
    text = counts if isinstance(counts, str) else counts.decode("ascii")
    return {"size": list(size), "counts": text}


def decode(mask: MaskLike) -> NDArray[np.bool_]:
    """A mask as (H, W) bool on the host; RLE in column-major memory (original: `rle_to_mask`).

    Raises InputError if it is not a mask.
    """
    if not isinstance(mask, Mapping):
        return dense_mask(mask)
    (height, width), runs = run_lengths(mask)
    pixels = np.zeros(width * height, dtype=np.bool_)
    # Memory before and after the mask's columns is never touched, so that it costs nothing.
    first, inner = int(runs[:1].sum()), runs[1 : len(runs) - len(runs) % 2]
    inside = np.repeat(np.arange(len(inner)) % 2 == 0, inner)
    pixels[first : first + len(inside)] = inside
    return pixels.reshape(width, height).T


def dense_mask(mask: NDArray[Any] | Tensor) -> NDArray[np.bool_]:
    """An (H, W) bool array or tensor as an array on the host; InputError for anything else."""
    try:
        array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, sparse, nested
        raise InputError(f"a mask is (H, W) bool, this is {shown(mask)}") from error
    if array.ndim != 2 or array.dtype != np.bool_:
        raise InputError(
            f"a mask is (H, W) bool, this is {array.shape} {array.dtype}; threshold or index it "
            "first"
        )
    return array


def size_of(mask: MaskLike) -> Size:
    """(H, W) of a mask, without decoding it; InputError if it has none."""
    if isinstance(mask, Mapping):
        size = mask.get("size")
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(map(_is_length, size)):
            raise InputError(f"RLE size is {size!r}, it must be [height, width] in pixels")
        return int(size[0]), int(size[1])
    if not isinstance(mask, np.ndarray | Tensor) or getattr(mask, "is_nested", False):
        raise InputError(f"a mask is an RLE or (H, W) bool, this is {shown(mask)}")
    if len(mask.shape) != 2:
        raise InputError(
            f"a mask is (H, W) bool, this is of shape {tuple(mask.shape)}; index it first"
        )
    return int(mask.shape[0]), int(mask.shape[1])


def run_lengths(rle: Mapping[str, Any]) -> tuple[Size, NDArray[np.int64]]:
    """(H, W) and the run lengths, zeros first; InputError unless they fill the mask."""
    size, counts = size_of(rle), rle.get("counts")
    if isinstance(counts, str | bytes):
        runs = _parse_text(counts)
    elif isinstance(counts, list | tuple | np.ndarray):
        runs = np.asarray(counts)
        if runs.ndim != 1 or (runs.size and runs.dtype.kind not in "iu"):
            raise InputError("RLE counts must be whole numbers")
        runs = runs.astype(np.int64)
    else:
        raise InputError(
            f"RLE counts are {type(counts).__name__}; they must be COCO's text or a list of lengths"
        )
    pixels = size[0] * size[1]
    if ((runs < 0) | (runs > pixels)).any() or int(runs.sum()) != pixels:
        raise InputError(
            f"RLE counts do not fill a mask of {size[0]} x {size[1]} (H x W); the record is damaged"
        )
    return size, runs


def all_sound(masks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `run_lengths` accepts each of these masks; False also where one is no text, which
    only `run_lengths` judges.

    All texts are read as one: most masks are small, and the calls for each take longer than it.
    """
    texts = [text for each in masks if type(text := each.get("counts")) is str and text]
    if len(texts) < len(masks):
        return False
    if not texts:
        return True
    try:
        pixels = [height * width for height, width in map(size_of, masks)]
        numbers, ends = _numbers_in("".join(texts).encode("ascii"))
    except (InputError, UnicodeEncodeError):
        return False
    stops = np.cumsum([len(text) for text in texts]) - 1
    last = np.searchsorted(ends, stops)
    if not (ends[last] == stops).all():  # a number that goes on from one text into the next
        return False
    starts = np.concatenate([[0], last[:-1] + 1])
    counts = last + 1 - starts
    runs = _runs_of_all(numbers, starts, counts)
    within = not ((runs < 0) | (runs > np.repeat(pixels, counts))).any()
    return within and bool((np.add.reduceat(runs, starts) == pixels).all())


def area_of(mask: MaskLike) -> int:
    """The mask's number of pixels."""
    if isinstance(mask, Mapping):
        return int(run_lengths(mask)[1][1::2].sum())
    return int(np.count_nonzero(dense_mask(mask)))


def bounding_box(rle: Mapping[str, Any]) -> list[int]:
    """XYWH of RLE in whole pixels, all of the mask inside, as in COCO files; zeros if empty.

    The original's records have boxes from first to last pixel, whose W and H are less by one.
    """
    from pycocotools import mask as coco

    return [int(value) for value in coco.toBbox(encode(rle))]


def _parse_text(counts: str | bytes) -> NDArray[np.int64]:
    """The run lengths in COCO's text (pycocotools: `rleFrString`).

    From the fourth number on, each is the difference to the last but one.
    """
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise InputError(_BAD_TEXT) from None
    runs, _ = _numbers_in(data)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _numbers_in(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers in COCO's text, and the index of the last character of each.

    A character holds six bits, five of them value, lowest first; the sixth says that more follow.
    """
    # As bytes, of which a character below "0" becomes one above all of COCO's.
    codes = np.frombuffer(data, np.uint8) - np.uint8(48)
    if codes.size == 0:
        return codes.astype(np.int64), codes.astype(np.int64)
    last = (codes & 32) == 0
    ends = np.flatnonzero(last)
    if codes.max() > 63 or not last[-1]:
        raise InputError(_BAD_TEXT)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    most = int(digits.max())
    if most > MAX_DIGITS:  # also keeps the sums far from overflow
        raise InputError("RLE counts hold a number beyond any image; the record is damaged")
    numbers = (codes[starts] & 31).astype(np.int64)
    for place in range(1, most):  # few numbers have many digits
        longer = np.flatnonzero(digits > place)
        numbers[longer] |= (codes[starts[longer] + place] & 31).astype(np.int64) << (5 * place)
    negative = np.flatnonzero(codes[ends] & 16)
    numbers[negative] -= 1 << (5 * digits[negative])  # two's complement
    return numbers, ends


def _runs_of_all(
    numbers: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The run lengths of several masks, whose numbers (R,) follow each other.

    starts, counts  (N,) where those of each mask begin, and how many they are
    """
    owner = np.repeat(np.arange(len(starts)), counts)
    odd = ((np.arange(len(numbers)) - starts[owner]) & 1).astype(np.bool_)
    firsts = numbers[starts]
    runs = np.where(odd, 0, numbers)
    runs[starts] = 0  # the first number of a mask is no part of the sums
    for chosen, each in ((odd, np.where(odd, numbers, 0)), (~odd, runs)):
        sums = np.cumsum(each)
        before = sums[starts] - each[starts]
        sums -= before[owner]
        runs = np.where(chosen, sums, runs)
    runs[starts] = firsts
    return runs


def _is_length(value: object) -> bool:
    return (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and 0 < int(value) < 1 << 24
    )
