"""Mean IoU of a model's masks against annotated ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.bench.dataset import AnnotatedImage, Dataset
from samfast.bench.environment import stamp
from samfast.bench.peak_memory import Peak
from samfast.bench.points import RULES, Box, box_of, filled
from samfast.bench.sampling import Points, sample
from samfast.bench.timing import synchronize
from samfast.errors import DatasetError, InputError, SamfastError
from samfast.images import LoadedImage, load_image
from samfast.types import Masks, Prompts

if TYPE_CHECKING:
    from samfast.engine import SamFast

ASKED = {"point": ("point",), "box": ("box",), "both": ("point", "box")}


@dataclass(frozen=True)
class _Task:
    """What is asked of one image: masks (N, H, W) bool, XYWH boxes and points (N, 2).

    place       of the image in the data set
    categories  N, as the annotations have them
    """

    place: int
    image: LoadedImage
    source: str | None
    categories: list[str | None]
    masks: NDArray[np.bool_]
    boxes: list[Box]
    points: NDArray[np.float64]

    def prompts(self, kind: str) -> Prompts:
        if kind == "point":
            return Prompts(
                points=self.points[:, None], labels=np.ones((len(self.points), 1), dtype=np.int64)
            )
        corners = np.array(self.boxes, dtype=np.float64)
        corners[:, 2:] += corners[:, :2]
        return Prompts(boxes=corners)


@dataclass
class _Scores:
    """The scores of a group of masks, a list a name."""

    images: int = 0
    masks: int = 0
    point: dict[str, list[float]] = field(default_factory=dict)
    box: dict[str, list[float]] = field(default_factory=dict)

    def means(self, kind: str) -> dict[str, float] | None:
        """Means over masks; None if nothing was asked this way."""
        named: dict[str, list[float]] = getattr(self, kind)
        return {name: fmean(values) for name, values in named.items()} or None

    def add(self, kind: str, scores: dict[str, list[float]]) -> None:
        named: dict[str, list[float]] = getattr(self, kind)
        for name, values in scores.items():
            named.setdefault(name, []).extend(values)


def evaluate(
    sam: SamFast,
    dataset: Dataset,
    *,
    prompts: str = "both",
    min_area: int = 0,
    point_rule: str = "edt",
    limit: int | None = None,
    batch_size: int | None = 1,
    points: Points | None = None,
    progress: Callable[[int], object] | None = None,
    on_error: Callable[[str], object] | None = None,
    on_answers: Callable[[int, dict[str, Masks]], object] | None = None,
) -> dict[str, Any]:
    """Ask for every annotated mask and score the answers at the images' own sizes.

    prompts     "point" (three masks asked), "box" (one asked) or "both"
    min_area    masks of fewer pixels are left out
    point_rule  a name in `samfast.bench.points.RULES`
    limit       the first so many images only
    batch_size  images embedded at a time; None: the engine's own
    points      what `samfast.bench.sampling.sample` has found; None: it is called here
    progress    called with the number of images done since it was last called
    on_error    called with one line for each image that cannot be used, which is then left out;
                None: the first such image raises
    on_answers  called with each image's place in the data set and its answers by kind of prompt,
                outside the clock
    returns     the keys of `samfast eval --json`: means over masks; `by_source` has the same scores
                for each `source`, `by_category` for each category's name (categories of one name
                are one). `images` were asked: an image without a mask to ask for does not count.
                images_per_second counts embedding and answering, from decoded image to masks;
                reading and scoring are not timed. peak_memory_bytes is that of the timed part on a
                GPU, and on a CPU how far the process grew

    Raises InputError for an unknown option, DatasetError when nothing is left to score.
    """
    if prompts not in ASKED:
        raise InputError(f"prompts={prompts!r}; there are {', '.join(ASKED)}")
    if point_rule not in RULES:
        raise InputError(f"point_rule={point_rule!r}; there are {', '.join(RULES)}")
    if (limit is not None and limit < 1) or (batch_size is not None and batch_size < 1):
        raise InputError(f"limit={limit}, batch_size={batch_size}; both must be at least 1")
    chosen = dataset.images[:limit]
    step: int = batch_size or sam.batch_size
    everything, sources, categories = _Scores(), dict[str, _Scores](), dict[str, _Scores]()
    if "point" not in ASKED[prompts]:
        points = None
    elif points is None:
        points = sample(dataset, point_rule, limit=limit)
    seconds = 0.0
    failed = 0

    def report(image: AnnotatedImage | _Task, error: SamfastError) -> None:
        nonlocal failed
        if on_error is None:
            raise error
        failed += 1
        name = str(image.path) if isinstance(image, AnnotatedImage) else image.image.name
        message = " ".join(str(error).split())
        on_error(message if name in message else f"{name}: {message}")

    with Peak(sam.device) as peak:
        for start in range(0, len(chosen), step):
            batch = chosen[start : start + step]
            tasks = []
            for place, image in enumerate(batch, start):
                try:
                    task = _prepare(place, image, min_area, points)
                except SamfastError as error:
                    report(image, error)
                    continue
                if task is not None:
                    tasks.append(task)
            for answered in _answer(sam, tasks, ASKED[prompts], report):
                seconds += answered.seconds
                for task, answers in zip(answered.tasks, answered.answers, strict=True):
                    _record(task, answers, everything, sources, categories)
                    if on_answers is not None:
                        on_answers(task.place, answers)
            if progress is not None:
                progress(len(batch))
    if not everything.masks:
        reason = f"{failed} images failed" if failed else f"no mask has {min_area} pixels or more"
        raise DatasetError(f"{dataset.name}: nothing to score: {reason}")
    return {
        "model": sam.name,
        "recipe": sam.recipe_name,
        "images": everything.images,
        "masks": everything.masks,
        "point": everything.means("point"),
        "box": everything.means("box"),
        "by_source": _by(sources),
        "by_category": _by(categories),
        "images_per_second": everything.images / seconds if seconds else None,
        "peak_memory_bytes": peak.bytes,
        "environment": stamp(sam.device),
    }


def intersection_over_union(answers: Tensor, truth: Tensor) -> Tensor:
    """(N, M, H, W) bool masks against (N, H, W) bool ones -> (N, M) float64; two empty masks are
    equal, 1.
    """
    scores = []
    for own, true in zip(
        answers, truth, strict=True
    ):  # an object at a time: whole sets are gigabytes
        both = (own & true).flatten(1).count_nonzero(dim=1)
        either = (own | true).flatten(1).count_nonzero(dim=1)
        scores.append(torch.where(either > 0, both.double() / either.clamp(min=1), 1.0))
    return torch.stack(scores)


def _by(groups: dict[str, _Scores]) -> dict[str, Any]:
    return {
        name: {
            "images": group.images,
            "masks": group.masks,
            "point": group.means("point"),
            "box": group.means("box"),
        }
        for name, group in sorted(groups.items())
    }


def _prepare(
    place: int, image: AnnotatedImage, min_area: int, points: Points | None
) -> _Task | None:
    """The image, and its masks of at least min_area pixels, decoded; None if it has no such mask.

    points  None: no points are asked
    """
    masks, boxes, places, categories = [], [], [], []
    for annotation in image.annotations:
        mask = annotation.mask()
        if int(mask.sum()) < max(1, min_area):  # a polygon may cover no pixel at all
            continue
        masks.append(mask)
        boxes.append(annotation.box or box_of(mask))
        places.append((0.0, 0.0) if points is None else points[annotation.number])
        categories.append(annotation.category)
    if not masks:
        return None
    loaded = load_image(image.path)
    if loaded.size != image.size:
        raise DatasetError(
            f"{image.path}: the image is {loaded.size[0]} x {loaded.size[1]} (height x width), its "
            "annotations "
            f"are for {image.size[0]} x {image.size[1]}; masks must have the size of their image"
        )
    return _Task(place, loaded, image.source, categories, np.stack(masks), boxes, np.array(places))


@dataclass(frozen=True)
class _Answered:
    tasks: list[_Task]
    answers: list[dict[str, Masks]]
    seconds: float


def _answer(
    sam: SamFast,
    tasks: list[_Task],
    kinds: Sequence[str],
    report: Callable[[_Task, SamfastError], None],
) -> list[_Answered]:
    """The tasks answered together; one by one if that fails, so that one bad image costs only
    itself.
    """
    if not tasks:
        return []
    start = time.perf_counter()
    try:
        embeddings = sam.embed([task.image for task in tasks])
        by_kind = {
            kind: sam.predict(
                embeddings, [task.prompts(kind) for task in tasks], multimask=kind == "point"
            )
            for kind in kinds
        }
        synchronize(sam.device)
    except SamfastError as error:
        if len(tasks) == 1:
            report(tasks[0], error)
            return []
        return [part for task in tasks for part in _answer(sam, [task], kinds, report)]
    seconds = time.perf_counter() - start
    answers = [{kind: by_kind[kind][i] for kind in kinds} for i in range(len(tasks))]
    return [_Answered(tasks, answers, seconds)]


def _record(
    task: _Task,
    answers: dict[str, Masks],
    everything: _Scores,
    sources: dict[str, _Scores],
    categories: dict[str, _Scores],
) -> None:
    """Add the scores of an image to all, to its source's and to those of its masks' categories."""
    truth = torch.from_numpy(task.masks)
    into = [(everything, list(range(len(truth))))]
    if task.source is not None:
        into.append((sources.setdefault(task.source, _Scores()), into[0][1]))
    for name in dict.fromkeys(name for name in task.categories if name is not None):
        own = [i for i, other in enumerate(task.categories) if other == name]
        into.append((categories.setdefault(name, _Scores()), own))
    boxes = torch.from_numpy(np.stack([filled(box, task.image.size) for box in task.boxes]))
    naive = intersection_over_union(boxes[:, None], truth)[:, 0].tolist()
    for group, members in into:
        group.images += 1
        group.masks += len(members)
    for kind, answer in answers.items():
        scores = intersection_over_union(answer.masks, truth.to(answer.masks.device)).cpu()
        best = answer.iou.float().cpu().argmax(dim=1)
        named = {"miou": scores[torch.arange(len(scores)), best].tolist()}
        if kind == "point":
            named["miou_oracle"] = scores.amax(dim=1).tolist()
        named["filled_box"] = naive
        for group, members in into:
            group.add(kind, {name: [values[i] for i in members] for name, values in named.items()})
