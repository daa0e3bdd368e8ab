"""Masks of the objects that points and boxes describe, and the records that answer them."""

from __future__ import annotations

import argparse
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from samfast.cli.image_files import ImageFile
from samfast.cli.image_reader import ImageReader, ReadFile
from samfast.cli.prompt_files import Box, Objects, Point, PromptedObject
from samfast.cli.segment_everything import Answer, Records
from samfast.errors import SamfastError

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.images import LoadedImage
    from samfast.types import Prompts

MAX_OBJECTS = 256
"""Most objects that are asked together; each takes up to 768 KiB of logits."""


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
    reader: ImageReader,
) -> Iterator[tuple[ReadFile, Answer]]:
    """The records of each file, in order, or the error that it failed with.

    One record for each object, or three with `all_masks`, best first. They have the original
    generator's keys, `point_labels` and `input_box`.
    """
    from samfast.prompted_masks.answer_stream import PromptedImage, Question

    # What was asked about the files that are not yet answered. The engine reads ahead, on a thread.
    asked: deque[list[list[int]]] = deque()

    def images() -> Iterator[PromptedImage]:
        for file in files:
            objects, calls = objects_of(file), list(_calls(objects_of(file), all_masks))
            asked.append([numbers for numbers, _ in calls])
            yield PromptedImage(
                file,
                [
                    Question(prompts_of([objects[number] for number in numbers]), multimask)
                    for numbers, multimask in calls
                ],
            )

    def load(file: ImageFile, _: int) -> LoadedImage:
        read = reader(file)
        if read.image is None:
            assert read.error is not None
            raise read.error
        return read.image

    answered = sam.answer_each(
        images(), load, output_mode="coco_rle", best=not all_masks, single=len(files) == 1
    )
    with closing(answered):
        for file, each in zip(files, answered, strict=True):
            calls = asked.popleft()
            if each.error is None:
                answer: Answer = _in_order(objects_of(file), calls, each.answers)
            elif each.failed is None:
                answer = each.error
            else:
                answer = _renumbered(each.error, calls[each.failed])
            yield ReadFile(file, each.image, each.error), answer


def _calls(objects: Objects, all_masks: bool) -> Iterator[tuple[list[int], bool]]:
    """The numbers of the objects that are asked together, and whether each gets three masks.

    They are of one kind, and no more than MAX_OBJECTS.
    """
    kinds: dict[tuple[bool, bool, bool], list[int]] = {}
    for number, each in enumerate(objects):
        kind = (bool(each.points), each.box is not None, each.ambiguous or all_masks)
        kinds.setdefault(kind, []).append(number)
    for (_, _, multimask), numbers in kinds.items():
        for start in range(0, len(numbers), MAX_OBJECTS):
            yield numbers[start : start + MAX_OBJECTS], multimask


def _renumbered(error: SamfastError, numbers: Sequence[int]) -> SamfastError:
    """The error with the object's number among all objects instead of among those of the call."""
    text = re.sub(r"object (\d+)", lambda found: f"object {numbers[int(found[1])]}", str(error))
    return type(error)(text)


def _in_order(
    objects: Objects, calls: Sequence[Sequence[int]], answers: Sequence[Records]
) -> Records:
    """The records of all objects, in their order, each with what it was prompted with."""
    by_object: dict[int, Records] = {}
    for numbers, records in zip(calls, answers, strict=True):
        each_has = len(records) // len(numbers)
        for place, number in enumerate(numbers):
            of_object = records[place * each_has : (place + 1) * each_has]
            for record in of_object:
                record.update(_prompt_keys(objects[number]))
            by_object[number] = sorted(
                of_object, key=lambda record: -float(record["predicted_iou"])
            )
    return [record for number in sorted(by_object) for record in by_object[number]]


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
