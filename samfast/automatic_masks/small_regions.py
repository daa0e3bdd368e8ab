"""Clean-up of generated masks: small holes and islands (original: `postprocess_small_regions`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samfast import coco_rle
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.options import AutomaticOptions
from samfast.masks import boxes, nms, regions, rle
from samfast.types import Size


def remove_small_regions(masks: GeneratedMasks, options: AutomaticOptions) -> GeneratedMasks:
    """Fill small holes, drop small islands, and remove the duplicates that this makes.

    Of duplicates, a mask that needed no change stays.
    """
    runs, cleaned_boxes, unchanged = clean(masks.masks, masks.size, options.min_mask_region_area)
    threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
    kept = nms.keep(cleaned_boxes, unchanged, threshold)
    cleaned_boxes = np.where(unchanged[:, None], masks.boxes, cleaned_boxes)
    area = np.array([mask_runs[1::2].sum() for mask_runs in runs], dtype=np.int64)
    return replace(masks, boxes=cleaned_boxes, area=area, masks=runs).pick(kept)


def clean(
    masks: Sequence[Any], size: Size, area: float
) -> tuple[list[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """Each mask, as runs, without holes and islands of fewer pixels than `area`.

    returns  N arrays of runs, boxes (N, 4), and which masks are unchanged (N,)
    """
    cleaned: list[Any] = []
    cleaned_boxes = np.zeros((len(masks), 4), dtype=np.int64)
    unchanged = np.ones(len(masks), dtype=bool)
    for index, runs in enumerate(masks):
        mask = coco_rle.decode({"size": size, "counts": runs})
        mask, filled = regions.remove_small(mask, area, "holes")
        mask, dropped = regions.remove_small(mask, area, "islands")
        unchanged[index] = not (filled or dropped)
        pixels = torch.from_numpy(np.ascontiguousarray(mask))[None]
        cleaned_boxes[index] = boxes.from_masks(pixels)[0].numpy()
        cleaned.append(runs if unchanged[index] else rle.encode(pixels)[0])
    return cleaned, cleaned_boxes, unchanged
