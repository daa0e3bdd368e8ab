"""Decoded objects of any images -> COCO's text and measures on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.decoding.decoder_output import DecoderOutput
from samfast.device.retry import FEWER_OBJECTS, RetryOnOOM
from samfast.device.transfer import AsyncHostCopy, works_beside_host
from samfast.masks import coco_text, postprocess, rle
from samfast.masks.mask_runs import PackedMasks, PixelChanges, chunks_within
from samfast.masks.resize_geometry import ResizeGeometry

STABILITY_OFFSET = 1.0
"""In logits: stability compares the masks at the threshold plus and minus this (the original's)."""

MAX_BYTES = 64 << 20
"""Masks, on a GPU of a bit a pixel, and memory for their runs, that are made at a time."""


@dataclass(frozen=True, eq=False)
class HostRows:
    """What is known of P objects, M masks each, on the host.

    texts     COCO's, of P * M masks
    measures  (P * M, 7) int32, the table of `samfast.masks.measures`
    iou       (P, M) float32, predicted
    codes     (P,) uint8, deferred checks (`samfast.prompts.device_checks`)
    """

    texts: list[str]
    measures: NDArray[Any]
    iou: NDArray[np.float32]
    codes: NDArray[np.uint8]

    def part(self, start: int, stop: int) -> HostRows:
        """Those of some objects."""
        each = self.iou.shape[1]
        masks = slice(start * each, stop * each)
        rows = slice(start, stop)
        return HostRows(self.texts[masks], self.measures[masks], self.iou[rows], self.codes[rows])


Group = tuple[ResizeGeometry, int, int]
"""Neighbouring objects of images of one geometry: it, the first of them, and that behind them."""


class EncodedRows:
    """Objects on their way to the host. The first work for it is queued when it is made.

    groups  of all objects, in order
    best    one mask an object, that of the highest predicted IoU

    Masks are measured and packed group by group, and those of all groups are written as one text:
    what the host does for a text takes longer than the device's work.
    """

    def __init__(
        self,
        rows: DecoderOutput,
        groups: Sequence[Group],
        threshold: float,
        *,
        best: bool = False,
    ) -> None:
        low_res, iou = rows.low_res, rows.iou
        if best and iou.shape[1] > 1:
            index = iou.argmax(dim=1, keepdim=True)
            iou = iou.gather(1, index)
            low_res = low_res.gather(1, index[..., None, None].expand(-1, -1, *low_res.shape[2:]))
        self._low_res = low_res.flatten(0, 1)
        each = iou.shape[1]
        # Of masks from here on.
        self._groups = [(geometry, each * start, each * stop) for geometry, start, stop in groups]
        self._threshold = threshold
        self._finishes: list[Callable[[], list[str]]] = []
        self._chunks: Iterator[PixelChanges] = iter(())
        self._failure: Exception | None = None
        if works_beside_host(low_res.device):
            tables = [
                postprocess.measure(
                    self._low_res[start:stop], geometry, threshold, STABILITY_OFFSET
                )
                for geometry, start, stop in self._groups
            ]
            chunks = self._changes()
            self._chunks = chain(list(islice(chunks, 1)), chunks)
        else:
            tables = [self._measure_and_write_on_host(*group) for group in self._groups]
        measures = tables[0] if len(tables) == 1 else torch.cat(tables)
        self._copy = AsyncHostCopy(measures, iou, rows.codes)

    def start_texts(self) -> None:
        """Queue the writing of texts, once; waits for the changes between pixels to be counted."""
        if self._failure is not None:
            raise self._failure
        try:
            for changes in self._chunks:
                for start, stop in chunks_within(changes.bytes(), MAX_BYTES):
                    self._finishes.append(coco_text.start_writing(changes.runs(start, stop)))
        except Exception as error:  # some chunks are used up: each image of these fails alike
            self._failure = error
            raise

    @cached_property
    def on_host(self) -> HostRows:
        """All of it; waits for the device."""
        self.start_texts()
        texts = [text for finish in self._finishes for text in finish()]
        return HostRows(texts, *self._copy.wait())

    def _changes(self) -> Iterator[PixelChanges]:
        """The changes between pixels of all masks, counted on the device, some at a time."""
        sizes = [_packed_bytes(geometry) for geometry, _, _ in self._groups]
        counts = [stop - start for _, start, stop in self._groups]
        retry = RetryOnOOM(FEWER_OBJECTS)

        def pack(chunk: int, start: int, stop: int) -> PixelChanges:
            packed = []
            for geometry, first, last in self._groups:
                part = self._low_res[max(chunk + start, first) : min(chunk + stop, last)]
                if len(part):
                    words = postprocess.packed(part, geometry, self._threshold)
                    packed.append(PackedMasks.of(words, geometry.original_size[0]))
            return PixelChanges(*packed)

        for start, stop in chunks_within(np.repeat(sizes, counts), MAX_BYTES):
            yield from retry.map_chunks(stop - start, stop - start, partial(pack, start))

    def _measure_and_write_on_host(self, geometry: ResizeGeometry, start: int, stop: int) -> Tensor:
        """The measures of a group; its texts are ready. In NumPy, as far as may be: PyTorch's
        operations wait for threads that others use.
        """
        height, width = geometry.original_size
        step = max(1, MAX_BYTES // (height * width))
        measures, runs = [], list[NDArray[np.int64]]()
        for first in range(start, max(start + 1, stop), step):
            part = self._low_res[first : min(first + step, stop)]
            measured, masks = postprocess.measured_masks(
                part, geometry, self._threshold, STABILITY_OFFSET
            )
            measures.append(measured)
            runs += rle.encode(masks)
        if runs:
            counts = np.array([len(each) for each in runs])
            texts = coco_text.texts_on_host(np.concatenate(runs), counts)
            self._finishes.append(lambda: texts)
        return torch.cat(measures)


def _packed_bytes(geometry: ResizeGeometry) -> int:
    """Of a mask, a bit a pixel."""
    height, width = geometry.original_size
    return width * -(-height // 32) * 4
