"""Clean-up of generated masks: small holes and islands (original: `postprocess_small_regions`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.automatic_masks.options import AutomaticOptions
from samfast.masks import nms, run_regions


def remove_small_regions(masks: GeneratedMasks, options: AutomaticOptions) -> GeneratedMasks:
    """Fill small holes, drop small islands, and remove the duplicates that this makes.

    masks  their runs are on the host

    Of duplicates, a mask that needed no change stays.
    """
    runs: Any = masks.masks
    cleaned = run_regions.remove_small(runs, masks.size, options.min_mask_region_area)
    threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
    kept = nms.keep(cleaned.boxes, cleaned.unchanged, threshold)
    boxes = np.where(cleaned.unchanged[:, None], masks.boxes, cleaned.boxes)
    return replace(masks, boxes=boxes, area=cleaned.area, masks=cleaned.runs).pick(kept)
