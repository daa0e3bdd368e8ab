"""How far a recipe's masks agree with fp32's on photos without annotations, and the loss implied.

Two figures estimate the loss of mean IoU against the unknown truth, and the worse one counts.

1. Loss against labels that fp32 makes: its masks of the mirrored photo, mirrored back. fp32 and the
   recipe then segment the photo itself, prompted by a click and a box of each label, and are scored
   against the labels. Neither has seen the mirrored view, so border pixels that move to and fro
   cost nothing, as they would against the truth. Of a click's three masks the best one is scored,
   since the preferred one is often a toss. The photos are a sample, so the upper end of the
   one-sided 95 % interval of the mean counts.
2. LOST of the disagreement with fp32 beyond that of the plain recipe of the same dtype, of the
   preferred masks. 1 - IoU is a metric, so by the triangle inequality disagreement bounds the loss.
   bfloat16 disagrees by a point and was measured to lose nothing; it is the yardstick, measured in
   the same run.

Objects in which fp32 itself sees next to nothing are left out.
`benchmarks/loss_without_truth.py` compares both figures with the loss on annotated photos.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast import coco_rle
from samfast.bench.accuracy import intersection_over_union
from samfast.bench.mask_points import box_of, edt
from samfast.bench.parity import without_tf32
from samfast.bench.samples import one_click_each
from samfast.errors import DatasetError, SamfastError, UnsupportedRecipeError
from samfast.images import LoadedImage, load_image
from samfast.masks import rle
from samfast.recipes import Recipe
from samfast.types import Embeddings, Masks, Prompts, Size

if TYPE_CHECKING:
    from samfast.engine import SamFast

SIDE = 8
"""Clicks along each side of the grid with which fp32 segments the mirrored photo."""

NEGLIGIBLE = 16
"""Masks of fewer pixels are negligible."""

SAME_IOU = 0.7
"""Two masks of fp32 whose IoU is higher are one object."""

MAX_OBJECTS = 48
"""Objects of a photo, those of the highest predicted IoU, which bounds the time for a photo."""

LOST = 0.1
"""The part of a disagreement that counts as loss, from
`benchmarks/results/vit_xs_loss_without_truth.json`."""

KINDS = ("click", "box")

_LOG = logging.getLogger("samfast")

MAX_BYTES = 1 << 27
"""Roughly the bytes of a photo's masks that are held as pixels."""

Runs = NDArray[np.int64]
"""A mask as run lengths, see `samfast.masks.rle`."""

ByKind = dict[str, NDArray[np.float64]]
"""An array (N,) for each of KINDS."""

Load = Callable[[Recipe], "SamFast"]


@dataclass(frozen=True, eq=False)
class Questions:
    """The prompts of one photo, and fp32's answers.

    size        (H, W) of the photo
    clicks      (N, 2) XY, one on each label; boxes (N, 4) XYXY, one around each
    labels      N masks, as runs
    answers     fp32's N masks for each kind, as runs; of clicks the preferred ones
    scores      IoU of a label with fp32's mask, of clicks with the best of three
    """

    size: Size
    clicks: NDArray[np.float64]
    boxes: NDArray[np.float64]
    labels: list[Runs]
    answers: dict[str, list[Runs]]
    scores: ByKind

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Answers:
    """A recipe's answers to a photo's questions.

    agreement  IoU with fp32's answer, of clicks between the preferred masks
    scores     IoU with the label, of clicks that of the best of three masks
    """

    agreement: ByKind
    scores: ByKind


