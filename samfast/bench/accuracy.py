"""Mean IoU of a model's masks against annotated ones.

Each image is prepared, answered and scored in turn, on threads that work on several images at the
same time.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.bench.coco_dataset import AnnotatedImage, Box, Dataset
from samfast.bench.environment import stamp
from samfast.bench.mask_points import RULES, box_of, filled
from samfast.bench.peak_memory import Peak
from samfast.bench.samples import one_click_each
from samfast.device.ordered_jobs import in_order
from samfast.errors import DatasetError, InputError, SamfastError
from samfast.images import LoadedImage, load_image
from samfast.images.batching import already_loaded
from samfast.prompted_masks.answer_stream import AnsweredImage, PromptedImage, Question
from samfast.types import Masks, Prompts

if TYPE_CHECKING:
    from samfast.engine import SamFast

KINDS = {"point": ("point",), "box": ("box",), "both": ("point", "box")}
"""The kinds of prompts of each `--prompts`."""

Answers = dict[str, Masks]
"""An image's masks by kind of prompt."""


PREPARERS = 8
"""Threads that read images and annotations and choose points, beside a GPU, where cores allow."""

SCORERS = 4
"""Threads that score beside a GPU. Beside a CPU, whose cores the model needs, one does each."""

MAX_UNSCORED = 4
"""Images whose answers wait to be scored; each holds its masks, a byte a pixel."""


@dataclass(frozen=True, eq=False)
class _Task:
    """One image, what is asked about it, and the XYWH box and category of each of its N masks.

    packed     the masks, eight pixels a byte, (N, bytes): some images wait for the device
    questions  one for each kind of prompt
    """

    image: LoadedImage
    packed: NDArray[np.uint8]
    boxes: list[Box]
    categories: list[str | None]
    questions: list[Question]

    def masks(self) -> NDArray[np.bool_]:
        """(N, H, W)."""
        height, width = self.image.size
        flat = np.unpackbits(self.packed, axis=1, count=height * width)
        return flat.view(np.bool_).reshape(-1, height, width)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Image number `index` of the data set: a task; or an error; or neither, as no mask is left."""

    index: int
    annotated: AnnotatedImage
    task: _Task | None = None
    error: SamfastError | None = None


@dataclass(frozen=True)
class _Scored:
    """The scores of one mask of image number `image`, by kind of prompt and name of the score."""

    image: int
    source: str | None
    category: str | None
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What became of an image: the scores of its masks, if it was answered, or an error."""

    prepared: _Prepared
    scored: list[_Scored]
    answers: Answers
    error: SamfastError | None = None


def evaluate(
    sam: SamFast,
    dataset: Dataset,
    *,
    prompts: str = "both",
    min_area: int = 0,
    point_rule: str = "edt",
    limit: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int], object] = lambda images: None,
    on_error: Callable[[str], object] | None = None,
    on_answers: Callable[[int, Answers], object] = lambda index, answers: None,
) -> dict[str, Any]:
    """Prompt for every annotated mask and score the answers at the images' sizes.

    prompts     "point" (three masks each), "box" (one each) or "both"
    min_area    masks of fewer pixels are left out
    batch_size  images embedded at a time, of those that have masks and can be read
    point_rule  a name in RULES: how a mask's point is chosen
    progress    called with 1 after each image
    on_error    called with one line for each image that cannot be used and is left out; None: the
                first such image raises
    on_answers  called with each image's index and answers, on the host, in order
    returns     the keys of `samfast eval --json`: means over masks, repeated for each `source` and
                category. `images` have at least one mask. images_per_second counts all of this
                call, from files and annotations to scores

    Files are read, points chosen, images answered (as by `predict_each`) and answers scored at the
    same time, on several threads.

    Raises InputError for an unknown option, DatasetError when nothing is left to score.
    """
    _check_options(prompts, point_rule, limit, batch_size)
    chosen = dataset.images[:limit]
    prepare = partial(_prepare, kinds=KINDS[prompts], point_rule=point_rule, min_area=min_area)
    scored: list[_Scored] = []
    failed = 0
    with Peak(sam.device) as peak:
        started = time.perf_counter()
        for outcome in _outcomes(sam, chosen, prepare, KINDS[prompts], batch_size):
            if outcome.error is not None:
                if on_error is None:
                    raise outcome.error
                failed += 1
                on_error(_line(outcome.prepared.annotated, outcome.error))
            elif outcome.scored:
                scored += outcome.scored
                on_answers(outcome.prepared.index, outcome.answers)
            progress(1)
        seconds = time.perf_counter() - started
    if not scored:
        reason = f"{failed} images failed" if failed else f"no mask has {min_area} pixels or more"
        raise DatasetError(f"{dataset.name}: nothing to score: {reason}")
    means = _means(scored)
    return {
        "model": sam.name,
        "recipe": sam.recipe_name,
        **means,
        "by_source": _means_by(scored, lambda mask: mask.source),
        "by_category": _means_by(scored, lambda mask: mask.category),
        "images_per_second": means["images"] / seconds,
        "peak_memory_bytes": peak.bytes,
        "environment": stamp(sam.device),
    }


