"""The decoder's output for some points of a crop -> measured, filtered candidate masks.

On a GPU candidates wait as parts of their logits until duplicates are removed, unless too many
bytes wait. On a CPU, where upscaling takes long, masks are measured and encoded in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks import logit_crops
from samfast.automatic_masks.crop_state import PointRange
from samfast.automatic_masks.generated_masks import GeneratedMasks, Mask, join
from samfast.automatic_masks.image_crops import Crop, uncrop
from samfast.automatic_masks.options import AutomaticOptions
from samfast.decoding.decoder_output import DecoderOutput
from samfast.device.transfer import AsyncHostCopy, DeviceJob, to_device
from samfast.device.triton_support import has_triton
from samfast.errors import NumericsError
from samfast.masks import postprocess, rle
from samfast.masks.measures import AREA, BOX, INNER, OUTER
from samfast.types import FilterCounts


class MeasuredMasks(NamedTuple):
    """N masks of a crop, on the host: predicted IoU, box XYXY in the crop, pixels, stability."""

    iou: NDArray[np.float32]
    boxes: NDArray[np.int64]
    area: NDArray[np.int64]
    stability: NDArray[np.float32]


Passes = Callable[[MeasuredMasks], NDArray[np.bool_]]
"""(3, N): whether each mask passes the first filter, the first two, and all three: predicted IoU,
stability, crop edges."""


def deferred(
    output: DecoderOutput, points: PointRange, options: AutomaticOptions, passes: Passes
) -> DeviceJob[GeneratedMasks]:
    """The candidates as parts of their logits.

    The first step queues the measuring and the copies to the host, the second waits for these.
    Masks of low predicted IoU are not upscaled.

    Raises NumericsError for output that is not finite.
    """
    crop, low_res, iou = points.state.crop, *_flat(output)
    wanted = iou > options.pred_iou_thresh if options.pred_iou_thresh > 0 else None
    # The kernel takes no memory for a mask.
    step = len(iou) if has_triton(iou.device) else points.state.plan.masks
    how = crop.geometry, crop.threshold, options.stability_score_offset
    tables = []
    for start in range(0, len(iou), step):
        chunk = slice(start, start + step)
        part = None if wanted is None else wanted[chunk]
        tables.append(postprocess.measure(low_res[chunk], *how, part))
    table = tables[0] if len(tables) == 1 else torch.cat(tables)
    copy = AsyncHostCopy(table, iou, output.codes)
    yield
    host_table, host_iou, codes = copy.wait()
    _check_finite(codes, points)
    measured = _measured(host_iou, host_table)
    passed = passes(measured)
    kept = np.flatnonzero(passed[-1])
    counts = FilterCounts(len(output.iou), len(iou), *passed.sum(1).tolist())
    size = (low_res.shape[1], low_res.shape[2])
    places = logit_crops.places_of(measured.boxes[kept], crop.geometry, size)
    batch = logit_crops.LogitCropBatch(low_res, kept, places)
    if not points.is_last:  # those of the last batch are cut while duplicates are looked for
        batch.cut()
    prompts = points.start + kept // output.iou.shape[1]
    return _candidates(crop, measured, kept, prompts, batch.crops(), counts)


def eager(
    output: DecoderOutput, points: PointRange, options: AutomaticOptions, passes: Passes
) -> DeviceJob[GeneratedMasks]:
    """As `deferred`, as run lengths on the host; the first step does nothing."""
    yield
    crop, step = points.state.crop, points.state.plan.masks
    _check_finite(output.codes.cpu().numpy(), points)
    low_res, iou = _flat(output)
    wanted = torch.arange(len(iou), device=iou.device)
    if options.pred_iou_thresh > 0:
        wanted = (iou > options.pred_iou_thresh).nonzero()[:, 0]
    parts = []
    for start in range(0, max(1, len(wanted)), step):
        chunk = wanted[start : start + step]
        table, masks = postprocess.measured_masks(
            low_res[chunk], crop.geometry, crop.threshold, options.stability_score_offset
        )
        measured = _measured(iou[chunk].cpu().numpy(), table.cpu().numpy())
        passed = passes(measured)
        kept = np.flatnonzero(passed[-1])
        counts = FilterCounts(0, 0, *passed.sum(1).tolist())
        index = to_device(kept, iou.device)
        prompts = points.start + chunk[index].cpu().numpy() // output.iou.shape[1]
        runs = rle.encode(uncrop(masks[index], crop.box, crop.image_size))
        parts.append(_candidates(crop, measured, kept, prompts, runs, counts))
    joined = join(parts)
    # Only masks of sufficient predicted IoU were measured.
    counts = replace(joined.counts, points=len(output.iou), candidates=len(iou))
    return replace(joined, counts=counts)


def _measured(iou: NDArray[np.float32], table: NDArray[np.int32]) -> MeasuredMasks:
    """The masks of a table of `samfast.masks.measures`."""
    boxes, area = table[:, BOX].astype(np.int64), table[:, AREA].astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):  # two empty masks: NaN
        stability: NDArray[np.float32] = np.divide(
            table[:, INNER], table[:, OUTER], dtype=np.float32
        )
    return MeasuredMasks(iou, boxes, area, stability)


def _candidates(
    crop: Crop,
    measured: MeasuredMasks,
    kept: NDArray[np.int64],
    prompts: NDArray[np.int64],
    masks: Sequence[Mask],
    counts: FilterCounts,
) -> GeneratedMasks:
    """The kept masks in the image; prompts (k,) are the numbers of their points in the crop."""
    x0, y0, _, _ = crop.box
    return GeneratedMasks(
        boxes=measured.boxes[kept] + np.array([x0, y0, x0, y0]),
        area=measured.area[kept],
        iou=measured.iou[kept],
        stability=measured.stability[kept],
        points=crop.points[prompts] + np.array([x0, y0]),
        crop_boxes=np.broadcast_to(np.array(crop.box), (len(kept), 4)),
        masks=masks,
        size=crop.image_size,
        counts=counts,
    )


def _flat(output: DecoderOutput) -> tuple[Tensor, Tensor]:
    """Logits (n, h, w) and predicted IoU (n,) of the masks of all points."""
    return output.low_res.flatten(0, 1), output.iou.flatten().float()


def _check_finite(codes: NDArray[np.uint8], points: PointRange) -> None:
    wrong = np.flatnonzero(codes)
    if len(wrong):
        raise NumericsError(
            f"image {points.state.crop.image}, object {points.start + int(wrong[0])}: the answer "
            "holds NaN or infinity; so do the weights, or their dtype is too narrow: take a "
            "recipe in bf16 or fp32"
        )
