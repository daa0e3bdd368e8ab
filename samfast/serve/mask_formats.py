"""A mask as a request asks for it: COCO RLE, polygons, PNG, or packed bits. Never dense lists."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from samfast.outputs.polygons import mask_to_polygons
from samfast.serve.messages import MaskAnswer, ObjectAnswer
from samfast.serve.rle_json import mask_json, objects_json


def rle(mask: MaskAnswer) -> Mapping[str, Any]:
    """{"size": [h, w], "counts": text}, COCO RLE."""
    return mask.rle()


def polygons(mask: MaskAnswer) -> Mapping[str, Any]:
    """{"size", "polygons": [{"exterior": [[x, y], ...], "holes": [...]}]} along pixel edges."""
    rings = [
        {"exterior": each.exterior.tolist(), "holes": [hole.tolist() for hole in each.holes]}
        for each in mask_to_polygons(mask.array())
    ]
    return {"size": list(mask.size), "polygons": rings}


def png(mask: MaskAnswer) -> Mapping[str, Any]:
    """{"size", "png": base64} of a PNG of one bit a pixel, white inside."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask.array())).save(buffer, "PNG")
    return {"size": list(mask.size), "png": base64.b64encode(buffer.getvalue()).decode()}


def packed(mask: MaskAnswer) -> Mapping[str, Any]:
    """{"size", "bits": base64}: one bit a pixel, row by row without padding, highest bit first."""
    bits = np.packbits(np.ascontiguousarray(mask.array()))
    return {"size": list(mask.size), "bits": base64.b64encode(bits.tobytes()).decode()}


FORMATS: Mapping[str, Callable[[MaskAnswer], Mapping[str, Any]]] = {
    "rle": rle,
    "polygons": polygons,
    "png": png,
    "packed": packed,
}


def rendered(answers: Sequence[ObjectAnswer], format: str) -> list[dict[str, Any]]:
    """The masks of each object as JSON values."""
    render = FORMATS[format]
    return [
        {
            "masks": [
                {
                    "segmentation": render(mask),
                    "predicted_iou": mask.predicted_iou,
                    "area": mask.area,
                    "bbox": mask.bbox,
                    "ref": mask.ref,
                }
                for mask in each.masks
            ]
        }
        for each in answers
    ]


def rle_json(answers: Sequence[ObjectAnswer]) -> bytes:
    """The JSON {"objects": `rendered(answers, "rle")`}."""
    return objects_json(map(_mask_json, each.masks) for each in answers)


def _mask_json(mask: MaskAnswer) -> str:
    return mask_json(mask.size, mask.counts, mask.predicted_iou, mask.area, mask.bbox, mask.ref)
