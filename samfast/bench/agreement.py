"""How far a recipe's masks agree with fp32's on photos that nobody annotated, and what that says of
its loss.

What is to be known is the loss of mean IoU against the truth, in points, and there is no truth
here. Two figures stand in for it, and the worse one counts.

1. Loss against labels of fp32's own making. fp32 looks at the mirrored photo and finds objects
there; mirrored back,
   its masks are labels. Then fp32 and the recipe both look at the photo as it is, and are scored
   against those labels, by a click and by a box, as `samfast eval` scores against annotations.
   Neither has seen the mirrored view, so neither is at home in it: what only moves borders to and
   fro costs nothing, as it would cost nothing against the truth. (Agreement by itself has not this
   property: it takes every difference for a loss.) Of a click's three masks the best one is scored:
   which of them is preferred is often a toss, and its noise would drown everything. The photos are
   a sample, so what counts is the upper end of the one-sided 95 % interval of the mean.
2. A tenth of the disagreement with fp32 beyond that of the plain recipe of the same dtype, with the
masks that are
   preferred. 1 - IoU is a metric, so whatever the truth is, nobody loses more against it than he
   differs from fp32: disagreement bounds the loss, loosely. bfloat16 differs by a point from
   float32 and was measured to lose nothing; it is the yardstick, measured in the same run. What is
   left is mostly harmless as well; LOST is the part of it that was seen to be loss where there is a
   truth.

Where fp32 itself sees next to nothing there is nothing to compare: those objects are left out and
counted. `benchmarks/loss_without_truth.py` holds both figures against the loss on annotated photos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.bench.accuracy import intersection_over_union
from samfast.bench.points import box_of, edt
from samfast.errors import DatasetError, SamfastError, UnsupportedRecipeError
from samfast.images import LoadedImage, load_image
from samfast.masks import rle
from samfast.recipes import Recipe
from samfast.types import Embeddings, Masks, Prompts, Size

if TYPE_CHECKING:
    from samfast.engine import SamFast

SIDE = 8
"""Clicks along each side of the grid by which fp32 finds objects in the mirrored photo."""

NEGLIGIBLE = 16
"""A mask of fewer pixels than this is none."""

SAME = 0.7
"""Two masks of fp32 that overlap by more (IoU) are one object."""

MOST = 48
"""Objects of a photo at most, those of the highest predicted IoU: enough, and a photo's time stays
bounded."""

LOST = 0.1
"""The part of a disagreement that is counted as loss:
`benchmarks/results/vit_xs_loss_without_truth.json`."""

KINDS = ("click", "box")

AT_A_TIME = 1 << 27
"""Bytes of masks of a photo that are held as pixels at a time, roughly."""

Runs = NDArray[np.int64]
"""A mask as run lengths, see `samfast.masks.rle`."""

Load = Callable[[Recipe], "SamFast"]


@dataclass(frozen=True, eq=False)
class Questions:
    """What is asked of one photo, and fp32's answers.

    name        of the photo; size, its (H, W)
    clicks      (N, 2) XY, one on each label; boxes (N, 4) XYXY, one around each
    labels      N masks, as runs (`masks.rle`)
    answers     fp32's own for each kind, N masks as runs, of clicks the preferred ones
    scores      (N,) for each kind: IoU of a label with fp32's mask, of clicks with the best of
                three
    picked      (N,) which of its three masks fp32 preferred
    negligible  objects that were left out
    """

    name: str
    size: Size
    clicks: NDArray[np.float64]
    boxes: NDArray[np.float64]
    labels: list[Runs]
    answers: dict[str, list[Runs]]
    scores: dict[str, NDArray[np.float64]]
    picked: NDArray[np.int64]
    negligible: int

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a recipe answered to a photo's questions, for each kind an array (N,).

    agreement  IoU with fp32's answer, of clicks between the preferred masks
    scores     IoU with the label, of clicks that of the best of three masks
    flipped    share of the photo's pixels that differ from fp32's answer
    other      whether the preferred one of the three masks is another one than fp32's, of clicks
    """

    name: str
    agreement: dict[str, NDArray[np.float64]]
    scores: dict[str, NDArray[np.float64]]
    flipped: dict[str, NDArray[np.float64]]
    other: NDArray[np.bool_]


