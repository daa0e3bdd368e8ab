"""Decoded prompts -> answers on the host: masks, or records whose masks are COCO RLE.

Each image's answer is a job that yields wherever it would wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.decoding.decoder_output import DecoderOutput
from samfast.decoding.image_masks import geometry_of, image_rows, masks_and_rows
from samfast.device.retry import FEWER_OBJECTS, RetryOnOOM
from samfast.device.transfer import AsyncHostCopy, DeviceJob
from samfast.masks import boxes, coco_text, postprocess
from samfast.masks.mask_runs import PixelChanges, chunks_within
from samfast.masks.measures import AREA, BOX, INNER, OUTER
from samfast.masks.resize_geometry import ResizeGeometry
from samfast.prompts.device_checks import DeviceChecks
from samfast.types import Embeddings, Masks, PackedPrompts, Prompts

T = TypeVar("T")

Records = list[dict[str, Any]]
"""Masks of one image, with the original generator's keys."""

STABILITY_OFFSET = 1.0
"""In logits: stability compares the masks at the threshold plus and minus this (the original's)."""

MAX_PACKED_BYTES = 64 << 20
"""Packed masks, a bit a pixel, and memory for their runs, that are made at a time."""


@dataclass(frozen=True, eq=False)
class DecodedPrompts:
    """The answers to prompts of some images, one Prompts each, on the model's device.

    packed      the prompts that were decoded; together they have every image once
    prompts     of each image, as the user gave them
    numbers     of each image in the stream, for messages
    side        of the model's input in pixels
    threshold   masks are true where logits are above it
    """

    output: DecoderOutput
    packed: Sequence[PackedPrompts]
    embeddings: Embeddings
    prompts: Sequence[Prompts]
    numbers: Sequence[int]
    side: int
    threshold: float


AnswerJobs = Callable[[DecodedPrompts], Iterator[tuple[int, DeviceJob[T]]]]
"""Queues work on the device, and gives for each image its index and the job of its answer."""


def mask_answers(decoded: DecodedPrompts) -> Iterator[tuple[int, DeviceJob[Masks]]]:
    """AnswerJobs whose answers are Masks on the host."""
    retry = RetryOnOOM(FEWER_OBJECTS)
    made = masks_and_rows(
        decoded.output,
        decoded.packed,
        decoded.embeddings,
        decoded.side,
        decoded.threshold,
        retry,
    )
    for image, masks, rows in made:
        yield image, _copied(masks, rows, decoded.numbers[image])


def _copied(masks: Tensor, rows: DecoderOutput, number: int) -> DeviceJob[Masks]:
    copy = AsyncHostCopy(masks, rows.iou, rows.low_res, rows.codes)
    yield
    arrays, iou, low_res, codes = copy.wait()
    _check(codes, number)
    return Masks(torch.from_numpy(arrays), torch.from_numpy(iou), torch.from_numpy(low_res))


def record_answers(
    decoded: DecodedPrompts, *, best: bool = False
) -> Iterator[tuple[int, DeviceJob[Records]]]:
    """AnswerJobs whose answers are records: N objects of M masks each, object by object.

    best  one mask an object, that of the highest predicted IoU
    """
    best = best and decoded.output.iou.shape[1] > 1
    for image, rows in image_rows(decoded.output, decoded.packed):
        yield image, _recorded(decoded, image, rows, best)


def _recorded(
    decoded: DecodedPrompts, image: int, rows: DecoderOutput, best: bool
) -> DeviceJob[Records]:
    geometry = geometry_of(decoded.embeddings, image, decoded.side)
    low_res, iou, codes = rows.low_res, rows.iou, rows.codes
    each = 1 if best else iou.shape[1]
    if best:
        index = iou.argmax(dim=1, keepdim=True)
        iou = iou.gather(1, index)
        low_res = low_res.gather(1, index[..., None, None].expand(-1, -1, *low_res.shape[2:]))
    low_res = low_res.flatten(0, 1)
    measured = postprocess.measure(low_res, geometry, decoded.threshold, STABILITY_OFFSET)
    copy = AsyncHostCopy(measured, iou, codes)
    texts = yield from _texts(low_res, geometry, decoded.threshold)
    measures, iou_values, code_values = copy.wait()
    _check(code_values, decoded.numbers[image])
    points = _points(decoded.prompts[image], len(code_values))
    height, width = geometry.original_size
    bbox = boxes.to_xywh(measures[:, BOX]).tolist()
    inner, outer = (measures[:, column].astype(np.float32) for column in (INNER, OUTER))
    stability = (inner / outer.clip(min=1)).tolist()
    return [
        {
            "segmentation": {"size": [height, width], "counts": text},
            "area": int(measures[i, AREA]),
            "bbox": bbox[i],
            "predicted_iou": float(iou_values[i // each, i % each]),
            "point_coords": points[i // each],
            "stability_score": stability[i],
            "crop_box": [0, 0, width, height],
        }
        for i, text in enumerate(texts)
    ]


def _texts(low_res: Tensor, geometry: ResizeGeometry, threshold: float) -> DeviceJob[list[str]]:
    """The masks of logits (N, h, w) as COCO's text, some at a time."""
    height, width = geometry.original_size
    step = max(1, MAX_PACKED_BYTES // (width * -(-height // 32) * 4))
    retry = RetryOnOOM(FEWER_OBJECTS)

    def pack(start: int, stop: int) -> PixelChanges:
        return PixelChanges(postprocess.packed(low_res[start:stop], geometry, threshold), height)

    finishes: list[Callable[[], list[str]]] = []
    for changes in retry.map_chunks(len(low_res), step, pack):
        yield
        for start, stop in chunks_within(changes.bytes(), MAX_PACKED_BYTES):
            finishes.append(coco_text.start_writing(changes.runs(start, stop)))
    yield
    return [text for finish in finishes for text in finish()]


def _check(codes: NDArray[Any], number: int) -> None:
    """NumericsError, naming image and object, for an answer that holds NaN or infinity."""
    DeviceChecks(torch.from_numpy(codes), (number,), (0, len(codes)))()


def _points(prompts: Prompts, count: int) -> list[list[list[float]]]:
    """The points of each object, XY in pixels of the image."""
    if prompts.points is None:
        return [[] for _ in range(count)]
    return [torch.as_tensor(each).reshape(-1, 2).tolist() for each in prompts.points]
