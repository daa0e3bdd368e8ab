"""Masks of one crop that passed the filters and wait for duplicates to be removed.

Runs are made of those that remain only. Until then a mask is a part of its low-resolution logits,
unless those of all would take too much memory, or nothing is to wait: on a CPU, where upscaling
takes long and is done once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks import image_crops, logit_crops
from samfast.automatic_masks.logit_crops import LogitCrop
from samfast.automatic_masks.memory_plan import Plan
from samfast.automatic_masks.options import AutomaticOptions
from samfast.device.transfer import AsyncHostCopy, to_device
from samfast.device.triton_support import has_triton
from samfast.masks import boxes, postprocess, rle
from samfast.masks.boxes import Box
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.types import Size

Mask = LogitCrop | Tensor | NDArray[np.int64]
"""Logits on the device, or runs in the whole image (R,), on the device or on the host."""


@dataclass(frozen=True)
class View:
    """A crop, XYXY, how it lies in the model's square and in an image of that size, and the masks'
    threshold.
    """

    crop: Box
    frame: ResizeGeometry
    image_size: Size
    threshold: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says about some objects, on its device.

    low_res  (n, M, h, w) logits;  iou (n, M), predicted
    codes    (n,) uint8, not 0 where these hold NaN or infinity; None: nobody looked
    """

    low_res: Tensor
    iou: Tensor
    codes: Tensor | None = None

    def part(self, start: int, stop: int) -> Answer:
        """Some of the objects, uncopied."""
        codes = None if self.codes is None else self.codes[start:stop]
        return Answer(self.low_res[start:stop], self.iou[start:stop], codes)


@dataclass(frozen=True, eq=False)
class Candidates:
    """N masks; all but the masks themselves on the host.

    boxes      (N, 4) int64 XYXY in pixels of the crop
    area       (N,) int64, pixels
    iou        (N,) float32, predicted
    stability  (N,) float32
    prompts    (N,) int64, which point of the crop each is the answer to
    masks      N of them
    """

    boxes: NDArray[np.int64]
    area: NDArray[np.int64]
    iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    prompts: NDArray[np.int64]
    masks: list[Mask]

    def held(self) -> int:
        """Bytes of logits that wait."""
        return logit_crops.held(self.masks)

    def pick(self, kept: NDArray[np.int64]) -> Candidates:
        """Those of these indices; of the logits of the others nothing stays in memory."""
        masks: list[Mask] = [self.masks[i] for i in kept.tolist()]
        waiting = {i: mask for i, mask in enumerate(masks) if isinstance(mask, LogitCrop)}
        if waiting:
            for i, copy in zip(
                waiting, logit_crops.joined([*waiting.values()]).each(), strict=True
            ):
                masks[i] = copy
        return Candidates(
            self.boxes[kept],
            self.area[kept],
            self.iou[kept],
            self.stability[kept],
            self.prompts[kept],
            masks,
        )


def join(parts: Sequence[Candidates]) -> Candidates:
    """All parts' (at least one), in order."""
    return Candidates(
        boxes=np.concatenate([part.boxes for part in parts]),
        area=np.concatenate([part.area for part in parts]),
        iou=np.concatenate([part.iou for part in parts]),
        stability=np.concatenate([part.stability for part in parts]),
        prompts=np.concatenate([part.prompts for part in parts]),
        masks=[mask for part in parts for mask in part.masks],
    )


