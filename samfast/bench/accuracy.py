"""Mean IoU of a model's masks against annotated ones."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
    """One image's masks (N, H, W), and the XYWH box and category of each.

    index  of the image in the data set
    """

    index: int
    image: LoadedImage
    source: str | None
    categories: list[str | None]
    masks: NDArray[np.bool_]
    boxes: list[Box]

    def prompts(self, kind: str, point_rule: str) -> Prompts:
        if kind == "point":
            return one_click_each(np.array([RULES[point_rule](mask) for mask in self.masks]))
        corners = np.array(self.boxes, dtype=np.float64)
        corners[:, 2:] += corners[:, :2]
        return Prompts(boxes=corners)


@dataclass(frozen=True)
class _Scored:
    """The scores of one mask of image number `image`, by kind of prompt and name of the score."""

    image: int
    source: str | None
    category: str | None
    scores: dict[str, dict[str, float]]


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
    batch_size  images embedded at a time
    point_rule  a name in RULES: how a mask's point is chosen
    progress    called with the number of images of each batch
    on_error    called with one line for each image that cannot be used and is left out; None: the
                first such image raises
    on_answers  called with each image's index and answers, outside the clock
    returns     the keys of `samfast eval --json`: means over masks, repeated for each `source` and
                category. `images` have at least one mask. images_per_second counts embedding and
                answering, not reading and scoring

    Raises InputError for an unknown option, DatasetError when nothing is left to score.
    """
    _check_options(prompts, point_rule, limit, batch_size)
    scored: list[_Scored] = []
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
        for start in range(0, len(chosen), batch_size):
            tasks: list[_Task] = []
            batch = chosen[start : start + batch_size]
            for index, image in enumerate(batch, start):
                try:
                    tasks += _prepare(index, image, min_area)
                except SamfastError as error:
                    fail(str(image.path), error)
            for task, answers, spent in _answer(sam, tasks, KINDS[prompts], point_rule, fail):
                seconds += spent
                scored += _scored(task, answers)
                on_answers(task.index, answers)
            progress(len(batch))
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
        "images_per_second": means["images"] / seconds if seconds else None,
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
    scores = []
    for masks, true in zip(answers, truth, strict=True):  # at once they would be gigabytes
        both = (masks & true).flatten(1).count_nonzero(dim=1)
        either = (masks | true).flatten(1).count_nonzero(dim=1)
        scores.append(torch.where(either > 0, both.double() / either.clamp(min=1), 1.0))
    return torch.stack(scores)


def _prepare(index: int, image: AnnotatedImage, min_area: int) -> Iterator[_Task]:
    """The image with its masks of at least min_area pixels, if it has any."""
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
    )


def _answer(
    sam: SamFast,
    tasks: list[_Task],
    kinds: Sequence[str],
    point_rule: str,
    fail: Callable[[str, SamfastError], None],
) -> Iterator[tuple[_Task, Answers, float]]:
    """The tasks' answers and seconds; one by one if a batch fails, to find the image at fault."""
    if not tasks:
        return
    prompts = {kind: [task.prompts(kind, point_rule) for task in tasks] for kind in kinds}
    start = time.perf_counter()
    try:
        embeddings = sam.embed([task.image for task in tasks])
        by_kind = {
            kind: sam.predict(embeddings, asked, multimask=kind == "point")
            for kind, asked in prompts.items()
        }
        synchronize(sam.device)
    except SamfastError as error:
        if len(tasks) == 1:
            fail(tasks[0].image.name, error)
            return
        for task in tasks:
            yield from _answer(sam, [task], kinds, point_rule, fail)
        return
    seconds = (time.perf_counter() - start) / len(tasks)
    for i, task in enumerate(tasks):
        yield task, {kind: by_kind[kind][i] for kind in kinds}, seconds


def _scored(task: _Task, answers: Answers) -> list[_Scored]:
    """The scores of an image's masks."""
    truth = torch.from_numpy(task.masks)
    boxes = torch.from_numpy(np.stack([filled(box, task.image.size) for box in task.boxes]))
    filled_box = intersection_over_union(boxes[:, None], truth)[:, 0].tolist()
    scored = [_Scored(task.index, task.source, category, {}) for category in task.categories]
    for kind, answer in answers.items():
        iou = intersection_over_union(answer.masks, truth.to(answer.masks.device)).cpu()
        best = answer.iou.float().cpu().argmax(dim=1)
        scores = {"miou": iou[torch.arange(len(iou)), best].tolist()}
        if kind == "point":
            scores["miou_oracle"] = iou.amax(dim=1).tolist()
        scores["filled_box"] = filled_box
        for i, mask in enumerate(scored):
            mask.scores[kind] = {name: values[i] for name, values in scores.items()}
    return scored


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