def measure(
    load: Load,
    photos: Sequence[Path],
    recipes: dict[str, Recipe],
    plain: str,
    *,
    progress: Callable[[int], object] = lambda steps: None,
    on_error: Callable[[str], object] = _LOG.warning,
    on_refusal: Callable[[str], object] = _LOG.warning,
) -> dict[str, dict[str, Any]]:
    """Compare recipes with fp32 on photos; each model is loaded once, and one at a time.

    load      makes the model of a recipe, encoding one image at a time
    recipes   what to measure, by name
    plain     the attention of fp32 and of the yardsticks, a name in `samfast.attention`
    progress  called with 1 after each of `steps`
    on_error  called with one line for each photo that cannot be used and is left out
    on_refusal
              called with one line for each recipe that the model does not support
    returns   for each recipe: `loss_points`, which counts against a budget; `photos`, `objects`;
              `agreement_miou` with fp32, and the yardstick's; and for each of KINDS `agreement`,
              `loss` in points against the labels, `uncertainty` (the width of the interval),
              `disagreement` beyond the yardstick in points

    Raises DatasetError when no photo is left, or fp32 finds no object in any;
    UnsupportedRecipeError when the model supports none of the recipes.
    """
    sam = load(Recipe(attention=plain))
    questioned: list[tuple[Path, Questions]] = []
    for path in photos:
        try:
            with without_tf32():
                questioned.append((path, questions_of(sam, load_image(path))))
        except SamfastError as error:
            message = " ".join(str(error).split())
            on_error(message if str(path) in message else f"{path}: {message}")
        progress(1)
    del sam
    seen = [(path, questions) for path, questions in questioned if len(questions)]
    if not seen:
        unread = len(photos) - len(questioned)
        raise DatasetError(
            f"{len(photos)} photos, of which {unread} cannot be read; fp32 finds an object in none "
            "of the others: give photos of what the model is for"
        )

    def answers_of(recipe: Recipe) -> list[Answers]:
        model, answers = load(recipe), []
        for path, questions in seen:
            answers.append(compare(model, questions, load_image(path)))
            progress(1)
        return answers

    yardsticks = {
        dtype: answers_of(Recipe(dtype=dtype, attention=plain))
        for dtype in dict.fromkeys(recipe.dtype for recipe in recipes.values())
    }
    figures: dict[str, dict[str, Any]] = {}
    refused: UnsupportedRecipeError | None = None
    for name, recipe in recipes.items():
        try:
            answers = answers_of(recipe)
        except UnsupportedRecipeError as error:
            on_refusal(f"{name} is left out: {' '.join(str(error).split())}")
            refused = error
            continue
        figures[name] = summary([each for _, each in seen], answers, yardsticks[recipe.dtype])
    if refused is not None and not figures:
        raise refused
    return figures


def steps(photos: int, recipes: dict[str, Recipe]) -> int:
    """How many steps `measure` reports."""
    return photos * (1 + len({recipe.dtype for recipe in recipes.values()}) + len(recipes))


