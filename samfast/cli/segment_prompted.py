"""Masks of the objects that points and boxes describe, file by file."""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from samfast.automatic_masks.segment_stream import Answer
from samfast.cli.image_files import ImageFile
from samfast.cli.image_reader import ImageReader, ReadFile
from samfast.prompted_masks.prompted_objects import (
    Box,
    ObjectQuestions,
    Objects,
    Point,
    PromptedObject,
)

if TYPE_CHECKING:
    from samfast.engine import SamFast
    from samfast.images import LoadedImage


def prompted_objects(points: Sequence[Point], boxes: Sequence[Box]) -> Objects:
    """All points are one object, and each box is one; a single box and the points are the same."""
    if points and len(boxes) == 1:
        return (PromptedObject(tuple(points), boxes[0]),)
    clicked = (PromptedObject(tuple(points)),) if points else ()
    return clicked + tuple(PromptedObject(box=box) for box in boxes)


def segment_prompted(
    sam: SamFast,
    files: Sequence[ImageFile],
    objects_of: Callable[[ImageFile], Objects],
    all_masks: bool,
    reader: ImageReader,
) -> Iterator[tuple[ReadFile, Answer]]:
    """The records of each file, in order, or the error that it failed with.

    One record for each object, or three with `all_masks`, best first.
    """
    from samfast.prompted_masks.answer_stream import PromptedImage

    # What was asked about the files that are not yet answered. The engine reads ahead, on a thread.
    asked: deque[ObjectQuestions] = deque()

    def images() -> Iterator[PromptedImage]:
        for file in files:
            questions = ObjectQuestions.of(objects_of(file), all_masks)
            asked.append(questions)
            yield PromptedImage(file, questions.questions)

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
            yield ReadFile(file, each.image, each.error), asked.popleft().records(each)


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