def measure(
    load: Load,
    photos: Sequence[Path],
    recipes: dict[str, Recipe],
    plain: str,
    *,
    progress: Callable[[int], object] | None = None,
    on_error: Callable[[str], object] | None = None,
    on_refusal: Callable[[str], object] | None = None,
) -> dict[str, dict[str, Any]]:
    """Compare recipes with fp32 on photos; each model is loaded once, and one at a time.

    load      makes the model of a recipe, encoding one image at a time
    recipes   what to measure, by name
    plain     the attention of fp32 and of the yardsticks, a name in `samfast.attention`
    progress  called with the number of photos done since it was last called, of `steps` in all
    on_error  called with one line for each photo that cannot be used, which is then left out; None:
              it raises
    on_refusal
              called with one line for each recipe that this model cannot run under; None: it raises
    returns   the figures of each recipe that was run: `loss_points`, what counts against a budget;
              `photos`, `objects` and `negligible` ones left out; `agreement_miou` with fp32 and the
              yardstick's, `flipped_pixels` and `other_mask`, shares; `worst`, the photo of least
              agreement; and for each kind of prompt `agreement`, `loss` in points against the
              labels, `uncertainty` (what the interval adds), `disagreement` beyond the yardstick in
              points

    Raises DatasetError when no photo is left, or fp32 finds no object in any;
    UnsupportedRecipeError when the model runs under none of the recipes.
    """
    tick = progress or (lambda steps: None)
    sam = load(Recipe(attention=plain))
    asked: list[tuple[Path, Questions]] = []
    failed = 0
    for path in photos:
        try:
            # TF32, which torch lets convolutions have, is a rounding too.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                asked.append((path, ask(sam, load_image(path))))
        except SamfastError as error:
            if on_error is None:
                raise
            failed += 1
            message = " ".join(str(error).split())
            on_error(message if str(path) in message else f"{path}: {message}")
        tick(1)
    del sam
    seen = [(path, questions) for path, questions in asked if len(questions)]
    if not seen:
        raise DatasetError(
            f"{len(photos)} photos, of which {failed} cannot be read; fp32 finds an object in none "
            "of the others: "
            "give photos of what the model is for"
        )
    yardsticks: dict[torch.dtype, list[Answers]] = {}
    found: dict[str, dict[str, Any]] = {}
    refused: UnsupportedRecipeError | None = None
    for dtype in dict.fromkeys(recipe.dtype for recipe in recipes.values()):
        yardsticks[dtype] = _run(load, Recipe(dtype=dtype, attention=plain), seen, tick)
    for name, recipe in recipes.items():
        try:
            own = _run(load, recipe, seen, tick)
        except UnsupportedRecipeError as error:
            if on_refusal is None:
                raise
            on_refusal(f"{name} is left out: {' '.join(str(error).split())}")
            refused = error
            continue
        found[name] = summary([questions for _, questions in seen], own, yardsticks[recipe.dtype])
        found[name]["negligible"] = sum(questions.negligible for _, questions in asked)
    if refused is not None and not found:
        raise refused
    return found


def steps(photos: int, recipes: dict[str, Recipe]) -> int:
    """How many steps `measure` reports."""
    return photos * (1 + len({recipe.dtype for recipe in recipes.values()}) + len(recipes))


