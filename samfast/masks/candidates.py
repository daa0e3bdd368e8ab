"""Masks of one crop that passed the filters and wait for duplicates to be removed.

Runs are made of those that remain only. Until then a mask is its low-resolution logits, unless those of all would
take too much memory, or nothing is to wait: on a CPU, where upscaling takes long and is done once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.masks import boxes, crops, nms, op, rle, runs
from samfast.masks.boxes import Box
from samfast.masks.frame import Frame
from samfast.masks.halving import Halving
from samfast.masks.memory import Plan
from samfast.masks.options import AutomaticOptions
from samfast.types import Size

Mask = Tensor | NDArray[np.int64]
"""Low-resolution logits (h, w), or runs in the whole image."""


@dataclass(frozen=True)
class View:
    """A crop, XYXY, how it lies in the model's square and in an image of that size, and the masks' threshold."""

    crop: Box
    frame: Frame
    image_size: Size
    threshold: float


@dataclass(frozen=True, eq=False)
class Candidates:
    """N masks; tensors on the decoder's device.

    boxes      (N, 4) int64 XYXY in pixels of the crop
    iou        (N,) float32, predicted
    stability  (N,) float32
    prompts    (N,) int64, which point each is the answer to
    masks      N of them
    """

    boxes: Tensor
    iou: Tensor
    stability: Tensor
    prompts: Tensor
    masks: list[Mask]

    def held(self) -> int:
        """Bytes of logits that wait."""
        return sum(mask.numel() * mask.element_size() for mask in self.masks if isinstance(mask, Tensor))

    def encoded(self, view: View, plan: Plan, halving: Halving) -> Candidates:
        """The same with all masks as runs."""
        masks: list[Mask] = []
        masks += encode(self.masks, view, plan, halving)
        return replace(self, masks=masks)

    def without_duplicates(self, threshold: float) -> Candidates:
        """Best first; of two whose boxes' IoU is above the threshold the better one."""
        kept = nms.keep_there(self.boxes, self.iou, threshold)
        masks = [self.masks[i] for i in kept.tolist()]
        return Candidates(self.boxes[kept], self.iou[kept], self.stability[kept], self.prompts[kept], masks)


def join(parts: Sequence[Candidates]) -> Candidates:
    """All parts' (at least one), in order."""
    return Candidates(
        boxes=torch.cat([part.boxes for part in parts]),
        iou=torch.cat([part.iou for part in parts]),
        stability=torch.cat([part.stability for part in parts]),
        prompts=torch.cat([part.prompts for part in parts]),
        masks=[mask for part in parts for mask in part.masks],
    )


def passing(
    low_res: Tensor, iou: Tensor, prompts: Tensor, view: View, options: AutomaticOptions, plan: Plan
) -> Candidates:
    """Those masks that are stable enough and end at no edge of the crop.

    low_res (n, h, w), iou (n,), prompts (n,); what the decoder itself thinks poor is never upscaled
    """
    if options.pred_iou_thresh > 0:
        good = (iou > options.pred_iou_thresh).nonzero()[:, 0]
        low_res, iou, prompts = low_res[good], iou[good], prompts[good]
    step = plan.masks
    chunks = [slice(start, start + step) for start in range(0, max(1, len(iou)), step)]
    return join(
        [_passing(low_res[own], iou[own], prompts[own], view, options, waits=plan.held > 0) for own in chunks]
    )


def _passing(
    low_res: Tensor, iou: Tensor, prompts: Tensor, view: View, options: AutomaticOptions, *, waits: bool
) -> Candidates:
    whole = None
    asked = low_res, view.frame, view.threshold, options.stability_score_offset
    if waits:
        measures = op.measure(*asked)
    else:
        measures, whole = op.measured_masks(*asked)
    stability = measures.stability()
    height, width = view.image_size
    good = ~boxes.near_crop_edge(measures.boxes, view.crop, (0, 0, width, height))
    if options.stability_score_thresh > 0:
        good &= stability >= options.stability_score_thresh
    kept = good.nonzero()[:, 0]
    masks: list[Mask] = []
    if whole is None:
        masks += low_res[kept].unbind()
    else:
        masks += rle.encode(crops.uncrop(whole[kept], view.crop, view.image_size))
    return Candidates(measures.boxes[kept], iou[kept], stability[kept], prompts[kept], masks)


def encode(masks: Sequence[Mask], view: View, plan: Plan, halving: Halving) -> list[NDArray[np.int64]]:
    """The runs of masks of a crop, in the whole image; those that are runs already stay as they are."""
    waiting = [mask for mask in masks if isinstance(mask, Tensor)]

    def work(start: int, stop: int) -> list[NDArray[np.int64]]:
        words = op.packed(torch.stack(waiting[start:stop]), view.frame, view.threshold)
        return runs.of_packed(words, view.frame.original_size[0], view.crop, view.image_size).split()

    made = iter([own for part in halving.each(len(waiting), plan.masks, work) for own in part])
    return [next(made) if isinstance(mask, Tensor) else mask for mask in masks]
