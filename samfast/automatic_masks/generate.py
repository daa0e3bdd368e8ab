"""Segment everything: a grid of points, their masks filtered, duplicates removed (SAM, sections 5
and B).

The original's `automatic_mask_generator.py`, result for result, on two callables: it knows no
model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.automatic_masks.candidates import Answer
from samfast.automatic_masks.generated_masks import GeneratedMasks, join, objects
from samfast.automatic_masks.options import AutomaticOptions
from samfast.automatic_masks.pipeline import Group, Inputs, Model, cut, stream
from samfast.masks import boxes, mask_runs, nms, regions, rle
from samfast.masks.coco_text import strings
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
    decode      that, and points (n, 1, 2) float64 on the host, XY in the model's input pixels, each
                the foreground point of one object -> low-resolution logits (n, M, s, s) and
                predicted IoU (n, M)
    side        the model's input side in pixels
    input_size  size of a crop, side -> its size inside the model's input
                (`samfast.images.input_size`)
    device      where decode answers, whose memory is to suffice; None: a CPU
    objects_at_a_time
                decode itself takes no more at a time than these, however many it is given; None: it
                takes all
    returns     one record a mask: `segmentation`, `area`, `bbox` XYWH, `predicted_iou`,
                `point_coords`, `stability_score`, `crop_box` XYWH; none if no mask passes

    Raises InputError if options.max_memory does not suffice for one mask, DeviceMemoryError if the
    GPU runs out of memory nevertheless.
    """
    found = find(
        pixels, options, encode, decode, side, input_size, mask_threshold, device, objects_at_a_time
    )
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
) -> GeneratedMasks:
    """The masks of `generate`, before they are written as records: as COCO's text if that is the
    output mode.
    """
    model = Model(
        encode,
        lambda features, pieces: Answer(*decode(features, pieces[0][1])),
        side,
        input_size,
        mask_threshold,
        device or torch.device("cpu"),
        objects_at_a_time,
    )

    def groups() -> Iterator[Group[NDArray[np.uint8]]]:
        for crop in cut(0, (pixels.shape[0], pixels.shape[1]), options, model):
            x0, y0, x1, y1 = crop.view.crop
            yield Group([crop], np.ascontiguousarray(pixels[y0:y1, x0:x1]))

    (found,) = (own for _, own in find_each(groups(), model, options))
    return found


def find_each(
    groups: Iterable[Group[Inputs]], model: Model[Inputs, Features], options: AutomaticOptions
) -> Generator[tuple[Size, GeneratedMasks], None, None]:
    """Of each image of a stream its size (height, width) and its masks, as `find`; raises as
    `stream`.
    """
    cleans = options.min_mask_region_area > 0  # which takes the masks' pixels
    texts = options.output_mode == "coco_rle" and not cleans
    for size, parts in stream(groups, model, options, texts=texts):
        found = join(parts)
        if len(parts) > 1:
            area = (found.crop_boxes[:, 2] - found.crop_boxes[:, 0]) * (
                found.crop_boxes[:, 3] - found.crop_boxes[:, 1]
            )
            scores = np.float32(1) / area.astype(
                np.float32
            )  # of two, the one from the smaller crop stays
            found = found.pick(nms.keep(found.boxes, scores, options.crop_nms_thresh))
        if cleans:
            threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
            found = without_small_regions(found, size, options.min_mask_region_area, threshold)
        yield size, found


def without_small_regions(
    found: GeneratedMasks, size: Size, area: float, nms_threshold: float
) -> GeneratedMasks:
    """Holes and islands of fewer pixels than `area` removed, and duplicates that this makes.

    Masks that needed no change are the better ones (original: `postprocess_small_regions`).
    """
    cleaned, around, unchanged = clean(found.masks, size, area)
    kept = nms.keep(around, unchanged, nms_threshold)
    around = np.where(unchanged[:, None], found.boxes, around)
    areas = np.array([own[1::2].sum() for own in cleaned], dtype=np.int64)
    return replace(found, boxes=around, area=areas, masks=cleaned).pick(kept)


def clean(
    found: Sequence[Any] | NDArray[np.object_], size: Size, area: float
) -> tuple[NDArray[np.object_], NDArray[np.int64], NDArray[np.bool_]]:
    """Each mask without its small holes and islands: runs, boxes (N, 4), and which masks were left
    alone.
    """
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


def records(found: GeneratedMasks, size: Size, output_mode: str) -> list[dict[str, Any]]:
    """Masks of an image of that size as the original's records; masks that are text already are
    COCO's.
    """
    out = []
    bbox, crop_box = boxes.to_xywh(found.boxes), boxes.to_xywh(found.crop_boxes)
    for index, segmentation in enumerate(_segmentations(found.masks, size, output_mode)):
        out.append(
            {
                "segmentation": segmentation,
                "area": int(found.area[index]),
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
        texts = (
            own
            if len(own) and isinstance(own[0], str)
            else strings(mask_runs.join(list(own), size))
        )
        return [{"size": list(size), "counts": text} for text in texts]
    if output_mode == "binary_mask":
        return [rle.decode({"size": size, "counts": each}) for each in own]
    return [rle.uncompressed(each, *size) for each in own]