def questions_of(sam: SamFast, image: LoadedImage) -> Questions:
    """Labels from the mirrored photo, prompts for them, and fp32's answers on the photo itself."""
    size = height, width = image.size
    mirrored = LoadedImage(np.ascontiguousarray(image.pixels[:, ::-1]), image.name)
    ticks = (np.arange(SIDE) + 0.5) / SIDE
    grid = np.stack(np.meshgrid(ticks * width, ticks * height), axis=-1).reshape(-1, 2)
    masks_seen: list[Runs] = []
    quality: list[float] = []
    for _, masks in _answers(sam, sam.embed([mirrored]), "click", grid, size):
        masks_seen += rle.encode(masks.best().flip(-1))
        quality += masks.iou.amax(dim=1).tolist()
    labels = _distinct(masks_seen, quality, size)
    pixels = [_mask(label, size).numpy() for label in labels]
    clicks = np.array([edt(mask) for mask in pixels]).reshape(-1, 2)
    boxes = np.array([box_of(mask) for mask in pixels]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    embeddings = sam.embed([image])
    answers: dict[str, list[Runs]] = {kind: [] for kind in KINDS}
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind, prompts in zip(KINDS, (clicks, boxes), strict=True):
        for part, masks in _answers(sam, embeddings, kind, prompts, size):
            answers[kind] += rle.encode(masks.best())
            scores[kind] += _iou(masks.masks, labels[part], size)
    seen = [
        i
        for i in range(len(labels))
        if min(_area(answers[kind][i]) for kind in KINDS) >= NEGLIGIBLE
    ]
    return Questions(
        size=size,
        clicks=clicks[seen],
        boxes=boxes[seen],
        labels=[labels[i] for i in seen],
        answers={kind: [answers[kind][i] for i in seen] for kind in KINDS},
        scores={kind: np.array(scores[kind])[seen] for kind in KINDS},
    )


def compare(sam: SamFast, questions: Questions, image: LoadedImage) -> Answers:
    """A recipe's answers to the same questions, compared with fp32's and with the labels."""
    embeddings, size = sam.embed([image]), questions.size
    iou: dict[str, list[float]] = {kind: [] for kind in KINDS}
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind, prompts in zip(KINDS, (questions.clicks, questions.boxes), strict=True):
        for part, masks in _answers(sam, embeddings, kind, prompts, size):
            iou[kind] += _iou(masks.best()[:, None], questions.answers[kind][part], size)
            scores[kind] += _iou(masks.masks, questions.labels[part], size)
    return Answers(
        agreement={kind: np.array(values) for kind, values in iou.items()},
        scores={kind: np.array(values) for kind, values in scores.items()},
    )


def summary(
    questions: Sequence[Questions], answers: Sequence[Answers], yardstick: Sequence[Answers]
) -> dict[str, Any]:
    """One recipe's figures from its photos, each with at least one object; keys as of `measure`."""
    photos = list(zip(questions, answers, yardstick, strict=True))
    kinds: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        losses = [100 * (q.scores[kind] - a.scores[kind]) for q, a, _ in photos]
        loss, uncertainty = interval(losses)
        beyond = [100 * (y.agreement[kind] - a.agreement[kind]) for _, a, y in photos]
        kinds[kind] = {
            "agreement": _mean(a.agreement[kind] for a in answers),
            "loss": loss,
            "uncertainty": uncertainty,
            "disagreement": interval(beyond)[0],
        }
    return {
        "loss_points": max(
            value
            for kind in kinds.values()
            for value in (kind["loss"] + kind["uncertainty"], LOST * kind["disagreement"])
        ),
        "photos": len(photos),
        "objects": sum(map(len, questions)),
        "agreement_miou": _mean(value for a in answers for value in a.agreement.values()),
        "yardstick_miou": _mean(value for y in yardstick for value in y.agreement.values()),
        **kinds,
    }


def interval(photos: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The mean over all objects, and how far above it the one-sided 95 % interval ends.

    Objects of one photo are alike, so the spread is that between photos (the ratio estimator's,
    with Student's distribution); for a single photo it is unknown, and 100 points are taken.
    """
    from scipy import special

    sums, counts = np.array([p.sum() for p in photos]), np.array([len(p) for p in photos])
    mean, count = float(sums.sum() / counts.sum()), len(photos)
    if count < 2:
        return mean, 100.0
    variance = count / (count - 1) * float(((sums - mean * counts) ** 2).sum())
    error = math.sqrt(variance) / float(counts.sum())
    return mean, float(special.stdtrit(count - 1, 0.95)) * error


def _answers(
    sam: SamFast, embeddings: Embeddings, kind: str, prompts: NDArray[np.float64], size: Size
) -> Iterator[tuple[slice, Masks]]:
    """A slice of the objects and their masks, so that large photos fit in memory."""
    step = max(1, min(64, MAX_BYTES // (3 * size[0] * size[1])))
    for start in range(0, len(prompts), step):
        part = slice(start, start + step)
        question = (
            one_click_each(prompts[part]) if kind == "click" else Prompts(boxes=prompts[part])
        )
        yield part, sam.predict(embeddings, [question], multimask=kind == "click")[0]


def _distinct(masks: list[Runs], quality: list[float], size: Size) -> list[Runs]:
    """One mask for each object, at most MAX_OBJECTS, without negligible ones."""
    from pycocotools import mask as coco

    kept: list[Runs] = []
    packed: list[Any] = []
    order = np.argsort(-np.array(quality), kind="stable").tolist()
    visible = [masks[i] for i in order if _area(masks[i]) >= NEGLIGIBLE]
    for runs in visible:
        mask = coco.frPyObjects(rle.uncompressed(runs, *size), *size)
        if not kept or coco.iou([mask], packed, [0] * len(kept)).max() <= SAME_IOU:
            kept.append(runs)
            packed.append(mask)
        if len(kept) == MAX_OBJECTS:
            break
    return kept


def _iou(masks: Tensor, others: Sequence[Runs], size: Size) -> list[float]:
    """The best IoU of each (M, H, W) of the masks with one other mask."""
    return [
        float(intersection_over_union(mask[None], _mask(runs, size, masks.device)[None]).max())
        for mask, runs in zip(masks, others, strict=True)
    ]


def _mask(runs: Runs, size: Size, device: torch.device | None = None) -> Tensor:
    pixels = np.ascontiguousarray(coco_rle.decode({"size": size, "counts": runs}))
    return torch.from_numpy(pixels).to(device)


def _area(runs: Runs) -> int:
    return int(runs[1::2].sum())


def _mean(parts: Iterable[NDArray[Any]]) -> float:
    return float(np.concatenate(list(parts)).mean())
