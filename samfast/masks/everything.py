"""Segment everything: a grid of points, their masks filtered, duplicates removed (SAM, sections 5 and B).

The original's `automatic_mask_generator.py`, result for result, on two callables: it knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.masks import boxes, candidates, crops, memory, nms, regions, rle, runs
from samfast.masks.candidates import Candidates, View
from samfast.masks.found import Found, join, objects
from samfast.masks.frame import Frame
from samfast.masks.halving import Halving
from samfast.masks.memory import Plan
from samfast.masks.options import AutomaticOptions
from samfast.masks.strings import strings
from samfast.types import Size

Features = TypeVar("Features")
Encode = Callable[[NDArray[np.uint8]], Features]
Decode = Callable[[Features, Tensor], tuple[Tensor, Tensor]]


def generate(
    pixels: NDArray[np.uint8],
    options: AutomaticOptions,
    encode: Encode[Features],
    decode: Decode[Features],
    *,
    side: int,
    input_size: Callable[[Size, int], Size],
    mask_threshold: float = 0.0,
    device: torch.device | None = None,
    objects_at_a_time: int | None = None,
) -> list[dict[str, Any]]:
    """Every mask of an image, as records with the original generator's keys.

    pixels      (H, W, 3) uint8
    encode      pixels of a crop (h, w, 3) -> whatever decode wants as its first argument
    decode      that, and points (n, 1, 2) float64 on the host, XY in the model's input pixels, each the
                foreground point of one object -> low-resolution logits (n, M, s, s) and predicted IoU (n, M)
    side        the model's input side in pixels
    input_size  size of a crop, side -> its size inside the model's input (`samfast.images.input_size`)
    device      where decode answers, whose memory is to suffice; None: a CPU
    objects_at_a_time
                decode itself takes no more at a time than these, however many it is given; None: it takes all
    returns     one record a mask: `segmentation`, `area`, `bbox` XYWH, `predicted_iou`, `point_coords`,
                `stability_score`, `crop_box` XYWH; none if no mask passes

    Raises InputError if options.max_memory does not suffice for one mask, DeviceMemoryError if the GPU runs out of
    memory nevertheless.
    """
    found = find(pixels, options, encode, decode, side, input_size, mask_threshold, device, objects_at_a_time)
    return records(found, (pixels.shape[0], pixels.shape[1]), options.output_mode)


def find(
    pixels: NDArray[np.uint8],
    options: AutomaticOptions,
    encode: Encode[Features],
    decode: Decode[Features],
    side: int,
    input_size: Callable[[Size, int], Size],
    mask_threshold: float = 0.0,
    device: torch.device | None = None,
    objects_at_a_time: int | None = None,
) -> Found:
    """The masks of `generate`, before they are written as records."""
    size = (pixels.shape[0], pixels.shape[1])
    device = device or torch.device("cpu")
    grids = options.grids()
    layers = crops.crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    halving = Halving()
    parts = []
    for crop, layer in layers:
        x0, y0, x1, y1 = crop
        crop_size = (y1 - y0, x1 - x0)
        frame = Frame(input_size(crop_size, side), crop_size, side)
        total = memory.available(options.max_memory, device)
        plan = memory.plan(options.max_memory, total, frame, size, device, objects_at_a_time)
        view = View(crop, frame, size, mask_threshold)
        features = encode(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
        parts.append(_in_crop(view, grids[layer], options, plan, halving, partial(decode, features)))
    found = join(parts)
    if len(layers) > 1:
        area = (found.crop_boxes[:, 2] - found.crop_boxes[:, 0]) * (
            found.crop_boxes[:, 3] - found.crop_boxes[:, 1]
        )
        scores = np.float32(1) / area.astype(np.float32)  # of two, the one from the smaller crop stays
        found = found.pick(nms.keep(found.boxes, scores, options.crop_nms_thresh))
    if options.min_mask_region_area > 0:
        threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
        found = without_small_regions(found, size, options.min_mask_region_area, threshold)
    return found


def _in_crop(
    view: View,
    grid: NDArray[np.float64],
    options: AutomaticOptions,
    plan: Plan,
    halving: Halving,
    decode: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Found:
    """The masks of one crop, duplicates removed, in the whole image's frame."""
    height, width = view.frame.original_size
    points = grid * np.array([width, height])
    scale = np.array([view.frame.input_size[1] / width, view.frame.input_size[0] / height])
    placed = torch.from_numpy(points * scale)[:, None]

    def batch(start: int, stop: int) -> Candidates:
        low_res, iou = decode(placed[start:stop])
        prompts = torch.arange(start, stop, device=iou.device).repeat_interleave(iou.shape[1])
        return candidates.passing(
            low_res.flatten(0, 1), iou.flatten(0, 1).float(), prompts, view, options, plan
        )

    waiting: list[Candidates] = []
    for part in halving.each(len(points), min(options.points_per_batch, plan.objects), batch):
        waiting.append(part)
        if sum(own.held() for own in waiting) > plan.held:
            waiting = [own.encoded(view, plan, halving) for own in waiting]
    kept = candidates.join(waiting).without_duplicates(options.box_nms_thresh)
    corner = np.array(view.crop[:2])
    return Found(
        boxes=kept.boxes.cpu().numpy() + np.tile(corner, 2),
        iou=kept.iou.cpu().numpy(),
        stability=kept.stability.cpu().numpy(),
        points=points[kept.prompts.cpu().numpy()] + corner,
        crop_boxes=np.tile(np.array(view.crop), (len(kept.masks), 1)),
        runs=objects(candidates.encode(kept.masks, view, plan, halving)),
    )


