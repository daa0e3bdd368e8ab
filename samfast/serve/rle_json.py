"""The JSON of a mask as COCO RLE, and of the objects of an answer. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def mask_json(
    size: Sequence[int], counts: str, iou: float, area: int, bbox: Sequence[int], ref: str
) -> str:
    """A mask's JSON, for which `json` takes longer: every click has some.

    size  height, width;  bbox  x, y, width, height
    """
    height, width = size
    x, y, w, h = bbox
    counts = counts.replace("\\", "\\\\")  # COCO's letters are from 0 to o
    return (
        f'{{"segmentation":{{"size":[{height},{width}],"counts":"{counts}"}},'
        f'"predicted_iou":{iou!r},"area":{area},"bbox":[{x},{y},{w},{h}],"ref":"{ref}"}}'
    )


def objects_json(objects: Iterable[Iterable[str]]) -> bytes:
    """The answer whose objects have masks of this JSON."""
    each = ",".join('{"masks":[' + ",".join(masks) + "]}" for masks in objects)
    return f'{{"objects":[{each}]}}'.encode()
