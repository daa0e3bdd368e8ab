"""Mean IoU of a model's masks against annotated ones."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.bench.coco_dataset import AnnotatedImage, Box, Dataset
from samfast.bench.environment import stamp
from samfast.bench.mask_points import RULES, Points, box_of, filled, sample
from samfast.bench.peak_memory import Peak
from samfast.bench.timing import synchronize
from samfast.errors import DatasetError, InputError, SamfastError
from samfast.images import LoadedImage, load_image
from samfast.types import Masks, Prompts

if TYPE_CHECKING:
    from samfast.engine import SamFast

KINDS = {"point": ("point",), "box": ("box",), "both": ("point", "box")}
"""The kinds of prompts of each `--prompts`."""

Answers = dict[str, Masks]
"""An image's masks by kind of prompt."""


@dataclass(frozen=True)
class _Task:
    """One image's masks (N, H, W), and the points (N, 2), XYWH boxes and categories of each.

    index  of the image in the data set
    """

    index: int
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
    """The scores of a group of masks, by kind of prompt and name of the score."""

    images: int = 0
    masks: int = 0
    scores: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {"point": defaultdict(list), "box": defaultdict(list)}
    )

    def means(self) -> dict[str, Any]:
        """Counts, and means over masks; None for a kind without prompts."""
        by_kind = {
            kind: {name: fmean(values) for name, values in scores.items()} or None
            for kind, scores in self.scores.items()
        }
        return {"images": self.images, "masks": self.masks, **by_kind}


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
    progress: Callable[[int], object] = lambda images: None,
    on_error: Callable[[str], object] | None = None,
    on_answers: Callable[[int, Answers], object] = lambda index, answers: None,
) -> dict[str, Any]:
    """Prompt for every annotated mask and score the answers at the images' sizes.

    prompts     "point" (three masks each), "box" (one each) or "both"
    min_area    masks of fewer pixels are left out
    point_rule  a name in `mask_points.RULES`
    limit       the first images only
    batch_size  images embedded at a time; None: the engine's
    points      from `mask_points.sample`; None: sampled here
    progress    called with the number of images of each batch
    on_error    called with one line for each image that cannot be used and is left out; None: the
                first such image raises
    on_answers  called with each image's index and answers, outside the clock
    returns     the keys of `samfast eval --json`: means over masks; `by_source` repeats them for
                each `source`, `by_category` for each category's name. `images` have at least one
                mask. images_per_second counts embedding and answering, not reading and scoring;
                peak_memory_bytes is that of the whole, see `Peak`

    Raises InputError for an unknown option, DatasetError when nothing is left to score.
    """
    step = sam.batch_size if batch_size is None else batch_size
    _check(prompts, point_rule, limit, step)
    if "point" not in KINDS[prompts]:
        points = None
    elif points is None:
        points = sample(dataset, point_rule, limit=limit)
    everything, sources, categories = _Scores(), dict[str, _Scores](), dict[str, _Scores]()
    seconds, failed = 0.0, 0

    def fail(name: str, error: SamfastError) -> None:
        nonlocal failed
        if on_error is None:
            raise error
        failed += 1
        message = " ".join(str(error).split())
        on_error(message if name in message else f"{name}: {message}")

    chosen = dataset.images[:limit]
    with Peak(sam.device) as peak:
        for start in range(0, len(chosen), step):
            tasks: list[_Task] = []
            for index, image in enumerate(chosen[start : start + step], start):
                try:
                    tasks += _prepare(index, image, min_area, points)
                except SamfastError as error:
                    fail(str(image.path), error)
            for task, answers, spent in _answer(sam, tasks, KINDS[prompts], fail):
                seconds += spent
                _record(task, answers, everything, sources, categories)
                on_answers(task.index, answers)
            progress(len(chosen[start : start + step]))
    if not everything.masks:
        reason = f"{failed} images failed" if failed else f"no mask has {min_area} pixels or more"
        raise DatasetError(f"{dataset.name}: nothing to score: {reason}")
    return {
        "model": sam.name,
        "recipe": sam.recipe_name,
        **everything.means(),
        "by_source": {name: group.means() for name, group in sorted(sources.items())},
        "by_category": {name: group.means() for name, group in sorted(categories.items())},
        "images_per_second": everything.images / seconds if seconds else None,
        "peak_memory_bytes": peak.bytes,
        "environment": stamp(sam.device),
    }


