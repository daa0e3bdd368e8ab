"""Segment everything: a grid of points, their masks filtered, duplicates removed (SAM, sections 5 and B).

The original's `automatic_mask_generator.py`, result for result, on two callables: it knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.masks import boxes, crops, nms, regions, rle, stability, upscale
from samfast.masks.boxes import Box
from samfast.masks.options import AutomaticOptions
from samfast.types import Size

Features = TypeVar("Features")
Encode = Callable[[NDArray[np.uint8]], Features]
Decode = Callable[[Features, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Found:
    """N masks, as columns.

    boxes, crop_boxes  (N, 4) int64 XYXY in pixels: of the mask, and of the crop it was found in
    iou, stability     (N,) float32
    points             (N, 2) float64 XY, the prompt
    runs               (N,) objects, the runs of each mask (`samfast.masks.rle`) in the whole image
    """

    boxes: NDArray[np.int64]
    iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    points: NDArray[np.float64]
    crop_boxes: NDArray[np.int64]
    runs: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.boxes)

    def pick(self, index: NDArray[np.int64]) -> Found:
        """The masks of those indices, in their order."""
        return Found(*(getattr(self, field.name)[index] for field in fields(self)))


def generate(
    pixels: NDArray[np.uint8],
    options: AutomaticOptions,
    encode: Encode[Features],
    decode: Decode[Features],
    *,
    side: int,
    input_size: Callable[[Size, int], Size],
    mask_threshold: float = 0.0,
) -> list[dict[str, Any]]:
    """Every mask of an image, as records with the original generator's keys.

    pixels      (H, W, 3) uint8
    encode      pixels of a crop (h, w, 3) -> whatever decode wants as its first argument
    decode      that, and points (n, 1, 2) float64 on the host, XY in the model's input pixels, each the
                foreground point of one object -> low-resolution logits (n, M, s, s) and predicted IoU (n, M)
    side        the model's input side in pixels
    input_size  size of a crop, side -> its size inside the model's input (`samfast.images.input_size`)
    returns     one record a mask: `segmentation`, `area`, `bbox` XYWH, `predicted_iou`, `point_coords`,
                `stability_score`, `crop_box` XYWH; none if no mask passes
    """
    found = find(pixels, options, encode, decode, side, input_size, mask_threshold)
    return records(found, (pixels.shape[0], pixels.shape[1]), options.output_mode)


def find(
    pixels: NDArray[np.uint8],
    options: AutomaticOptions,
    encode: Encode[Features],
    decode: Decode[Features],
    side: int,
    input_size: Callable[[Size, int], Size],
    mask_threshold: float = 0.0,
) -> Found:
    """The masks of `generate`, before they are written as records."""
    size = (pixels.shape[0], pixels.shape[1])
    grids = options.grids()
    layers = crops.crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    parts = []
    for crop, layer in layers:
        x0, y0, x1, y1 = crop
        crop_size = (y1 - y0, x1 - x0)
        view = _View(crop, crop_size, size, input_size(crop_size, side), side, mask_threshold)
        features = encode(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
        parts.append(_in_crop(view, grids[layer], options, partial(decode, features)))
    found = _join(parts)
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


@dataclass(frozen=True)
class _View:
    """A crop, and how it lies in the image and in the model's input."""

    crop: Box
    size: Size
    image_size: Size
    input_size: Size
    side: int
    threshold: float


