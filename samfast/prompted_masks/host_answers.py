"""Decoded prompts -> answers on the host: masks, or records whose masks are COCO RLE.

Each image's answer is a job that yields wherever it would wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.decoding.decoded_prompts import DecodedPrompts
from samfast.decoding.decoder_output import DecoderOutput
from samfast.decoding.image_masks import geometry_of, image_offsets, masks_and_rows
from samfast.device.retry import FEWER_OBJECTS, RetryOnOOM
from samfast.device.transfer import AsyncHostCopy, DeviceJob
from samfast.masks import boxes
from samfast.masks.measures import AREA, BOX, INNER, OUTER
from samfast.prompted_masks.encoded_rows import EncodedRows, Group
from samfast.prompts.device_checks import DeviceChecks
from samfast.types import Masks, Prompts, RleAnswers, RleMasks

T = TypeVar("T")

Records = list[dict[str, Any]]
"""Masks of one image, with the original generator's keys."""


AnswerJobs = Callable[[DecodedPrompts], Iterator[tuple[int, DeviceJob[T]]]]
"""Queues work on the device, and gives for each image its index and the job of its answer."""


def mask_answers(decoded: DecodedPrompts) -> Iterator[tuple[int, DeviceJob[Masks]]]:
    """AnswerJobs whose answers are Masks on the host."""
    retry = RetryOnOOM(FEWER_OBJECTS)
    for image, masks, rows in masks_and_rows(decoded, retry):
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

    The objects of all images are encoded together.
    """
    offsets = image_offsets(decoded.packed)
    if offsets:
        encoded = EncodedRows(decoded.output, groups_of(decoded), decoded.threshold, best=best)
        for image, start, stop in offsets:
            yield image, _recorded(decoded, image, encoded, start, stop)


def groups_of(decoded: DecodedPrompts) -> list[Group]:
    """The objects of neighbouring images of one geometry."""
    groups = []
    embeddings = decoded.embeddings
    for _, each in groupby(
        image_offsets(decoded.packed),
        lambda entry: (embeddings.input_sizes[entry[0]], embeddings.original_sizes[entry[0]]),
    ):
        images = list(each)
        geometry = geometry_of(embeddings, images[0][0], decoded.side)
        groups.append((geometry, images[0][1], images[-1][2]))
    return groups


def _recorded(
    decoded: DecodedPrompts, image: int, encoded: EncodedRows, start: int, stop: int
) -> DeviceJob[Records]:
    yield
    encoded.start_texts()
    yield
    rows = encoded.on_host.part(start, stop)
    _check(rows.codes, decoded.numbers[image])
    each = rows.iou.shape[1]
    points = _points(decoded.prompts[image], stop - start)
    height, width = decoded.embeddings.original_sizes[image]
    area, bbox = rows.measures[:, AREA].tolist(), boxes.to_xywh(rows.measures[:, BOX]).tolist()
    inner, outer = (rows.measures[:, column].astype(np.float32) for column in (INNER, OUTER))
    stability = (inner / outer.clip(min=1)).tolist()
    iou = rows.iou.ravel().tolist()
    return [
        {
            "segmentation": {"size": [height, width], "counts": text},
            "area": area[i],
            "bbox": bbox[i],
            "predicted_iou": iou[i],
            "point_coords": points[i // each],
            "stability_score": stability[i],
            "crop_box": [0, 0, width, height],
        }
        for i, text in enumerate(rows.texts)
    ]


def rle_masks(decoded: DecodedPrompts) -> list[RleMasks]:
    """The masks of each image as COCO's text; all work is queued before anything is waited for.

    Raises NumericsError for an answer that holds NaN or infinity.
    """
    offsets = image_offsets(decoded.packed)
    if not offsets:
        return []
    answers = rle_answers(decoded)
    # Lists of all masks, which are cut for each image: a call for each of many images takes longer
    # than all that it does.
    areas, ious = answers.areas.tolist(), answers.ious.tolist()
    corners, each = list(map(tuple, answers.boxes.tolist())), answers.low_res.shape[1]
    results: dict[int, RleMasks] = {}
    for image, start, stop in offsets:
        part = slice(start * each, stop * each)
        results[image] = RleMasks(
            decoded.embeddings.original_sizes[image],
            answers.counts[part],
            areas[part],
            corners[part],
            ious[part],
            answers.low_res[start:stop],
        )
    return [results[i] for i in range(len(decoded.embeddings))]


def rle_answers(decoded: DecodedPrompts) -> RleAnswers:
    """The masks of all objects as COCO's text, in the order of the packed prompts; all work is
    queued before anything is waited for. Raises as `rle_masks`.
    """
    output = decoded.output
    rows = EncodedRows(output, groups_of(decoded), decoded.threshold).on_host
    if rows.codes.any():
        for image, start, stop in image_offsets(decoded.packed):
            _check(rows.codes[start:stop], decoded.numbers[image])
    areas, boxes = rows.measures[:, AREA], _boxes(rows.measures)
    return RleAnswers(rows.texts, areas, boxes, rows.iou.ravel(), output.low_res)


def _boxes(measures: NDArray[Any]) -> NDArray[Any]:
    """The box (x, y, width, height) around each mask, in whole pixels; zeros if it is empty."""
    corners = measures[:, BOX]
    size = (corners[:, 2:] - corners[:, :2] + 1) * (measures[:, AREA, None] > 0)
    return np.concatenate([corners[:, :2], size], 1)


def _check(codes: NDArray[Any], number: int) -> None:
    """NumericsError, naming image and object, for an answer that holds NaN or infinity."""
    DeviceChecks(torch.from_numpy(codes), (number,), (0, len(codes)))()


def _points(prompts: Prompts, count: int) -> list[list[list[float]]]:
    """The points of each object, XY in pixels of the image."""
    if prompts.points is None:
        return [[] for _ in range(count)]
    return [torch.as_tensor(each).reshape(-1, 2).tolist() for each in prompts.points]