def _check(prompts: str, point_rule: str, limit: int | None, batch_size: int) -> None:
    """InputError for options that `evaluate` does not have."""
    if prompts not in KINDS or point_rule not in RULES:
        raise InputError(
            f"prompts={prompts!r}, point_rule={point_rule!r}; there are {', '.join(KINDS)} and "
            f"{', '.join(RULES)}"
        )
    if (limit is not None and limit < 1) or batch_size < 1:
        raise InputError(f"limit={limit}, batch_size={batch_size}; both must be at least 1")


def intersection_over_union(answers: Tensor, truth: Tensor) -> Tensor:
    """(N, M, H, W) bool masks with (N, H, W) ones -> (N, M) float64; two empty masks have IoU 1."""
    scores = []
    for masks, true in zip(answers, truth, strict=True):  # at once they would be gigabytes
        both = (masks & true).flatten(1).count_nonzero(dim=1)
        either = (masks | true).flatten(1).count_nonzero(dim=1)
        scores.append(torch.where(either > 0, both.double() / either.clamp(min=1), 1.0))
    return torch.stack(scores)


def _prepare(
    index: int, image: AnnotatedImage, min_area: int, points: Points | None
) -> Iterator[_Task]:
    """The image with its masks of at least min_area pixels, if it has any.

    points  None: no prompts are points
    """
    kept = []
    for annotation in image.annotations:
        mask = annotation.mask()
        if int(mask.sum()) >= max(1, min_area):  # a polygon may cover no pixel at all
            kept.append((annotation, mask))
    if not kept:
        return
    loaded = load_image(image.path)
    if loaded.size != image.size:
        raise DatasetError(
            f"{image.path}: the image is {loaded.size[0]} x {loaded.size[1]} (height x width), its "
            f"annotations are for {image.size[0]} x {image.size[1]}"
        )
    yield _Task(
        index,
        loaded,
        image.source,
        [annotation.category for annotation, _ in kept],
        np.stack([mask for _, mask in kept]),
        [annotation.box or box_of(mask) for annotation, mask in kept],
        np.array([(0, 0) if points is None else points[each.number] for each, _ in kept]),
    )


def _answer(
    sam: SamFast,
    tasks: list[_Task],
    kinds: Sequence[str],
    fail: Callable[[str, SamfastError], None],
) -> Iterator[tuple[_Task, Answers, float]]:
    """The tasks' answers and seconds; one by one if a batch fails, to find the image at fault."""
    if not tasks:
        return
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
            fail(tasks[0].image.name, error)
            return
        for task in tasks:
            yield from _answer(sam, [task], kinds, fail)
        return
    seconds = (time.perf_counter() - start) / len(tasks)
    for i, task in enumerate(tasks):
        yield task, {kind: by_kind[kind][i] for kind in kinds}, seconds


def _record(
    task: _Task,
    answers: Answers,
    everything: _Scores,
    sources: dict[str, _Scores],
    categories: dict[str, _Scores],
) -> None:
    """Add an image's scores to all, to its source's and to those of its masks' categories."""
    groups = [(everything, range(len(task.masks)))]
    if task.source is not None:
        groups.append((sources.setdefault(task.source, _Scores()), groups[0][1]))
    members: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(task.categories):
        if name is not None:
            members[name].append(i)
    groups += [(categories.setdefault(name, _Scores()), each) for name, each in members.items()]  # type: ignore[misc]
    for group, chosen in groups:
        group.images += 1
        group.masks += len(chosen)
    truth = torch.from_numpy(task.masks)
    boxes = torch.from_numpy(np.stack([filled(box, task.image.size) for box in task.boxes]))
    filled_box = intersection_over_union(boxes[:, None], truth)[:, 0].tolist()
    for kind, answer in answers.items():
        iou = intersection_over_union(answer.masks, truth.to(answer.masks.device)).cpu()
        best = answer.iou.float().cpu().argmax(dim=1)
        scores = {"miou": iou[torch.arange(len(iou)), best].tolist()}
        if kind == "point":
            scores["miou_oracle"] = iou.amax(dim=1).tolist()
        scores["filled_box"] = filled_box
        for group, chosen in groups:
            for name, values in scores.items():
                group.scores[kind][name] += [values[i] for i in chosen]
