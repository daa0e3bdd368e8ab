"""Masks as COCO's text with areas and boxes, of all images of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.device.checked_tensor import plain
from samfast.device.transfer import AsyncHostCopy
from samfast.masks import boxes, coco_text, rle
from samfast.masks.bit_masks import ones, pack
from samfast.masks.mask_runs import PixelChanges
from samfast.prompts.device_checks import verify_all
from samfast.types import Masks, Size


class EncodedMask(NamedTuple):
    """A mask on the host: COCO's text, pixels, box (x, y, width, height), predicted IoU.

    The box holds the whole mask; zeros for an empty one.
    """

    counts: str
    area: int
    bbox: tuple[int, int, int, int]
    iou: float


def encode_masks(answers: Sequence[Masks]) -> list[list[EncodedMask]]:
    """The masks (N, M) of each image, in order. Raises NumericsError as `Masks.verify`.

    Masks of one size are encoded together, whichever images they are of. All sizes are queued
    before any is waited for, so that a GPU is not idle while the host reads.
    """
    # Without the checks, which make every look at a tensor's shape cost more than the copy of it.
    unchecked = [Masks(plain(each.masks), plain(each.iou), each.low_res) for each in answers]
    by_size: dict[Size, list[int]] = {}
    for index, masks in enumerate(unchecked):
        height, width = masks.masks.shape[2:]
        by_size.setdefault((height, width), []).append(index)
    counted: list[_Encoding] = []
    for some in by_size.values():
        alike = [unchecked[index] for index in some]
        on_host = alike[0].masks.device.type == "cpu"
        counted.append(_HostEncoding(alike) if on_host else _DeviceEncoding(alike))
    for encoding in counted:
        encoding.start_text()
    verify_all([each.check for each in answers if each.check is not None])
    encoded: list[list[EncodedMask]] = [[] for _ in answers]
    for some, encoding in zip(by_size.values(), counted, strict=True):
        rows = iter(encoding.finish())
        for index in some:
            encoded[index] = list(islice(rows, unchecked[index].iou.numel()))
    return encoded


class _Encoding(Protocol):
    """Masks of one size on their way to the host."""

    def start_text(self) -> None:
        """Queue the writing of the text; waits until the changes are counted."""

    def finish(self) -> list[EncodedMask]:
        """The encoded masks; waits for the device."""


class _DeviceEncoding:
    """Of masks on a device that works beside the host. Changes are counted when it is made."""

    def __init__(self, answers: Sequence[Masks]) -> None:
        flat = torch.cat([each.masks.flatten(0, 1) for each in answers])
        iou = torch.cat([each.iou.flatten() for each in answers])
        packed = pack(flat)
        self._changes = PixelChanges(packed, flat.shape[1])
        areas = ones(packed).flatten(1).sum(1)
        self._copy = AsyncHostCopy(boxes.from_masks(flat), areas, iou.float())

    def start_text(self) -> None:
        self._text = coco_text.start_writing(self._changes.runs())

    def finish(self) -> list[EncodedMask]:
        corners, areas, iou = (values.tolist() for values in self._copy.wait())
        return [
            EncodedMask(text, area, _xywh(box) if area else (0, 0, 0, 0), rating)
            for text, box, area, rating in zip(self._text(), corners, areas, iou, strict=True)
        ]


class _HostEncoding:
    """Of masks on the host: runs are read off the pixels, and area and box off the runs."""

    def __init__(self, answers: Sequence[Masks]) -> None:
        self._height = answers[0].masks.shape[2]
        self._runs = [runs for each in answers for runs in rle.encode(each.masks.flatten(0, 1))]
        self._iou = [rating for each in answers for rating in each.iou.flatten().tolist()]

    def start_text(self) -> None:
        pass

    def finish(self) -> list[EncodedMask]:
        if not self._runs:
            return []
        counts = np.array([len(runs) for runs in self._runs])
        texts = coco_text.texts_on_host(np.concatenate(self._runs), counts)
        return [
            EncodedMask(text, int(runs[1::2].sum()), _box_of(runs, self._height), rating)
            for text, runs, rating in zip(texts, self._runs, self._iou, strict=True)
        ]


def _box_of(runs: NDArray[np.int64], height: int) -> tuple[int, int, int, int]:
    """The box (x, y, width, height) around a mask's runs of ones; zeros if there are none."""
    bounds = np.cumsum(runs[: len(runs) // 2 * 2]).reshape(-1, 2)
    if not len(bounds):
        return 0, 0, 0, 0
    columns, rows = np.divmod(bounds - (0, 1), height)  # first and last pixel of each run
    left, right = int(columns[0, 0]), int(columns[-1, 1])
    top, bottom = int(rows[:, 0].min()), int(rows[:, 1].max())
    if (columns[:, 0] != columns[:, 1]).any():  # around the end of a column
        top, bottom = 0, height - 1
    return _xywh((left, top, right, bottom))


def _xywh(box: Sequence[int]) -> tuple[int, int, int, int]:
    """First and last pixels as (x, y, width, height)."""
    x0, y0, x1, y1 = box
    return x0, y0, x1 - x0 + 1, y1 - y0 + 1
