"""Automatic mask generation (SAM, section 5 and appendix B), the original's result for result.

The steps, in the order of the original's `automatic_mask_generator.py`:

    point grid                             `cut_image`, for the image and each crop
    encode, decode                         `PointDecoder`, batch by batch
    predicted IoU, stability, crop edges   `_process_batch`
    NMS, encode as RLE                     `_process_crop`
    NMS across crops, small regions        `finish`

Batches and crops are jobs of `samfast.device.pipeline`, so that the device is kept busy.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from samfast.automatic_masks import candidates, filters, logit_crops, mask_encoding
from samfast.automatic_masks.candidates import MeasuredMasks
from samfast.automatic_masks.crop_nms import remove_crop_duplicates
from samfast.automatic_masks.crop_state import CropState, PointRange
from samfast.automatic_masks.generated_masks import GeneratedMasks, Mask, join
from samfast.automatic_masks.image_crops import CropGroup, cut_image
from samfast.automatic_masks.mask_encoding import Convert, encode
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.point_batches import PointDecoder
from samfast.automatic_masks.point_model import Features, Inputs, PointModel
from samfast.automatic_masks.small_regions import remove_small_regions
from samfast.decoding.decoder_output import DecoderOutput
from samfast.device import pipeline
from samfast.device.pipeline import JobQueue
from samfast.device.transfer import DeviceJob
from samfast.masks import nms


def generate(
    pixels: NDArray[np.uint8],
    options: AutomaticOptions,
    model: PointModel[NDArray[np.uint8], Features],
) -> GeneratedMasks:
    """The masks of an image (H, W, 3) uint8, whose crops are encoded one by one.

    Raises InputError if options.max_memory does not suffice for one mask, DeviceMemoryError if the
    GPU runs out of memory nevertheless, NumericsError for output that is not finite.
    """

    def groups() -> Iterator[CropGroup[NDArray[np.uint8]]]:
        for crop in cut_image(0, (pixels.shape[0], pixels.shape[1]), options, model):
            x0, y0, x1, y1 = crop.box
            yield CropGroup([crop], np.ascontiguousarray(pixels[y0:y1, x0:x1]))

    (masks,) = generate_each(groups(), model, options)
    return masks


def generate_each(
    groups: Iterable[CropGroup[Inputs]],
    model: PointModel[Inputs, Features],
    options: AutomaticOptions,
    points_done: Callable[[int], object] = lambda count: None,
) -> Generator[GeneratedMasks, None, None]:
    """The masks of each image of a stream, in order.

    groups       of crops of one image or of several (`cut_image`)
    points_done  called with the number of points of each batch once its masks are filtered

    Raises as `generate`, and the errors of groups, after the masks of all images before.
    """
    for crops in crops_of_each(groups, model, options, points_done):
        yield finish(crops, options)


def crops_of_each(
    groups: Iterable[CropGroup[Inputs]],
    model: PointModel[Inputs, Features],
    options: AutomaticOptions,
    points_done: Callable[[int], object] = lambda count: None,
) -> Generator[list[GeneratedMasks], None, None]:
    """As `generate_each`, the masks of each image crop by crop, for `finish`, which needs no device
    and may be called in another thread.
    """
    return pipeline.run(partial(_queue_batches, groups, model, options, points_done))


def _queue_batches(
    groups: Iterable[CropGroup[Inputs]],
    model: PointModel[Inputs, Features],
    options: AutomaticOptions,
    points_done: Callable[[int], object],
    queue: JobQueue[GeneratedMasks],
) -> Iterator[None]:
    """Encode crops and decode their points; stops after each batch, whose jobs were started."""
    decoder = PointDecoder(model, options, queue, partial(_start_filters, options, queue))
    for batch in decoder.batches(groups):
        queue.next_batch()
        for points, filtering in batch:
            image = points.state.crop.image
            queue.start(image, _process_batch(points, filtering, points_done, queue))
            if points.is_last:
                queue.start(image, _process_crop(points.state, options, model.device, queue))
        yield


def _start_filters(
    options: AutomaticOptions,
    queue: JobQueue[GeneratedMasks],
    points: PointRange,
    output: DecoderOutput,
) -> DeviceJob[GeneratedMasks]:
    """Measure masks and filter them by predicted IoU, stability and crop edges."""

    def passes(masks: MeasuredMasks) -> NDArray[np.bool_]:
        steps = (
            filters.above_predicted_iou(masks.iou, options.pred_iou_thresh),
            filters.stable(masks.stability, options.stability_score_thresh),
            filters.inside_crop(masks.boxes, points.state.crop),
        )
        passed: NDArray[np.bool_] = np.logical_and.accumulate(steps)
        return passed

    measure = candidates.deferred if queue.deferred else candidates.eager
    filtering = measure(output, points, options, passes)
    next(filtering)
    return filtering


def _process_batch(
    points: PointRange,
    filtering: DeviceJob[GeneratedMasks],
    points_done: Callable[[int], object],
    queue: JobQueue[GeneratedMasks],
) -> DeviceJob[None]:
    """Keep a batch's candidates; as runs, if too many bytes of logits wait already."""
    state = points.state
    place = len(state.candidates)
    state.candidates.append(None)
    yield
    masks = yield from filtering
    held_bytes = logit_crops.memory_of(masks.masks)
    if queue.held_bytes + held_bytes > state.plan.waiting_bytes:
        runs = yield from encode(masks.masks, state, mask_encoding.on_device)
        masks, held_bytes = replace(masks, masks=runs), 0
    queue.held_bytes += held_bytes
    state.held_bytes += held_bytes
    state.candidates[place] = masks
    points_done(points.stop - points.start)


def _process_crop(
    state: CropState,
    options: AutomaticOptions,
    device: torch.device,
    queue: JobQueue[GeneratedMasks],
) -> DeviceJob[None]:
    """Remove duplicates within a crop and encode the masks that remain."""
    while None in state.candidates:
        yield
    masks = join([batch for batch in state.candidates if batch is not None])
    state.candidates.clear()
    keep = nms.start_keeping(masks.boxes, masks.iou, options.box_nms_thresh, device)
    logit_crops.cut(masks.masks)
    yield
    kept = keep()
    masks = masks.pick(kept)
    counts = replace(masks.counts, duplicates=len(kept))
    masks = replace(masks, counts=counts)
    held_bytes = logit_crops.memory_of(masks.masks)
    queue.held_bytes += held_bytes - state.held_bytes
    state.held_bytes = held_bytes
    # The clean-up of small regions needs runs.
    as_text = options.output_mode == "coco_rle" and options.min_mask_region_area <= 0
    convert: Convert[Mask] = mask_encoding.as_text if as_text else mask_encoding.on_host
    encoded = yield from encode(masks.masks, state, convert)
    queue.held_bytes -= state.held_bytes
    queue.put(state.crop.image, state.crop.index, replace(masks, masks=encoded))


def finish(crops: Sequence[GeneratedMasks], options: AutomaticOptions) -> GeneratedMasks:
    """Remove duplicates between the crops of an image, and small regions."""
    masks = join(crops)
    if len(crops) > 1:
        masks = remove_crop_duplicates(masks, options.crop_nms_thresh)
    unique = len(masks.masks)
    if options.min_mask_region_area > 0:
        masks = remove_small_regions(masks, options)
    counts = replace(masks.counts, crop_duplicates=unique, small_regions=len(masks.masks))
    return replace(masks, counts=counts)
