"""What callers hand to `SegmentationService` and get from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.types import RleAnswers, Size


@dataclass(frozen=True)
class StoredImage:
    """An image that the service knows. `id` is the SHA-256 of its bytes, width and height pixels
    as a person sees it: upright.
    """

    id: str
    width: int
    height: int


@dataclass(frozen=True)
class ObjectPrompt:
    """The prompts of one object, in pixels of the upright image.

    points  [(x, y), ...];  labels  1 foreground, 0 background, one a point
    box     (x0, y0, x1, y1);  mask  the `ref` of an earlier answer for the same image
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None


class MaskAnswer(NamedTuple):
    """One mask. A tuple: hundreds are made for a batch, and a frozen dataclass takes three times as
    long to make.

    counts, size   its COCO RLE: text, and (height, width)
    predicted_iou  the model's own estimate of its quality
    area           pixels
    bbox           (x, y, width, height) in whole pixels, all of the mask inside; zeros if empty
    ref            names its low-resolution logits, for `ObjectPrompt.mask`
    """

    counts: str
    size: Size
    predicted_iou: float
    area: int
    bbox: tuple[int, int, int, int]
    ref: str

    def rle(self) -> Mapping[str, Any]:
        """COCO RLE {"size": [h, w], "counts": text}."""
        return {"size": list(self.size), "counts": self.counts}

    def array(self) -> NDArray[np.bool_]:
        """(H, W) bool, decoded now."""
        return coco_rle.decode(self.rle())


@dataclass(frozen=True)
class ObjectAnswer:
    """The masks of one object: three with multimask, else one, in the model's order."""

    masks: tuple[MaskAnswer, ...]

    def best(self) -> MaskAnswer:
        """The mask of highest predicted IoU."""
        return max(self.masks, key=lambda mask: mask.predicted_iou)


@dataclass(frozen=True, eq=False)
class AnsweredBatch:
    """The answers to objects that were decoded together, an object a row.

    name   mask k of row r has the `ref` "name-r.k"
    sizes  of each row's image
    """

    name: str
    sizes: Sequence[Size]
    answers: RleAnswers

    @property
    def masks_each(self) -> int:
        """Masks of an object."""
        return self.answers.low_res.shape[1]

    @cached_property
    def columns(self) -> tuple[list[float], list[int], list[tuple[int, int, int, int]]]:
        """Predicted IoU, area and box of each mask."""
        answers = self.answers
        boxes = [(x, y, w, h) for x, y, w, h in answers.boxes.tolist()]
        return answers.ious.tolist(), answers.areas.tolist(), boxes


class AnsweredObjects(NamedTuple):
    """The answers to the objects of a request: their rows of a batch. Nothing is made for an object
    by itself before somebody asks for it.
    """

    batch: AnsweredBatch
    rows: Sequence[int]

    def answers(self) -> list[ObjectAnswer]:
        """The answer to each object."""
        return [ObjectAnswer(self._masks(row)) for row in self.rows]

    def _masks(self, row: int) -> tuple[MaskAnswer, ...]:
        batch, count = self.batch, self.batch.masks_each
        ious, areas, boxes = batch.columns
        return tuple(
            MaskAnswer(
                batch.answers.counts[i],
                batch.sizes[row],
                ious[i],
                areas[i],
                boxes[i],
                f"{batch.name}-{row}.{k}",
            )
            for k, i in enumerate(range(row * count, (row + 1) * count))
        )