class DeferredCandidates:
    """The answers for some points of a crop, measured; the numbers are on their way to the host.

    first  the number of the first point
    What the decoder itself thinks poor is never upscaled.
    """

    def __init__(
        self, answer: Answer, first: int, view: View, options: AutomaticOptions, plan: Plan
    ) -> None:
        self._view, self._options, self._first = view, options, first
        self._each = answer.iou.shape[1]
        self._low_res = answer.low_res.flatten(0, 1)
        iou = answer.iou.flatten().float()
        wanted = iou > options.pred_iou_thresh if options.pred_iou_thresh > 0 else None
        # Where the kernel runs, no number of masks takes memory.
        step = len(iou) if has_triton(iou.device) else plan.masks
        parts = []
        for start in range(0, len(iou), step):
            own = slice(start, start + step)
            asked = view.frame, view.threshold, options.stability_score_offset
            some = None if wanted is None else wanted[own]
            parts.append(postprocess.measure(self._low_res[own], *asked, some).table)
        codes = [] if answer.codes is None else [answer.codes]
        self._reading = AsyncHostCopy(
            parts[0] if len(parts) == 1 else torch.cat(parts), iou, *codes
        )

    def non_finite(self) -> int | None:
        """The first point whose answer is not to be trusted; waits for the GPU, the first time."""
        return _unsound(self._reading.wait()[2:], self._first)

    def passing(self) -> Candidates:
        """Those masks that are good and stable enough and end at no edge of the crop; waits as
        `non_finite`.
        """
        table, iou = self._reading.wait()[:2]
        good = (
            iou > np.float32(self._options.pred_iou_thresh)
            if self._options.pred_iou_thresh > 0
            else None
        )
        kept, measures = _passing(table, self._view, self._options, good)
        size = (self._low_res.shape[1], self._low_res.shape[2])
        places = logit_crops.around(measures.boxes, self._view.frame, size)
        masks: list[Mask] = [*logit_crops.cut(self._low_res, kept, places).each()]
        prompts = self._first + kept // self._each
        return Candidates(
            measures.boxes, measures.area, iou[kept], measures.stability, prompts, masks
        )


class EagerCandidates:
    """As `DeferredCandidates`, with masks encoded at once; nothing is done before `passing`."""

    def __init__(
        self, answer: Answer, first: int, view: View, options: AutomaticOptions, plan: Plan
    ) -> None:
        self._answer, self._first, self._view, self._options, self._plan = (
            answer,
            first,
            view,
            options,
            plan,
        )

    def non_finite(self) -> int | None:
        """As `DeferredCandidates`."""
        codes = self._answer.codes
        return None if codes is None else _unsound([codes.cpu().numpy()], self._first)

    def passing(self) -> Candidates:
        """As `DeferredCandidates`."""
        options, step = self._options, self._plan.masks
        low_res, iou = self._answer.low_res.flatten(0, 1), self._answer.iou.flatten().float()
        good = torch.arange(len(iou), device=iou.device)
        if options.pred_iou_thresh > 0:
            good = (iou > options.pred_iou_thresh).nonzero()[:, 0]
        chunks = [good[start : start + step] for start in range(0, max(1, len(good)), step)]
        return join([self._chunk(low_res[own], iou[own], own) for own in chunks])

    def _chunk(self, low_res: Tensor, iou: Tensor, places: Tensor) -> Candidates:
        view, options = self._view, self._options
        measures, whole = postprocess.measured_masks(
            low_res, view.frame, view.threshold, options.stability_score_offset
        )
        kept, own = _passing(measures.table.cpu().numpy(), view, options)
        index = to_device(kept, iou.device)
        points = places[index].cpu().numpy() // self._answer.iou.shape[1]
        masks: list[Mask] = []
        masks += rle.encode(image_crops.uncrop(whole[index], view.crop, view.image_size))
        return Candidates(
            own.boxes,
            own.area,
            iou[index].cpu().numpy(),
            own.stability,
            self._first + points,
            masks,
        )


class _Own(NamedTuple):
    """Those columns of Candidates that are measured."""

    boxes: NDArray[np.int64]
    area: NDArray[np.int64]
    stability: NDArray[np.float32]


def _passing(
    table: NDArray[np.int32],
    view: View,
    options: AutomaticOptions,
    good: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], _Own]:
    """Which of the masks of a table of `Measures` pass, of those that are good, and what they
    measure.
    """
    area, inner, outer = table[:, 0].astype(np.int64), table[:, 1], table[:, 2]
    around = table[:, 3:].astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):  # two empty masks: NaN
        stability: NDArray[np.float32] = np.divide(inner, outer, dtype=np.float32)
    height, width = view.image_size
    good = np.ones(len(table), dtype=np.bool_) if good is None else good.copy()
    if view.crop != (0, 0, width, height):  # else an edge of the crop is the image's
        good &= ~boxes.near_crop_edge(
            torch.from_numpy(around), view.crop, (0, 0, width, height)
        ).numpy()
    if options.stability_score_thresh > 0:
        good &= stability >= np.float32(options.stability_score_thresh)
    kept = np.flatnonzero(good)
    return kept, _Own(around[kept], area[kept], stability[kept])


def _unsound(codes: Sequence[NDArray[np.uint8]], first: int) -> int | None:
    wrong = [int(place) for own in codes for place in np.flatnonzero(own)]
    return first + wrong[0] if wrong else None
