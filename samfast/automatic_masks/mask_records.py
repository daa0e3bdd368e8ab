"""Generated masks -> records with the original generator's keys."""

from __future__ import annotations

from typing import Any

from samfast import coco_rle
from samfast.automatic_masks.generated_masks import GeneratedMasks
from samfast.masks import boxes, mask_runs, rle
from samfast.masks.coco_text import strings
from samfast.types import MaskRecords


def to_records(masks: GeneratedMasks, output_mode: str) -> MaskRecords:
    """One record a mask; `segmentation` is in that mode of `AutomaticOptions.output_mode`."""
    # A column at a time: an image has a hundred masks, and each has these values.
    columns = (
        masks.area.tolist(),
        boxes.to_xywh(masks.boxes).tolist(),
        masks.iou.tolist(),
        masks.points.tolist(),
        masks.stability.tolist(),
        boxes.to_xywh(masks.crop_boxes).tolist(),
    )
    records = [
        {
            "segmentation": segmentation,
            "area": area,
            "bbox": bbox,
            "predicted_iou": iou,
            "point_coords": [point],
            "stability_score": stability,
            "crop_box": crop_box,
        }
        for segmentation, area, bbox, iou, point, stability, crop_box in zip(
            _segmentations(masks, output_mode), *columns, strict=True
        )
    ]
    return MaskRecords(records, masks.size, masks.counts)


def _segmentations(masks: GeneratedMasks, output_mode: str) -> list[Any]:
    size, encoded = masks.size, list[Any](masks.masks)
    if output_mode == "coco_rle":
        is_text = bool(encoded) and isinstance(encoded[0], str)
        texts = encoded if is_text else strings(mask_runs.join(encoded, size))
        return [{"size": list(size), "counts": text} for text in texts]
    if output_mode == "binary_mask":
        return [coco_rle.decode({"size": size, "counts": runs}) for runs in encoded]
    return [rle.uncompressed(runs, *size) for runs in encoded]
