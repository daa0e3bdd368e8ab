"""`--point` and `--box`: what they mean, and the records that answer them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from samfast.engine import SamFast
    from samfast.types import Embeddings, Masks, Prompts, Size

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Target:
    """One object that the user points at.

    points  (x, y, label) in pixels of the image, label 1 foreground or 0 background
    box     (x0, y0, x1, y1) in pixels of the image, or None
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None

    @property
    def ambiguous(self) -> bool:
        """Whether several masks would be right: a single click may mean a part, an object, or a
        group.
        """
        return self.box is None and len(self.points) == 1


def targets(points: Sequence[Point], boxes: Sequence[Box]) -> tuple[Target, ...]:
    """All points are one object; each box is one; points and exactly one box are one together."""
    if points and len(boxes) == 1:
        return (Target(tuple(points), boxes[0]),)
    clicked = (Target(tuple(points)),) if points else ()
    return clicked + tuple(Target(box=box) for box in boxes)


def drawn(wanted: Sequence[Target]) -> Prompts | None:
    """Everything that was asked, as one Prompts for an overlay; None if nothing was."""
    from samfast.types import Prompts

    if not wanted:
        return None
    return Prompts(
        points=[[(x, y) for x, y, _ in target.points] for target in wanted if target.points],
        labels=[[label for _, _, label in target.points] for target in wanted if target.points],
        boxes=[target.box for target in wanted if target.box is not None],
    )


def answer(
    sam: SamFast, embeddings: Embeddings, wanted: Sequence[Target], all_masks: bool
) -> list[list[dict[str, Any]]]:
    """The records of each image: one for each target, or three with `all_masks`, best first.

    embeddings  of B images; every target is asked of every one of them
    returns     B lists of records with the original generator's keys, `point_labels` and
                `input_box` added

    PromptError if a target lies outside an image.
    """
    records: list[list[dict[str, Any]]] = [[] for _ in range(len(embeddings))]
    side = sam.image_size
    for target in wanted:
        multimask = target.ambiguous or all_masks
        results = sam.predict(embeddings, [_prompts(target)] * len(embeddings), multimask=multimask)
        for image, result in enumerate(results):
            records[image] += _records(result, target, embeddings[image], side, all_masks)
    return records


def _prompts(target: Target) -> Prompts:
    from samfast.types import Prompts

    return Prompts(
        points=[[[x, y] for x, y, _ in target.points]] if target.points else None,
        labels=[[label for _, _, label in target.points]] if target.points else None,
        boxes=[list(target.box)] if target.box is not None else None,
    )


def _records(
    result: Masks, target: Target, embedded: Embeddings, side: int, all_masks: bool
) -> list[dict[str, Any]]:
    from samfast.outputs import records_of

    stability = _stability(result, embedded.input_sizes[0], embedded.original_sizes[0], side)
    points = [[(x, y) for x, y, _ in target.points]]
    records = records_of(result, stability, points, best=not all_masks)
    for record in records:
        record["point_labels"] = [label for _, _, label in target.points]
        record["input_box"] = None if target.box is None else list(target.box)
    return sorted(records, key=lambda record: -float(record["predicted_iou"]))


def _stability(result: Masks, input_size: Size, original_size: Size, side: int) -> Tensor:
    """(1, M): the original's score, at its offset of 1; 0 for a mask that is empty at either
    threshold.
    """
    from samfast.masks import postprocess
    from samfast.masks.resize_geometry import ResizeGeometry

    frame = ResizeGeometry(input_size, original_size, side)
    measures = postprocess.measure(result.low_res.flatten(0, 1), frame, 0.0, 1.0)
    return (measures.inner / measures.outer.clamp(min=1)).view(result.low_res.shape[:2])


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
    """For argparse: "X0,Y0,X1,Y1", the first corner at the upper left."""
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
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