def _check_options(prompts: str, point_rule: str, limit: int | None, batch_size: int) -> None:
    if prompts not in KINDS or point_rule not in RULES:
        raise InputError(
            f"prompts={prompts!r}, point_rule={point_rule!r}; there are {', '.join(KINDS)} and "
            f"{', '.join(RULES)}"
        )
    if (limit is not None and limit < 1) or batch_size < 1:
        raise InputError(f"limit={limit}, batch_size={batch_size}; both must be at least 1")


def intersection_over_union(answers: Tensor, truth: Tensor) -> Tensor:
    """(N, M, H, W) bool masks with (N, H, W) ones -> (N, M) float64; two empty masks have IoU 1."""
    if answers.device.type == "cpu" and truth.device.type == "cpu":
        # NumPy counts bytes many times faster than torch, and leaves the model's threads alone.
        return torch.from_numpy(_iou_on_host(answers.numpy(), truth.numpy()))
    scores = []
    for masks, true in zip(answers, truth, strict=True):  # at once they would be gigabytes
        both = (masks & true).flatten(1).count_nonzero(dim=1)
        either = (masks | true).flatten(1).count_nonzero(dim=1)
        scores.append(torch.where(either > 0, both.double() / either.clamp(min=1), 1.0))
    return torch.stack(scores)