def without_small_regions(found: Found, size: Size, area: float, nms_threshold: float) -> Found:
    """Holes and islands of fewer pixels than `area` removed, and duplicates that this makes.

    Masks that needed no change are the better ones (original: `postprocess_small_regions`).
    """
    cleaned, around, unchanged = clean(found.runs, size, area)
    kept = nms.keep(around, unchanged, nms_threshold)
    around = np.where(unchanged[:, None], found.boxes, around)
    return replace(found, boxes=around, runs=cleaned).pick(kept)


def clean(
    found: Sequence[Any] | NDArray[np.object_], size: Size, area: float
) -> tuple[NDArray[np.object_], NDArray[np.int64], NDArray[np.bool_]]:
    """Each mask without its small holes and islands: runs, boxes (N, 4), and which masks were left alone."""
    cleaned: list[Any] = []
    around = np.zeros((len(found), 4), dtype=np.int64)
    unchanged = np.ones(len(found), dtype=bool)
    for index, own in enumerate(found):
        mask, filled = regions.remove_small(rle.decode(rle.uncompressed(own, *size)), area, "holes")
        mask, dropped = regions.remove_small(mask, area, "islands")
        unchanged[index] = not (filled or dropped)
        pixels = torch.from_numpy(np.ascontiguousarray(mask))[None]
        around[index] = boxes.from_masks(pixels)[0].numpy()
        cleaned.append(own if unchanged[index] else rle.encode(pixels)[0])
    return objects(cleaned), around, unchanged


def records(found: Found, size: Size, output_mode: str) -> list[dict[str, Any]]:
    """Masks of an image of that size as the original's records."""
    out = []
    bbox, crop_box = boxes.to_xywh(found.boxes), boxes.to_xywh(found.crop_boxes)
    for index, segmentation in enumerate(_segmentations(found.runs, size, output_mode)):
        out.append(
            {
                "segmentation": segmentation,
                "area": int(found.runs[index][1::2].sum()),
                "bbox": bbox[index].tolist(),
                "predicted_iou": found.iou[index].item(),
                "point_coords": [found.points[index].tolist()],
                "stability_score": found.stability[index].item(),
                "crop_box": crop_box[index].tolist(),
            }
        )
    return out


def _segmentations(own: NDArray[np.object_], size: Size, output_mode: str) -> list[Any]:
    if output_mode == "coco_rle":
        return [{"size": list(size), "counts": text} for text in strings(runs.join(list(own), size))]
    if output_mode == "binary_mask":
        return [rle.decode({"size": size, "counts": each}) for each in own]
    return [rle.uncompressed(each, *size) for each in own]
