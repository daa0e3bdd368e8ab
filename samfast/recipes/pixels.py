"""A batch of images on the host -> the encoder's input on its device, without waiting for that."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.fused import reference
from samfast.images import resampling
from samfast.masks import op
from samfast.masks.reading import there, upload
from samfast.recipes.modes import plain_modes
from samfast.types import ByteBatch, ImageBatch, Size


def takes_bytes(device: torch.device) -> bool:
    """Whether images go there as bytes, and are resized and normalised there by two kernels."""
    return op.fused(device)


def on_device(batch: ImageBatch | ByteBatch, device: torch.device, part: slice = slice(None)) -> Tensor:
    """(B, 3, S, S) float32 on the device, resized and normalised, of the images in that part of the batch.

    Bytes travel as they are, and become pixels there: on a GPU by Triton, elsewhere by their reference, with the same
    bits as a CPU.
    """
    with plain_modes(device):
        if isinstance(batch, ImageBatch):
            return upload(batch.pixels[part], device)
        start, stop, _ = part.indices(len(batch))
        begin = batch.offsets[start]
        pixels = batch.pixels[begin : batch.offsets[stop]]
        sizes, new = batch.sizes[start:stop], batch.input_sizes[start:stop]
        if not op.fused(device):
            images = [
                pixels[own - begin : own - begin + 3 * h * w].view(h, w, 3).numpy()
                for own, (h, w) in zip(batch.offsets[start:stop], sizes, strict=True)
            ]
            return _plainly(images, new, batch.side, device)
        from samfast.fused.kernels.resize import launch

        table, taps, most = plan(sizes, new)
        given = upload(pixels, device), there(table, device), there(taps, device)
        return launch(*given, most, batch.side, resampling.BITS)


def plan(
    sizes: tuple[Size, ...], new: tuple[Size, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """The table, taps and limits that `samfast.fused.kernels.resize` takes; images lie one after another."""
    places: dict[tuple[int, int], int] = {}
    tables: list[NDArray[np.int32]] = []

    def taps(length: int, to: int) -> int:
        if (length, to) not in places:
            own = resampling.taps(length, to)
            places[length, to] = sum(map(len, tables))
            tables.append(np.concatenate([[own.shape[1] - 1], own.ravel()], dtype=np.int32))
        return places[length, to]

    rows = []
    begin = middle = lines = length = 0
    for (height, width), (h, w) in zip(sizes, new, strict=True):
        down = resampling.columns_first((height, width), (h, w))
        between = (h, 3 * width) if down else (height, 3 * w)
        rows.append((begin, middle, height, width, h, w, taps(height, h), taps(width, w), down))
        begin += 3 * height * width
        middle += between[0] * between[1]
        lines, length = max(lines, between[0]), max(length, between[1])
    return np.array(rows, dtype=np.int64), np.concatenate(tables), np.array([middle, lines, length])


def _plainly(
    images: list[NDArray[np.uint8]], new: tuple[Size, ...], side: int, device: torch.device
) -> Tensor:
    squares = np.zeros((len(images), side, side, 3), np.uint8)
    for square, image, (h, w) in zip(squares, images, new, strict=True):
        square[:h, :w] = resampling.resample(image, (h, w))
    sizes = torch.tensor(new, dtype=torch.int32, device="cpu")
    return reference.normalise(upload(torch.from_numpy(squares), device), upload(sizes, device))
