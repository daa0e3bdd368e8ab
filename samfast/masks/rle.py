"""Run-length encoding of masks, column by column, as COCO has it.

An Rle is `{"size": [H, W], "counts": runs}`: lengths of runs in column-major order, the first of
zeros (it may be 0). In the compressed form ("COCO RLE") `counts` is a string.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import MissingExtraError

Rle = dict[str, Any]


def encode(masks: Tensor) -> list[NDArray[np.int64]]:
    """The runs of each mask (original: `mask_to_rle_pytorch`).

    masks    (N, H, W) bool
    returns  N arrays of run lengths
    """
    count, height, width = masks.shape
    if count == 0:
        return []
    starts, owners = _run_starts(masks)
    ends = np.cumsum(np.bincount(owners, minlength=count))
    first = masks[:, 0, 0].tolist()
    runs = []
    for own, is_set in zip(np.split(starts, ends[:-1]), first, strict=True):
        lead = (
            [0, 0] if is_set else [0]
        )  # an empty run of zeros before a mask that starts with a one
        runs.append(np.diff(np.concatenate([lead, own, [height * width]])))
    return runs


def _run_starts(masks: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where, in column-major order, a pixel differs from the one before; and of which mask.

    Found in row-major memory, then sorted: the few changes are cheaper to reorder than all the
    pixels.
    """
    _, height, width = masks.shape
    down = _nonzero(masks[:, 1:] ^ masks[:, :-1])
    owner, rest = np.divmod(down, (height - 1) * width) if height > 1 else (down, down)
    row, column = np.divmod(rest, width)
    within = owner * (height * width) + column * height + row + 1
    around = _nonzero(
        masks[:, 0, 1:] ^ masks[:, -1, :-1]
    )  # from a column's foot to the next one's head
    owner, column = np.divmod(around, width - 1) if width > 1 else (around, around)
    places = np.sort(np.concatenate([within, owner * (height * width) + (column + 1) * height]))
    owners, starts = np.divmod(places, height * width)
    return starts, owners


def _nonzero(flags: Tensor) -> NDArray[np.int64]:
    """Flat row-major indices of the true elements, on the host."""
    if flags.device.type == "cpu":
        return np.flatnonzero(flags.contiguous().numpy())
    places: NDArray[np.int64] = flags.flatten().nonzero()[:, 0].cpu().numpy()
    return places


def uncompressed(runs: NDArray[np.int64], height: int, width: int) -> Rle:
    """The runs as an Rle of plain numbers."""
    return {"size": [height, width], "counts": runs.tolist()}


def decode(rle: Rle) -> NDArray[np.bool_]:
    """An uncompressed Rle -> (H, W) bool, in column-major memory (original: `rle_to_mask`)."""
    height, width = rle["size"]
    counts = np.asarray(rle["counts"], dtype=np.int64)
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def area(rle: Rle) -> int:
    """The number of pixels of an uncompressed Rle (original: `area_from_rle`)."""
    return int(sum(rle["counts"][1::2]))


def compress(rle: Rle) -> Rle:
    """An uncompressed Rle -> COCO's, `counts` as text (original: `coco_encode_rle`)."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise MissingExtraError(
            "COCO RLE needs pycocotools, which is not installed: pip install pycocotools, "
            'or ask for output_mode="uncompressed_rle"'
        ) from error
    height, width = rle["size"]
    packed: Rle = coco.frPyObjects(rle, height, width)
    packed["counts"] = packed["counts"].decode("ascii")
    return packed
