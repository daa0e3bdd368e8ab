"""The decoder's output for some points of a crop -> measured, filtered candidate masks.

On a GPU candidates wait as parts of their logits until duplicates are removed, unless too many
bytes wait. On a CPU, where upscaling takes long, masks are measured and encoded in one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.automatic_masks import logit_crops
from samfast.automatic_masks.crop_state import CropState
from samfast.automatic_masks.generated_masks import GeneratedMasks, Mask, join
from samfast.automatic_masks.image_crops import Crop, uncrop
from samfast.automatic_masks.options import AutomaticOptions
from samfast.decoding.decoder_output import DecoderOutput
from samfast.device.transfer import AsyncHostCopy, Steps, to_device
from samfast.device.triton_support import has_triton
from samfast.errors import NumericsError
from samfast.masks import postprocess, rle


class MeasuredMasks(NamedTuple):
    """N masks of a crop, on the host: predicted IoU, box XYXY in the crop, pixels, stability."""

    iou: NDArray[np.float32]
    boxes: NDArray[np.int64]
    area: NDArray[np.int64]
    stability: NDArray[np.float32]


Passes = Callable[[MeasuredMasks], NDArray[np.bool_]]
"""Whether each mask passes the filters."""


def deferred(
    output: DecoderOutput,
    first: int,
    state: CropState,
    options: AutomaticOptions,
    passes: Passes,
) -> Steps[GeneratedMasks]:
    """The candidates as parts of their logits.

    The first step queues the measuring and the copies to the host, the second waits for these.
    Masks of low predicted IoU are not upscaled.

    first  number of the first of the output's points in the crop

    Raises NumericsError for output that is not finite.
    """
    crop, low_res, iou = state.crop, output.low_res.flatten(0, 1), output.iou.flatten().float()
    wanted = iou > options.pred_iou_thresh if options.pred_iou_thresh > 0 else None
    # The kernel takes no memory for a mask.
    step = len(iou) if has_triton(iou.device) else state.plan.masks
    tables = []
    for start in range(0, len(iou), step):
        chunk = slice(start, start + step)
        measures = postprocess.measure(
            low_res[chunk],
            crop.geometry,
            crop.threshold,
            options.stability_score_offset,
            None if wanted is None else wanted[chunk],
        )
        tables.append(measures.table)
    table = tables[0] if len(tables) == 1 else torch.cat(tables)
    copy = AsyncHostCopy(table, iou, output.codes)
    yield
    host_table, host_iou, codes = copy()
    _check_finite(codes, crop, first)
    measured = _measured(host_iou, host_table)
    kept = np.flatnonzero(passes(measured))
    size = (low_res.shape[1], low_res.shape[2])
    places = logit_crops.places_of(measured.boxes[kept], crop.geometry, size)
    crops = logit_crops.cut(low_res, kept, places).crops()
    return _candidates(crop, measured, kept, first + kept // output.iou.shape[1], crops)


def eager(
    output: DecoderOutput,
    first: int,
    state: CropState,
    options: AutomaticOptions,
    passes: Passes,
) -> Steps[GeneratedMasks]:
    """As `deferred`, as run lengths on the host; the first step does nothing."""
    yield
    crop, step = state.crop, state.plan.masks
    _check_finite(output.codes.cpu().numpy(), crop, first)
    low_res, iou = output.low_res.flatten(0, 1), output.iou.flatten().float()
    wanted = torch.arange(len(iou), device=iou.device)
    if options.pred_iou_thresh > 0:
        wanted = (iou > options.pred_iou_thresh).nonzero()[:, 0]
    parts = []
    for start in range(0, max(1, len(wanted)), step):
        chunk = wanted[start : start + step]
        measures, masks = postprocess.measured_masks(
            low_res[chunk], crop.geometry, crop.threshold, options.stability_score_offset
        )
        measured = _measured(iou[chunk].cpu().numpy(), measures.table.cpu().numpy())
        kept = np.flatnonzero(passes(measured))
        index = to_device(kept, iou.device)
        prompts = first + chunk[index].cpu().numpy() // output.iou.shape[1]
        runs = rle.encode(uncrop(masks[index], crop.box, crop.image_size))
        parts.append(_candidates(crop, measured, kept, prompts, runs))
    return join(parts)


def _measured(iou: NDArray[np.float32], table: NDArray[np.int32]) -> MeasuredMasks:
    """The masks of a table of `samfast.masks.measures.Measures`."""
    inner, outer = table[:, 1], table[:, 2]
    with np.errstate(invalid="ignore", divide="ignore"):  # two empty masks: NaN
        stability: NDArray[np.float32] = np.divide(inner, outer, dtype=np.float32)
    return MeasuredMasks(
        iou, table[:, 3:].astype(np.int64), table[:, 0].astype(np.int64), stability
    )


def _candidates(
    crop: Crop,
    measured: MeasuredMasks,
    kept: NDArray[np.int64],
    prompts: NDArray[np.int64],
    masks: list[Mask],
) -> GeneratedMasks:
    """The kept masks in the image; prompts (k,) are the numbers of their points in the crop."""
    corner = np.array(crop.box[:2])
    return GeneratedMasks(
        boxes=measured.boxes[kept] + np.tile(corner, 2),
        area=measured.area[kept],
        iou=measured.iou[kept],
        stability=measured.stability[kept],
        points=crop.points[prompts] + corner,
        crop_boxes=np.tile(np.array(crop.box), (len(kept), 1)),
        masks=masks,
        size=crop.image_size,
    )


def _check_finite(codes: NDArray[np.uint8], crop: Crop, first: int) -> None:
    wrong = np.flatnonzero(codes)
    if len(wrong):
        raise NumericsError(
            f"image {crop.image}, object {first + int(wrong[0])}: the answer holds NaN or "
            "infinity; so do the weights, or their dtype is too narrow: take a recipe in bf16 or "
            "fp32"
        )
