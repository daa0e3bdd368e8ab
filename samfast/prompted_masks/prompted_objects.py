"""Objects that clicks and boxes describe: what is asked about each, and the records that answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samfast.errors import SamfastError

if TYPE_CHECKING:
    from samfast.prompted_masks.answer_stream import AnsweredImage, Question
    from samfast.types import Prompts

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]

Records = list[dict[str, Any]]

MAX_OBJECTS = 256
"""Most objects that are asked together; each takes up to 768 KiB of logits."""


@dataclass(frozen=True)
class PromptedObject:
    """One object, described by clicks, a box or both.

    points         (x, y, label) in pixels of the image, label 1 foreground or 0 background
    box            (x0, y0, x1, y1) in pixels of the image, or None
    category_id    of its category, or None
    annotation_id  of the annotation that it was made from, or None
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None
    category_id: Any = None
    annotation_id: Any = None

    @property
    def ambiguous(self) -> bool:
        """Whether several masks would be right: a single click may mean a part or the whole."""
        return self.box is None and len(self.points) == 1


Objects = tuple[PromptedObject, ...]


def prompts_of(objects: Sequence[PromptedObject]) -> Prompts:
    """All points and boxes of the objects: prompts, if they are of one kind, or an overlay's."""
    from samfast.types import Prompts

    clicked = [each.points for each in objects if each.points]
    return Prompts(
        points=[[[x, y] for x, y, _ in points] for points in clicked] or None,
        labels=[[label for _, _, label in points] for points in clicked] or None,
        boxes=[list(each.box) for each in objects if each.box is not None] or None,
    )


@dataclass(frozen=True)
class ObjectQuestions:
    """What is asked about the objects of an image.

    questions  objects of one kind, no more than MAX_OBJECTS, are asked together
    numbers    for each question, the numbers of its objects
    """

    objects: Objects
    questions: Sequence[Question]
    numbers: Sequence[Sequence[int]]

    @staticmethod
    def of(objects: Objects, all_masks: bool) -> ObjectQuestions:
        """The questions; with `all_masks` each object gets three masks."""
        from samfast.prompted_masks.answer_stream import Question

        calls = list(_calls(objects, all_masks))
        questions = [
            Question(prompts_of([objects[number] for number in numbers]), multimask)
            for numbers, multimask in calls
        ]
        return ObjectQuestions(objects, questions, [numbers for numbers, _ in calls])

    def records(self, answered: AnsweredImage[Records]) -> Records | SamfastError:
        """The records of all objects, in their order, or the error that the image failed with.

        One record for each object, or three, best first. They have the original generator's keys,
        `point_labels` and `input_box`; and `category_id` and `annotation_id`, where objects do.
        """
        if answered.error is None:
            return [record for each in self.by_object(answered.answers) for record in each]
        if answered.failed is None:
            return answered.error
        return _renumbered(answered.error, self.numbers[answered.failed])

    def by_object(self, answers: Sequence[Records]) -> list[Records]:
        """The records of each object, best first, each with what it was prompted with."""
        by_object: dict[int, Records] = {}
        for numbers, records in zip(self.numbers, answers, strict=True):
            each_has = len(records) // len(numbers)
            for place, number in enumerate(numbers):
                of_object = records[place * each_has : (place + 1) * each_has]
                for record in of_object:
                    _add_prompt(record, self.objects[number])
                if each_has > 1:
                    of_object.sort(key=lambda record: -float(record["predicted_iou"]))
                by_object[number] = of_object
        return [by_object[number] for number in sorted(by_object)]


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


def _add_prompt(record: dict[str, Any], prompted: PromptedObject) -> None:
    """Have a record say of its prompt what it does not yet: all besides its points."""
    record["point_labels"] = [label for _, _, label in prompted.points]
    record["input_box"] = None if prompted.box is None else list(prompted.box)
    if prompted.category_id is not None:
        record["category_id"] = prompted.category_id
    if prompted.annotation_id is not None:
        record["annotation_id"] = prompted.annotation_id
