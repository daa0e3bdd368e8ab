"""Masks of the objects that points and boxes describe, and the records that answer them."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from samfast.cli.image_files import ImageFile
from samfast.cli.prompt_files import Box, Objects, Point, PromptedObject
from samfast.cli.segment_everything import Answer, ReadFile, Records, read
from samfast.errors import PromptError, SamfastError

if TYPE_CHECKING:
    from torch import Tensor

    from samfast.engine import SamFast
    from samfast.images import LoadedImage
    from samfast.types import Embeddings, Masks, Prompts, Size

MAX_MASK_BYTES = 1 << 28
"""Most bytes of masks that one call of `predict` returns; each takes a byte per pixel."""


def prompted_objects(points: Sequence[Point], boxes: Sequence[Box]) -> Objects:
    """All points are one object, and each box is one; a single box and the points are the same."""
    if points and len(boxes) == 1:
        return (PromptedObject(tuple(points), boxes[0]),)
    clicked = (PromptedObject(tuple(points)),) if points else ()
    return clicked + tuple(PromptedObject(box=box) for box in boxes)


def prompts_of(objects: Sequence[PromptedObject]) -> Prompts:
    """All points and boxes of the objects: prompts, if they are of one kind, or an overlay's."""
    from samfast.types import Prompts

    clicked = [each.points for each in objects if each.points]
    return Prompts(
        points=[[[x, y] for x, y, _ in points] for points in clicked] or None,
        labels=[[label for _, _, label in points] for points in clicked] or None,
        boxes=[list(each.box) for each in objects if each.box is not None] or None,
    )


def segment_prompted(
    sam: SamFast,
    files: Sequence[ImageFile],
    objects_of: Callable[[ImageFile], Objects],
    all_masks: bool,
) -> Iterator[tuple[ReadFile, Answer]]:
    """The records of each file, in order, or the error that it failed with.

    all_masks  three masks for each object instead of the best
    """
    from samfast.types import Embeddings

    for start in range(0, len(files), sam.batch_size):
        batch = [read(file) for file in files[start : start + sam.batch_size]]
        embedded = iter(_embed(sam, [each.image for each in batch if each.image is not None]))
        for each in batch:
            answer: Answer | Embeddings = each.error or next(embedded)
            if isinstance(answer, Embeddings):
                answer = _answer(sam, answer, objects_of(each.file), all_masks)
            yield each, answer


def _embed(sam: SamFast, images: Sequence[LoadedImage]) -> list[Embeddings | Exception]:
    """Those of each image, or its error; a batch that fails is repeated image by image."""
    import torch

    if not images:
        return []
    try:
        embeddings = sam.embed(images)
    except (SamfastError, torch.OutOfMemoryError) as error:
        if len(images) == 1:
            return [error]
        return [each for image in images for each in _embed(sam, [image])]
    return [embeddings[index] for index in range(len(images))]


def _answer(sam: SamFast, embedded: Embeddings, objects: Objects, all_masks: bool) -> Answer:
    """The records of an image: one for each object, or three with `all_masks`, best first.

    The records have the original generator's keys, `point_labels` and `input_box`; PromptError if
    an object lies outside the image.
    """
    import torch

    records: dict[int, Records] = {}
    try:
        for numbers, multimask in _calls(objects, embedded.original_sizes[0], all_masks):
            members = [objects[number] for number in numbers]
            try:
                (masks,) = sam.predict(embedded, [prompts_of(members)], multimask=multimask)
            except PromptError as error:
                raise _renumbered(error, numbers) from None
            stability = _stability(masks, embedded, sam.image_size)
            answers = _records(masks, stability, members, all_masks)
            records.update(zip(numbers, answers, strict=True))
    except (SamfastError, torch.OutOfMemoryError) as error:
        return error
    return [record for number in sorted(records) for record in records[number]]


def _calls(objects: Objects, size: Size, all_masks: bool) -> Iterator[tuple[list[int], bool]]:
    """The numbers of the objects that `predict` takes together, and whether it gives three masks.

    They are of one kind, and their masks take no more than MAX_MASK_BYTES.
    """
    kinds: dict[tuple[bool, bool, bool], list[int]] = {}
    for number, each in enumerate(objects):
        kind = (bool(each.points), each.box is not None, each.ambiguous or all_masks)
        kinds.setdefault(kind, []).append(number)
    for (_, _, multimask), numbers in kinds.items():
        step = max(1, MAX_MASK_BYTES // (size[0] * size[1] * (3 if multimask else 1)))
        for start in range(0, len(numbers), step):
            yield numbers[start : start + step], multimask


def _renumbered(error: PromptError, numbers: Sequence[int]) -> PromptError:
    """The error with the object's number among all objects instead of among those of the call."""
    text = re.sub(r"object (\d+)", lambda found: f"object {numbers[int(found[1])]}", str(error))
    return PromptError(text)


def _records(
    masks: Masks, stability: Tensor, objects: Sequence[PromptedObject], all_masks: bool
) -> list[Records]:
    """The records of each object."""
    from samfast.outputs import records_of

    points = [[(x, y) for x, y, _ in each.points] for each in objects]
    records = records_of(masks, stability, points, best=not all_masks)
    each_has = len(records) // len(objects)
    by_object = []
    for number, prompted in enumerate(objects):
        of_object = records[number * each_has : (number + 1) * each_has]
        for record in of_object:
            record.update(_prompt_keys(prompted))
        by_object.append(sorted(of_object, key=lambda record: -float(record["predicted_iou"])))
    return by_object


def _prompt_keys(prompted: PromptedObject) -> dict[str, Any]:
    """What a record says of its prompt besides its points."""
    keys = {
        "point_labels": [label for _, _, label in prompted.points],
        "input_box": None if prompted.box is None else list(prompted.box),
        "category_id": prompted.category_id,
        "annotation_id": prompted.annotation_id,
    }
    optional = ("category_id", "annotation_id")
    return {key: value for key, value in keys.items() if value is not None or key not in optional}


def _stability(masks: Masks, embedded: Embeddings, side: int) -> Tensor:
    """(N, M): the original's stability score at its offset of 1; 0 for an empty mask."""
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