def ask(sam: SamFast, image: LoadedImage) -> Questions:
    """The labels that fp32 finds in the mirrored photo, prompts for them, and fp32's answers on the
    photo itself.
    """
    size = height, width = image.size
    mirrored = LoadedImage(np.ascontiguousarray(image.pixels[:, ::-1]), image.name)
    ticks = (np.arange(SIDE) + 0.5) / SIDE
    grid = np.stack(np.meshgrid(ticks * width, ticks * height), axis=-1).reshape(-1, 2)
    found: list[Runs] = []
    quality: list[float] = []
    for _, masks in _answers(sam, sam.embed([mirrored]), "click", grid, size):
        found += rle.encode(masks.best().flip(-1))
        quality += masks.iou.amax(dim=1).tolist()
    labels, negligible = _distinct(found, quality, size)
    clicks = np.array([edt(_mask(label, size).numpy()) for label in labels]).reshape(-1, 2)
    boxes = np.array([box_of(_mask(label, size).numpy()) for label in labels]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    embeddings = sam.embed([image])
    answers: dict[str, list[Runs]] = {kind: [] for kind in KINDS}
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    picked: list[int] = []
    for kind, prompts in zip(KINDS, (clicks, boxes), strict=True):
        for part, masks in _answers(sam, embeddings, kind, prompts, size):
            answers[kind] += rle.encode(masks.best())
            scores[kind] += _iou(masks.masks, labels[part], size)
            picked += masks.iou.argmax(dim=1).tolist() if kind == "click" else []
    seen = [
        i
        for i in range(len(labels))
        if min(_area(answers[kind][i]) for kind in KINDS) >= NEGLIGIBLE
    ]
    return Questions(
        name=image.name,
        size=size,
        clicks=clicks[seen],
        boxes=boxes[seen],
        labels=[labels[i] for i in seen],
        answers={kind: [answers[kind][i] for i in seen] for kind in KINDS},
        scores={kind: np.array(scores[kind])[seen] for kind in KINDS},
        picked=np.array(picked, dtype=np.int64)[seen],
        negligible=negligible + len(labels) - len(seen),
    )


def compare(sam: SamFast, questions: Questions, image: LoadedImage) -> Answers:
    """A recipe's answers to the same questions, held against fp32's and against the labels."""
    embeddings = sam.embed([image])
    agreement: dict[str, list[float]] = {kind: [] for kind in KINDS}
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    flipped: dict[str, list[float]] = {kind: [] for kind in KINDS}
    picked: list[int] = []
    for kind, prompts in zip(KINDS, (questions.clicks, questions.boxes), strict=True):
        for part, masks in _answers(sam, embeddings, kind, prompts, questions.size):
            best, fp32 = masks.best(), questions.answers[kind][part]
            agreement[kind] += _iou(best[:, None], fp32, questions.size)
            scores[kind] += _iou(masks.masks, questions.labels[part], questions.size)
            for mask, runs in zip(best, fp32, strict=True):
                flipped[kind].append(
                    float((mask ^ _mask(runs, questions.size, mask.device)).double().mean())
                )
            picked += masks.iou.argmax(dim=1).tolist() if kind == "click" else []
    return Answers(
        name=questions.name,
        agreement={kind: np.array(agreement[kind]) for kind in KINDS},
        scores={kind: np.array(scores[kind]) for kind in KINDS},
        flipped={kind: np.array(flipped[kind]) for kind in KINDS},
        other=np.array(picked, dtype=np.int64) != questions.picked,
    )


def summary(
    questions: Sequence[Questions], answers: Sequence[Answers], yardstick: Sequence[Answers]
) -> dict[str, Any]:
    """The figures of one recipe from its photos, each with at least one object; see `measure` for
    the keys.
    """
    photos = list(zip(questions, answers, yardstick, strict=True))
    kinds: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        loss, uncertainty = interval(
            [100 * (q.scores[kind] - a.scores[kind]) for q, a, _ in photos]
        )
        beyond = [100 * (y.agreement[kind] - a.agreement[kind]) for _, a, y in photos]
        kinds[kind] = {
            "agreement": _mean(a.agreement[kind] for _, a, _ in photos),
            "loss": loss,
            "uncertainty": uncertainty,
            "disagreement": interval(beyond)[0],
        }
    by_photo = [_mean(a.agreement.values()) for a in answers]
    worst = int(np.argmin(by_photo))
    return {
        "loss_points": max(
            value
            for kind in kinds.values()
            for value in (kind["loss"] + kind["uncertainty"], LOST * kind["disagreement"])
        ),
        "photos": len(photos),
        "objects": sum(len(q) for q in questions),
        "agreement_miou": _mean(value for a in answers for value in a.agreement.values()),
        "yardstick_miou": _mean(value for y in yardstick for value in y.agreement.values()),
        "flipped_pixels": _mean(value for a in answers for value in a.flipped.values()),
        "other_mask": _mean(a.other for a in answers),
        "worst": {"photo": answers[worst].name, "agreement_miou": by_photo[worst]},
        **kinds,
    }


def interval(photos: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The mean over all objects of all photos, and how far above it the one-sided 95 % interval
    ends.

    Objects of one photo are alike, so the spread is that between photos (the ratio estimator's,
    with Student's distribution); of a single photo it is not known, and the whole scale is taken.
    """
    from scipy import special

    sums, counts = (
        np.array([each.sum() for each in photos]),
        np.array([len(each) for each in photos]),
    )
    mean, count = float(sums.sum() / counts.sum()), len(photos)
    if count < 2:
        return mean, 100.0
    error = (
        math.sqrt(count / (count - 1) * float(((sums - mean * counts) ** 2).sum())) / counts.sum()
    )
    return mean, float(special.stdtrit(count - 1, 0.95)) * float(error)


def _run(
    load: Load,
    recipe: Recipe,
    seen: Sequence[tuple[Path, Questions]],
    tick: Callable[[int], object],
) -> list[Answers]:
    sam = load(recipe)
    answers = []
    for path, questions in seen:
        answers.append(compare(sam, questions, load_image(path)))
        tick(1)
    return answers


def _answers(
    sam: SamFast, embeddings: Embeddings, kind: str, prompts: NDArray[np.float64], size: Size
) -> Iterator[tuple[slice, Masks]]:
    """Which objects, and their masks, a few at a time, so that large photos fit in memory."""
    step = max(1, min(64, AT_A_TIME // (3 * size[0] * size[1])))
    for start in range(0, len(prompts), step):
        part = slice(start, min(start + step, len(prompts)))
        own = prompts[part]
        if kind == "click":
            question = Prompts(points=own[:, None], labels=np.ones((len(own), 1), dtype=np.int64))
        else:
            question = Prompts(boxes=own)
        yield part, sam.predict(embeddings, [question], multimask=kind == "click")[0]


def _distinct(masks: list[Runs], quality: list[float], size: Size) -> tuple[list[Runs], int]:
    """The masks of at least NEGLIGIBLE pixels, one an object, MOST at most; and how many were
    negligible.
    """
    from pycocotools import mask as coco

    kept: list[Runs] = []
    compressed: list[Any] = []
    small = 0
    for i in np.argsort(-np.array(quality), kind="stable").tolist():
        if _area(masks[i]) < NEGLIGIBLE:
            small += 1
            continue
        own = coco.frPyObjects(rle.uncompressed(masks[i], *size), *size)
        if len(kept) < MOST and not (
            kept and coco.iou([own], compressed, [0] * len(kept)).max() > SAME
        ):
            kept.append(masks[i])
            compressed.append(own)
    return kept, small


def _iou(masks: Tensor, others: Sequence[Runs], size: Size) -> list[float]:
    """Of (n, M, H, W) masks, the one of each M that fits best, with n others."""
    return [
        float(intersection_over_union(own[None], _mask(runs, size, masks.device)[None]).max())
        for own, runs in zip(masks, others, strict=True)
    ]


def _mask(runs: Runs, size: Size, device: torch.device | None = None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rle.decode(rle.uncompressed(runs, *size)))).to(
        device
    )


def _area(runs: Runs) -> int:
    return int(runs[1::2].sum())


def _mean(parts: Iterable[NDArray[Any]]) -> float:
    return float(np.concatenate(list(parts)).mean())
