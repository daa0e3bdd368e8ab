"""A batch of images on the host -> the encoder's input on its device, without waiting for that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.device.inference_modes import inference_modes
from samfast.device.transfer import to_device
from samfast.device.triton_support import has_triton
from samfast.images import resampling
from samfast.images.normalize import normalize
from samfast.types import ImageBatch, RawImageBatch, Size

AT_A_TIME = 64 << 20
"""Bytes of images that are on the device at a time; what becomes of them there takes less."""


def takes_raw_images(device: torch.device) -> bool:
    """Whether images go there as bytes, and are resized and normalised there by two kernels."""
    return has_triton(device)


def on_device(
    batch: ImageBatch | RawImageBatch, device: torch.device, part: slice = slice(None)
) -> Tensor:
    """(B, 3, S, S) float32 on the device, resized and normalised, of the images in that part of the
    batch.

    Bytes travel as they are, and become pixels there: on a GPU by Triton, elsewhere by their
    reference, with the same bits as a CPU.
    """
    with inference_modes(device):
        if isinstance(batch, ImageBatch):
            return to_device(batch.pixels[part], device)
        start, stop, _ = part.indices(len(batch))
        out = torch.empty(stop - start, 3, batch.side, batch.side, device=device)
        make = _by_triton if has_triton(device) else _plainly
        for first, last in pieces(batch.offsets[start : stop + 1]):
            own = slice(start + first, start + last)
            pixels = batch.pixels[batch.offsets[own.start] : batch.offsets[own.stop]]
            make(pixels, batch.sizes[own], batch.input_sizes[own], out[first:last])
        return out


def pieces(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From where to where images go together: so many that they have AT_A_TIME bytes, or a larger
    one alone.
    """
    start = 0
    for image in range(1, len(offsets)):
        if image == len(offsets) - 1 or offsets[image + 1] - offsets[start] > AT_A_TIME:
            yield start, image
            start = image


def _by_triton(pixels: Tensor, sizes: Sequence[Size], new: Sequence[Size], out: Tensor) -> None:
    from samfast.images.kernels.resize_normalize import launch

    table, taps, most = plan(sizes, new)
    device = out.device
    launch(
        to_device(pixels, device),
        to_device(table, device),
        to_device(taps, device),
        most,
        out,
        resampling.BITS,
    )


def plan(
    sizes: Sequence[Size], new: Sequence[Size]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """The table, taps and limits that `samfast.images.kernels.resize_normalize` takes; images lie
    one after another.
    """
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


def _plainly(pixels: Tensor, sizes: Sequence[Size], new: Sequence[Size], out: Tensor) -> None:
    side = out.shape[-1]
    squares = np.zeros((len(out), side, side, 3), np.uint8)
    parts = torch.split(pixels, [3 * height * width for height, width in sizes])
    for square, part, size, (h, w) in zip(squares, parts, sizes, new, strict=True):
        square[:h, :w] = resampling.resample(part.view(*size, 3).numpy(), (h, w))
    inside = torch.tensor(new, dtype=torch.int32, device="cpu")
    out.copy_(normalize(to_device(squares, out.device), to_device(inside, out.device)))
