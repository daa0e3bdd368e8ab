"""A batch of images on the host -> the encoder's input on its device, without synchronising."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.device.inference_modes import inference_modes
from samfast.device.transfer import to_device
from samfast.device.triton_support import has_triton
from samfast.images import resampling
from samfast.images.batching import Batcher
from samfast.images.normalize import normalize
from samfast.types import ImageBatch, RawImageBatch, Size

MAX_PIXEL_BYTES = 64 << 20
"""Bytes of raw images on the device at a time; their intermediate results take less."""


@dataclass(frozen=True, eq=False)
class _Copy:
    """Raw images and the plan of their resizing, on the device; limits stays on the host."""

    pixels: Tensor
    table: Tensor
    taps: Tensor
    limits: NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class CopiedBatch(RawImageBatch):
    """Raw images of which the device has a copy, or will have when `copied` is reached.

    copied  an event of `stream`; None: it has
    """

    copy: _Copy
    stream: Any = None
    copied: Any = None

    def on_device(self, device: torch.device) -> _Copy:
        """The copy, for work that is queued on the device from now on."""
        if self.copied is not None:
            current = torch.cuda.current_stream(device)
            current.wait_event(self.copied)
            if current != self.stream:
                for each in (self.copy.pixels, self.copy.table, self.copy.taps):
                    each.record_stream(current)
        return self.copy


def batch_maker(
    batcher: Batcher, device: torch.device
) -> Callable[..., ImageBatch | RawImageBatch]:
    """What makes the batches of images for a device, as `Batcher.batch` or `raw_batch` do.

    Where images are resized by the device, the copy of each batch is queued as soon as it is made,
    on the stream that is current now: a thread that makes batches ahead then leaves nothing of this
    to the one that queues the encoder.
    """
    if not has_triton(device):
        return batcher.batch
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def make(*sources: Any) -> RawImageBatch:
        return _copied_ahead(batcher.raw_batch(*sources), device, stream)

    return make


def _copied_ahead(batch: RawImageBatch, device: torch.device, stream: Any) -> RawImageBatch:
    """The batch with its copy; without, if it is large, or the device's memory does not suffice."""
    if len([*chunks(batch.offsets)]) > 1:
        return batch
    try:
        with inference_modes(device), torch.cuda.stream(stream):
            copy = _copy(batch.pixels, batch.sizes, batch.input_sizes, device)
            copied = None if stream is None else stream.record_event()
    except torch.OutOfMemoryError:
        return batch
    return CopiedBatch(**vars(batch), copy=copy, stream=stream, copied=copied)


def on_device(
    batch: ImageBatch | RawImageBatch, device: torch.device, part: slice = slice(None)
) -> Tensor:
    """(B, 3, S, S) float32 on the device: that part of the batch, resized and normalised.

    Raw images are copied as bytes and resized and normalised by Triton kernels where there are
    any, elsewhere by their reference, with bit-equal results.
    """
    with inference_modes(device):
        if isinstance(batch, ImageBatch):
            return to_device(batch.pixels[part], device)
        start, stop, _ = part.indices(len(batch))
        out = torch.empty(stop - start, 3, batch.side, batch.side, device=device)
        if isinstance(batch, CopiedBatch) and stop - start == len(batch):
            _launch(batch.on_device(device), out)
            return out
        make = _by_triton if has_triton(device) else _plainly
        for first, last in chunks(batch.offsets[start : stop + 1]):
            images = slice(start + first, start + last)
            pixels = batch.pixels[batch.offsets[images.start] : batch.offsets[images.stop]]
            make(pixels, batch.sizes[images], batch.input_sizes[images], out[first:last])
        return out


def chunks(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last + 1 of images with MAX_PIXEL_BYTES at most, or of one larger image."""
    start = 0
    for image in range(1, len(offsets)):
        if image == len(offsets) - 1 or offsets[image + 1] - offsets[start] > MAX_PIXEL_BYTES:
            yield start, image
            start = image


def _by_triton(pixels: Tensor, sizes: Sequence[Size], new: Sequence[Size], out: Tensor) -> None:
    _launch(_copy(pixels, sizes, new, out.device), out)


def _copy(
    pixels: Tensor, sizes: Sequence[Size], new: Sequence[Size], device: torch.device
) -> _Copy:
    table, taps, limits = plan(sizes, new)
    # Table and taps in one copy. A multiple of 16 bytes goes before the taps, so that they are
    # aligned in every batch alike: Triton compiles a kernel for each alignment.
    end, first_tap = table.nbytes // 4, -(-table.nbytes // 16) * 4
    plan_numbers = np.zeros(first_tap + len(taps), dtype=np.int32)
    plan_numbers[:end] = table.view(np.int32).ravel()
    plan_numbers[first_tap:] = taps
    numbers = to_device(plan_numbers, device)
    rows = numbers[:end].view(torch.int64).view(table.shape)
    return _Copy(to_device(pixels, device), rows, numbers[first_tap:], limits)


def _launch(copy: _Copy, out: Tensor) -> None:
    from samfast.images.kernels.resize_normalize import launch

    launch(copy.pixels, copy.table, copy.taps, copy.limits, out, resampling.BITS)


def plan(
    sizes: Sequence[Size], new: Sequence[Size]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """The table, taps and limits of `samfast.images.kernels.resize_normalize` for packed images."""
    offsets: dict[tuple[int, int], int] = {}
    tables: list[NDArray[np.int32]] = []

    def taps(length: int, to: int) -> int:
        if (length, to) not in offsets:
            table = resampling.taps(length, to)
            offsets[length, to] = sum(map(len, tables))
            tables.append(np.concatenate([[table.shape[1] - 1], table.ravel()], dtype=np.int32))
        return offsets[length, to]

    rows = []
    begin = middle = lines = length = 0
    for (height, width), (h, w) in zip(sizes, new, strict=True):
        vertical_first = resampling.columns_first((height, width), (h, w))
        between = (h, 3 * width) if vertical_first else (height, 3 * w)
        taps_of = (taps(height, h), taps(width, w))
        rows.append((begin, middle, height, width, h, w, *taps_of, vertical_first))
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