def _in_crop(
    view: _View,
    grid: NDArray[np.float64],
    options: AutomaticOptions,
    decode: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Found:
    """The masks of one crop, duplicates removed, in the whole image's frame."""
    height, width = view.size
    points = grid * np.array([width, height])
    scale = np.array([view.input_size[1] / width, view.input_size[0] / height])
    parts = []
    for start in range(0, len(points), options.points_per_batch):
        batch = points[start : start + options.points_per_batch]
        low_res, iou = decode(torch.from_numpy(batch * scale)[:, None])
        prompts = torch.from_numpy(batch.repeat(iou.shape[1], axis=0))
        parts += _filter(low_res.flatten(0, 1), iou.flatten(0, 1).float(), prompts, view, options)
    found = _join(parts)
    found = found.pick(nms.keep(found.boxes, found.iou, options.box_nms_thresh))
    corner = np.array(view.crop[:2])
    return replace(found, boxes=found.boxes + np.tile(corner, 2), points=found.points + corner)


def _filter(
    low_res: Tensor, iou: Tensor, points: Tensor, view: _View, options: AutomaticOptions
) -> list[Found]:
    """The masks that pass, boxes and points still in the crop's frame.

    low_res (n, s, s), iou (n,), points (n, 2). What the decoder itself thinks poor is never upscaled, and
    the rest a few at a time: at the original size the masks of one batch can fill a memory.
    """
    points = points.to(iou.device)
    if options.pred_iou_thresh > 0:
        good = iou > options.pred_iou_thresh
        low_res, iou, points = low_res[good], iou[good], points[good]
    if len(low_res) == 0:
        return []
    step = upscale.at_a_time(view.size, view.side, low_res.device)
    parts = []
    for start in range(0, len(low_res), step):
        chunk = slice(start, start + step)
        logits = upscale.logits(low_res[chunk, None], view.input_size, view.size, view.side)[:, 0]
        stable = stability.score(logits, view.threshold, options.stability_score_offset)
        masks = logits > view.threshold
        del logits
        around = boxes.from_masks(masks)
        image = (0, 0, view.image_size[1], view.image_size[0])
        good = ~boxes.near_crop_edge(around, view.crop, image)
        if options.stability_score_thresh > 0:
            good &= stable >= options.stability_score_thresh
        whole = crops.uncrop(masks[good], view.crop, view.image_size)
        parts.append(
            Found(
                boxes=around[good].cpu().numpy(),
                iou=iou[chunk][good].cpu().numpy(),
                stability=stable[good].cpu().numpy(),
                points=points[chunk][good].cpu().numpy(),
                crop_boxes=np.tile(np.array(view.crop), (len(whole), 1)),
                runs=_objects(rle.encode(whole)),
            )
        )
    return parts


def without_small_regions(found: Found, size: Size, area: float, nms_threshold: float) -> Found:
    """Holes and islands of fewer pixels than `area` removed, and duplicates that this makes.

    Masks that needed no change are the better ones (original: `postprocess_small_regions`).
    """
    runs, around, unchanged = clean(found.runs, size, area)
    kept = nms.keep(around, unchanged, nms_threshold)
    around = np.where(unchanged[:, None], found.boxes, around)
    return replace(found, boxes=around, runs=runs).pick(kept)


def clean(
    runs: Sequence[Any] | NDArray[np.object_], size: Size, area: float
) -> tuple[NDArray[np.object_], NDArray[np.int64], NDArray[np.bool_]]:
    """Each mask without its small holes and islands: runs, boxes (N, 4), and which masks were left alone."""
    cleaned: list[Any] = []
    around = np.zeros((len(runs), 4), dtype=np.int64)
    unchanged = np.ones(len(runs), dtype=bool)
    for index, own in enumerate(runs):
        mask, filled = regions.remove_small(rle.decode(rle.uncompressed(own, *size)), area, "holes")
        mask, dropped = regions.remove_small(mask, area, "islands")
        unchanged[index] = not (filled or dropped)
        pixels = torch.from_numpy(np.ascontiguousarray(mask))[None]
        around[index] = boxes.from_masks(pixels)[0].numpy()
        cleaned.append(own if unchanged[index] else rle.encode(pixels)[0])
    return _objects(cleaned), around, unchanged


def records(found: Found, size: Size, output_mode: str) -> list[dict[str, Any]]:
    """Masks of an image of that size as the original's records."""
    out = []
    bbox, crop_box = boxes.to_xywh(found.boxes), boxes.to_xywh(found.crop_boxes)
    for index, runs in enumerate(found.runs):
        out.append(
            {
                "segmentation": _segmentation(runs, size, output_mode),
                "area": int(runs[1::2].sum()),
                "bbox": bbox[index].tolist(),
                "predicted_iou": found.iou[index].item(),
                "point_coords": [found.points[index].tolist()],
                "stability_score": found.stability[index].item(),
                "crop_box": crop_box[index].tolist(),
            }
        )
    return out


def _segmentation(runs: NDArray[np.int64], size: Size, output_mode: str) -> Any:
    if output_mode == "binary_mask":
        return rle.decode({"size": size, "counts": runs})
    own = rle.uncompressed(runs, *size)
    return rle.compress(own) if output_mode == "coco_rle" else own


def _objects(runs: list[Any]) -> NDArray[np.object_]:
    """A column of arrays; NumPy would make a matrix of them if they were of one length."""
    column = np.empty(len(runs), dtype=object)
    for index, own in enumerate(runs):
        column[index] = own
    return column


def _join(parts: list[Found]) -> Found:
    if not parts:
        return Found(
            boxes=np.zeros((0, 4), dtype=np.int64),
            iou=np.zeros(0, dtype=np.float32),
            stability=np.zeros(0, dtype=np.float32),
            points=np.zeros((0, 2)),
            crop_boxes=np.zeros((0, 4), dtype=np.int64),
            runs=_objects([]),
        )
    return Found(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Found)))