def _iou_on_host(answers: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    scores = np.ones(answers.shape[:2])
    for row, (masks, true) in enumerate(zip(answers, truth, strict=True)):
        size = np.count_nonzero(true)
        for column, mask in enumerate(masks):
            both = np.count_nonzero(mask & true)
            either = size + np.count_nonzero(mask) - both
            if either:
                scores[row, column] = both / either
    return scores


def _outcomes(
    sam: SamFast,
    images: Sequence[AnnotatedImage],
    prepare: Callable[[int, AnnotatedImage], _Prepared],
    kinds: Sequence[str],
    batch_size: int,
) -> Iterator[_Outcome]:
    """What became of each image, in order: prepared, answered and scored on threads."""
    beside_gpu = sam.device.type == "cuda"
    cores = os.cpu_count() or 1
    prepared = in_order(
        (partial(prepare, index, image) for index, image in enumerate(images)),
        min(PREPARERS, cores) if beside_gpu else 1,
        max_waiting=2 * batch_size,
        name="samfast-prepare",
    )
    # Images that were prepared and are not yet scored. The stream takes them on a thread.
    pending: deque[_Prepared] = deque()

    def items() -> Iterator[PromptedImage]:
        for each in prepared:
            pending.append(each)
            if each.task is not None:
                yield PromptedImage(each.task.image, each.task.questions)

    answered = sam.answer_each(items(), already_loaded, batch_size=batch_size)
    with closing(answered):
        jobs = _score_jobs(pending, answered, kinds)
        workers = min(SCORERS, cores) if beside_gpu else 1
        scored = in_order(jobs, workers, max_waiting=MAX_UNSCORED, name="samfast-score")
        with closing(scored):
            yield from scored


def _score_jobs(
    pending: deque[_Prepared], answered: Iterator[AnsweredImage[Masks]], kinds: Sequence[str]
) -> Iterator[Callable[[], _Outcome]]:
    """A job for each image, in order; those without a task have nothing to score."""

    def without_task() -> Iterator[Callable[[], _Outcome]]:
        while pending and pending[0].task is None:
            each = pending.popleft()
            yield partial(_Outcome, each, [], {}, each.error)

    for answer in answered:
        yield from without_task()
        each = pending.popleft()
        if answer.error is not None:
            yield partial(_Outcome, each, [], {}, answer.error)
        else:
            yield partial(_score, each, dict(zip(kinds, answer.answers, strict=True)))
    yield from without_task()


def _prepare(
    index: int, annotated: AnnotatedImage, *, kinds: Sequence[str], point_rule: str, min_area: int
) -> _Prepared:
    """Read an image that has masks of at least min_area pixels, and ask about each of them."""
    try:
        kept = []
        for annotation in annotated.annotations:
            mask = annotation.mask()
            if np.count_nonzero(mask) >= max(1, min_area):  # a polygon may cover no pixel at all
                kept.append((annotation, mask))
        if not kept:
            return _Prepared(index, annotated)
        image = load_image(annotated.path)
        if image.size != annotated.size:
            raise DatasetError(
                f"{annotated.path}: the image is {image.size[0]} x {image.size[1]} (height x "
                f"width), its annotations are for {annotated.size[0]} x {annotated.size[1]}"
            )
        boxes = [annotation.box or box_of(mask) for annotation, mask in kept]
        asked = {
            "point": lambda: one_click_each(np.array([RULES[point_rule](m) for _, m in kept])),
            "box": lambda: Prompts(boxes=_corners(boxes)),
        }
        task = _Task(
            image,
            np.stack([np.packbits(mask) for _, mask in kept]),
            boxes,
            [annotation.category for annotation, _ in kept],
            [Question(asked[kind](), multimask=kind == "point") for kind in kinds],
        )
    except SamfastError as error:
        return _Prepared(index, annotated, error=error)
    return _Prepared(index, annotated, task)


def _corners(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """XYWH boxes as (N, 4) XYXY."""
    corners = np.array(boxes, dtype=np.float64)
    corners[:, 2:] += corners[:, :2]
    return corners


def _line(annotated: AnnotatedImage, error: SamfastError) -> str:
    """One line that names the image and what is wrong with it."""
    name = str(annotated.path)
    message = " ".join(str(error).split())
    # The engine numbers images; people look for files.
    message = re.sub(r"^image \d+(, |: )", "", message)
    return message if name in message else f"{name}: {message}"


def _score(prepared: _Prepared, answers: Answers) -> _Outcome:
    """The scores of an image's masks."""
    task = prepared.task
    assert task is not None
    truth = torch.from_numpy(task.masks())
    boxes = torch.from_numpy(np.stack([filled(box, task.image.size) for box in task.boxes]))
    filled_box = intersection_over_union(boxes[:, None], truth)[:, 0].tolist()
    source = prepared.annotated.source
    scored = [_Scored(prepared.index, source, category, {}) for category in task.categories]
    for kind, answer in answers.items():
        iou = intersection_over_union(answer.masks, truth)
        best = answer.iou.float().argmax(dim=1)
        scores = {"miou": iou[torch.arange(len(iou)), best].tolist()}
        if kind == "point":
            scores["miou_oracle"] = iou.amax(dim=1).tolist()
        scores["filled_box"] = filled_box
        for i, mask in enumerate(scored):
            mask.scores[kind] = {name: values[i] for name, values in scores.items()}
    return _Outcome(prepared, scored, answers)


def _means(scored: Sequence[_Scored]) -> dict[str, Any]:
    """Counts, and means over masks; None for a kind without prompts."""
    means: dict[str, Any] = {"images": len({mask.image for mask in scored}), "masks": len(scored)}
    for kind in KINDS["both"]:
        scores = [mask.scores[kind] for mask in scored if kind in mask.scores]
        names = scores[0] if scores else ()
        means[kind] = {name: fmean(each[name] for each in scores) for name in names} or None
    return means


def _means_by(
    scored: Sequence[_Scored], name_of: Callable[[_Scored], str | None]
) -> dict[str, dict[str, Any]]:
    """The means of each group of masks by its name, in order; masks without a name are left out."""
    groups: dict[str, list[_Scored]] = defaultdict(list)
    for mask in scored:
        name = name_of(mask)
        if name is not None:
            groups[name].append(mask)
    return {name: _means(groups[name]) for name in sorted(groups)}
