"""Run lengths of masks on the host, column by column as COCO has them; the first is of zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


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
    runs = []
    for mask_starts, is_set in zip(
        np.split(starts, ends[:-1]), masks[:, 0, 0].tolist(), strict=True
    ):
        lead = [0, 0] if is_set else [0]  # a mask that begins with a one has an empty first run
        runs.append(np.diff(np.concatenate([lead, mask_starts, [height * width]])))
    return runs


def _run_starts(masks: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Column-major places at which a pixel differs from the one before, and the mask of each.

    They are read off in row-major memory and sorted: reordering the few changes is cheaper than
    transposing all pixels.
    """
    _, height, width = masks.shape
    # NumPy's comparison on one thread is as fast as memory; torch's waits for its other threads,
    # which may be busy.
    pixels = masks.detach().numpy() if masks.device.type == "cpu" else masks
    down = _nonzero(pixels[:, 1:] ^ pixels[:, :-1])
    owner, rest = np.divmod(down, (height - 1) * width) if height > 1 else (down, down)
    row, column = np.divmod(rest, width)
    within = owner * (height * width) + column * height + row + 1
    # From the bottom of a column to the top of the next.
    around = _nonzero(pixels[:, 0, 1:] ^ pixels[:, -1, :-1])
    owner, column = np.divmod(around, width - 1) if width > 1 else (around, around)
    places = np.sort(np.concatenate([within, owner * (height * width) + (column + 1) * height]))
    owners, starts = np.divmod(places, height * width)
    return starts, owners


def _nonzero(flags: Tensor | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Flat row-major indices of the true elements, on the host."""
    if isinstance(flags, np.ndarray):
        return np.flatnonzero(flags)
    places: NDArray[np.int64] = flags.flatten().nonzero()[:, 0].cpu().numpy()
    return places


def uncompressed(runs: NDArray[np.int64], height: int, width: int) -> dict[str, Any]:
    """The runs of a mask as COCO's uncompressed RLE."""
    return {"size": [height, width], "counts": runs.tolist()}
