"""`--point` and `--box`: the objects that they describe, and the records that answer them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samfast.cli.image_files import ImageFile
from samfast.cli.segment_everything import ReadFile, Records, read
from samfast.errors import SamfastError

if TYPE_CHECKING:
    from torch import Tensor

    from samfast.engine import SamFast
    from samfast.images import LoadedImage
    from samfast.types import Embeddings, Masks, Prompts

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class PromptedObject:
    """One object, described by clicks, a box or both.

    points  (x, y, label) in pixels of the image, label 1 foreground or 0 background
    box     (x0, y0, x1, y1) in pixels of the image, or None
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None

    @property
    def ambiguous(self) -> bool:
        """Whether several masks would be right: a single click may mean a part or the whole."""
        return self.box is None and len(self.points) == 1


def prompted_objects(points: Sequence[Point], boxes: Sequence[Box]) -> tuple[PromptedObject, ...]:
    """All points are one object, and each box is one; a single box and the points are the same."""
    if points and len(boxes) == 1:
        return (PromptedObject(tuple(points), boxes[0]),)
    clicked = (PromptedObject(tuple(points)),) if points else ()
    return clicked + tuple(PromptedObject(box=box) for box in boxes)


def prompts_of(objects: Sequence[PromptedObject]) -> Prompts:
    """All points and boxes of the objects: for one object its prompts, for several an overlay's."""
    from samfast.types import Prompts

    clicked = [each.points for each in objects if each.points]
    return Prompts(
        points=[[[x, y] for x, y, _ in points] for points in clicked] or None,
        labels=[[label for _, _, label in points] for points in clicked] or None,
        boxes=[list(each.box) for each in objects if each.box is not None] or None,
    )


def segment_prompted(
    sam: SamFast, files: Sequence[ImageFile], objects: Sequence[PromptedObject], all_masks: bool
) -> Iterator[tuple[ReadFile, Records | Exception]]:
    """The records of each file, in order, or the error that it failed with.

    all_masks  three masks for each object instead of the best
    """
    for start in range(0, len(files), sam.batch_size):
        batch = [read(file) for file in files[start : start + sam.batch_size]]
        images = [each.image for each in batch if each.image is not None]
        answers = iter(_answer(sam, images, objects, all_masks))
        for each in batch:
            yield each, next(answers) if each.error is None else each.error


def _answer(
    sam: SamFast, images: Sequence[LoadedImage], objects: Sequence[PromptedObject], all_masks: bool
) -> list[Records | Exception]:
    """The records of each image, or its error; a batch that fails is repeated image by image."""
    import torch

    if not images:
        return []
    try:
        return [*_records_of_batch(sam, sam.embed(images), objects, all_masks)]
    except (SamfastError, torch.OutOfMemoryError) as error:
        if len(images) == 1:
            return [error]
        return [answer for image in images for answer in _answer(sam, [image], objects, all_masks)]


def _records_of_batch(
    sam: SamFast, embeddings: Embeddings, objects: Sequence[PromptedObject], all_masks: bool
) -> list[Records]:
    """The records of each image: one for each object, or three with `all_masks`, best first.

    The records have the original generator's keys, `point_labels` and `input_box`. Raises
    PromptError if an object lies outside an image.
    """
    records: list[Records] = [[] for _ in range(len(embeddings))]
    for each in objects:
        multimask = each.ambiguous or all_masks
        prompts = [prompts_of([each])] * len(embeddings)
        answers = sam.predict(embeddings, prompts, multimask=multimask)
        for image, masks in enumerate(answers):
            stability = _stability(masks, embeddings[image], sam.image_size)
            records[image] += _records(masks, stability, each, all_masks)
    return records


def _records(masks: Masks, stability: Tensor, prompted: PromptedObject, all_masks: bool) -> Records:
    from samfast.outputs import records_of

    points = [[(x, y) for x, y, _ in prompted.points]]
    records = records_of(masks, stability, points, best=not all_masks)
    for record in records:
        record["point_labels"] = [label for _, _, label in prompted.points]
        record["input_box"] = None if prompted.box is None else list(prompted.box)
    return sorted(records, key=lambda record: -float(record["predicted_iou"]))


def _stability(masks: Masks, embedded: Embeddings, side: int) -> Tensor:
    """(1, M): the original's stability score at its offset of 1; 0 for an empty mask."""
    from samfast.device.checked_tensor import plain
    from samfast.masks import postprocess
    from samfast.masks.measures import INNER, OUTER
    from samfast.masks.resize_geometry import ResizeGeometry

    geometry = ResizeGeometry(embedded.input_sizes[0], embedded.original_sizes[0], side)
    # Plain tensors are enough: `records_of` verifies the answer before it reads the score.
    measures = postprocess.measure(plain(masks.low_res).flatten(0, 1), geometry, 0.0, 1.0)
    return (measures[:, INNER] / measures[:, OUTER].clamp(min=1)).view(masks.low_res.shape[:2])


def parse_point(text: str) -> Point:
    """For argparse: "X,Y" or "X,Y,LABEL"."""
    numbers = _numbers(text)
    if len(numbers) == 2:
        return numbers[0], numbers[1], 1
    if len(numbers) == 3 and numbers[2] in (0, 1):
        return numbers[0], numbers[1], int(numbers[2])
    raise argparse.ArgumentTypeError(
        f"{text!r} is not X,Y or X,Y,LABEL with label 1 or 0, for example 120,80,0"
    )


def parse_box(text: str) -> Box:
    """For argparse: "X0,Y0,X1,Y1", the upper left corner first."""
    numbers = _numbers(text)
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not X0,Y0,X1,Y1, for example 40,30,200,160")
    x0, y0, x1, y1 = numbers
    if not (x0 < x1 and y0 < y1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is inverted or empty; a box needs X0 < X1 and Y0 < Y1"
        )
    return x0, y0, x1, y1


def _numbers(text: str) -> list[float]:
    """The finite numbers between commas; empty if there is anything else."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
