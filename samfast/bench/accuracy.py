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
from samfast.bench.memory import Peak
from samfast.bench.points import RULES, Box, box_of, filled
from samfast.bench.timing import synchronize
from samfast.errors import DatasetError, InputError, SamfastError
from samfast.images import LoadedImage, load_image
from samfast.types import Masks, Prompts

if TYPE_CHECKING:
    from samfast.engine import SamFast

ASKED = {"point": ("point",), "box": ("box",), "both": ("point", "box")}


@dataclass(frozen=True)
class _Task:
    """What is asked of one image: masks (N, H, W) bool, XYWH boxes and points (N, 2)."""

    image: LoadedImage
    source: str | None
    masks: NDArray[np.bool_]
    boxes: list[Box]
    points: NDArray[np.float64]

    def prompts(self, kind: str) -> Prompts:
        if kind == "point":
            return Prompts(points=self.points[:, None], labels=np.ones((len(self.points), 1), dtype=np.int64))
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
    progress: Callable[[int], object] | None = None,
    on_error: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Ask for every annotated mask and score the answers at the images' own sizes.

    prompts     "point" (three masks asked), "box" (one asked) or "both"
    min_area    masks of fewer pixels are left out
    point_rule  a name in `samfast.bench.points.RULES`
    limit       the first so many images only
    batch_size  images embedded at a time; None: the engine's own
    progress    called with the number of images done since it was last called
    on_error    called with one line for each image that cannot be used, which is then left out; None: the
                first such image raises
    returns     the keys of `samfast eval --json`: means over masks; `by_source` has the same scores for each
                `source`. `images` were asked: an image without a mask to ask for does not count.
                images_per_second counts embedding and answering, from decoded image to masks; reading and
                scoring are not timed. peak_memory_bytes is that of the timed part on a GPU, and on a CPU
                how far the process grew

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
    everything, groups = _Scores(), dict[str, _Scores]()
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
            for image in batch:
                try:
                    task = _prepare(image, min_area, point_rule, ASKED[prompts])
                except SamfastError as error:
                    report(image, error)
                    continue
                if task is not None:
                    tasks.append(task)
            for answered in _answer(sam, tasks, ASKED[prompts], report):
                seconds += answered.seconds
                for task, answers in zip(answered.tasks, answered.answers, strict=True):
                    _record(task, answers, everything, groups)
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
        "by_source": {
            source: {
                "images": group.images,
                "masks": group.masks,
                "point": group.means("point"),
                "box": group.means("box"),
            }
            for source, group in sorted(groups.items())
        },
        "images_per_second": everything.images / seconds if seconds else None,
        "peak_memory_bytes": peak.bytes,
        "environment": stamp(sam.device),
    }


def intersection_over_union(answers: Tensor, truth: Tensor) -> Tensor:
    """(N, M, H, W) bool masks against (N, H, W) bool ones -> (N, M) float64; two empty masks are equal, 1."""
    scores = []
    for own, true in zip(answers, truth, strict=True):  # an object at a time: whole sets are gigabytes
        both = (own & true).flatten(1).count_nonzero(dim=1)
        either = (own | true).flatten(1).count_nonzero(dim=1)
        scores.append(torch.where(either > 0, both.double() / either.clamp(min=1), 1.0))
    return torch.stack(scores)


def _prepare(image: AnnotatedImage, min_area: int, rule: str, kinds: Sequence[str]) -> _Task | None:
    """The image, and its masks of at least min_area pixels, decoded; None if it has no such mask."""
    masks, boxes, points = [], [], []
    for annotation in image.annotations:
        mask = annotation.mask()
        if int(mask.sum()) < max(1, min_area):  # a polygon may cover no pixel at all
            continue
        masks.append(mask)
        boxes.append(annotation.box or box_of(mask))
        points.append(RULES[rule](mask) if "point" in kinds else (0.0, 0.0))
    if not masks:
        return None
    loaded = load_image(image.path)
    if loaded.size != image.size:
        raise DatasetError(
            f"{image.path}: the image is {loaded.size[0]} x {loaded.size[1]} (height x width), its annotations "
            f"are for {image.size[0]} x {image.size[1]}; masks must have the size of their image"
        )
    return _Task(loaded, image.source, np.stack(masks), boxes, np.array(points))


@dataclass(frozen=True)
class _Answered:
    tasks: list[_Task]
    answers: list[dict[str, Masks]]
    seconds: float


def _answer(
    sam: SamFast, tasks: list[_Task], kinds: Sequence[str], report: Callable[[_Task, SamfastError], None]
) -> list[_Answered]:
    """The tasks answered together; one by one if that fails, so that one bad image costs only itself."""
    if not tasks:
        return []
    start = time.perf_counter()
    try:
        embeddings = sam.embed([task.image for task in tasks])
        by_kind = {
            kind: sam.predict(embeddings, [task.prompts(kind) for task in tasks], multimask=kind == "point")
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


def _record(task: _Task, answers: dict[str, Masks], everything: _Scores, groups: dict[str, _Scores]) -> None:
    into = [everything]
    if task.source is not None:
        into.append(groups.setdefault(task.source, _Scores()))
    truth = torch.from_numpy(task.masks)
    boxes = torch.from_numpy(np.stack([filled(box, task.image.size) for box in task.boxes]))
    naive = intersection_over_union(boxes[:, None], truth)[:, 0].tolist()
    for group in into:
        group.images += 1
        group.masks += len(truth)
    for kind, answer in answers.items():
        scores = intersection_over_union(answer.masks, truth.to(answer.masks.device)).cpu()
        best = answer.iou.float().cpu().argmax(dim=1)
        named = {"miou": scores[torch.arange(len(scores)), best].tolist()}
        if kind == "point":
            named["miou_oracle"] = scores.amax(dim=1).tolist()
        named["filled_box"] = naive
        for group in into:
            group.add(kind, named)
