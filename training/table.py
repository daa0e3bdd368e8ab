"""Everything that is reported of a checkpoint: `python -m training.table WEIGHTS DATA...`.

Prints, as JSON, the scores of `samfast eval` on each DATA folder, how reliable the predicted IoU
is, and what "everything" finds in every eighth photo of the first folder. All of it counts only
annotated masks of at least 1024 pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import samfast
from samfast.bench.accuracy import Answers, evaluate, intersection_over_union
from samfast.bench.coco_dataset import AnnotatedImage, Dataset, open_dataset
from samfast.engine import SamFast
from samfast.outputs import decode

MIN_AREA = 1024
"""Pixels of the smallest annotated mask that counts."""

SMALL = 100
"""Pixels below which a connected piece of a mask or of its background is a fault."""

BINS = 10
"""Bins of predicted IoU."""


def truth_of(image: AnnotatedImage) -> NDArray[np.bool_]:
    """(N, H, W): the image's annotated masks of at least MIN_AREA pixels."""
    masks = [annotation.mask() for annotation in image.annotations]
    kept = [mask for mask in masks if mask.sum() >= MIN_AREA]
    return np.stack(kept) if kept else np.zeros((0, *image.size), bool)


def small_pieces(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Holes and islands of fewer than SMALL pixels, neighbours counted across corners."""
    from scipy import ndimage

    counts = []
    for pieces in (~mask, mask):
        labels, number = ndimage.label(pieces, structure=np.ones((3, 3)))
        areas = np.bincount(labels.ravel(), minlength=number + 1)[1:]
        counts.append(int((areas < SMALL).sum()))
    return counts[0], counts[1]


def reliability(predicted: NDArray[np.float64], actual: NDArray[np.float64]) -> dict[str, Any]:
    """Per bin of predicted IoU: masks, mean IoU, and the shares with an IoU of .5 and of .75."""
    index = np.clip((predicted * BINS).astype(int), 0, BINS - 1)
    rows = []
    for number in range(BINS):
        here = index == number
        if here.any():
            iou = actual[here]
            rows.append(
                {
                    "from": number / BINS,
                    "masks": int(here.sum()),
                    "predicted": float(predicted[here].mean()),
                    "iou": float(iou.mean()),
                    "share_50": float((iou >= 0.5).mean()),
                    "share_75": float((iou >= 0.75).mean()),
                }
            )
    sure = predicted >= 0.88
    return {
        "bins": rows,
        "kept_at_0.88": float(sure.mean()),
        "share_50_at_0.88": float((actual[sure] >= 0.5).mean()) if sure.any() else None,
        "mean_absolute_error": float(np.abs(predicted - actual).mean()),
    }


def scores(sam: SamFast, data: Dataset, limit: int | None) -> dict[str, Any]:
    """The result of `samfast eval`, with the reliability of the best predicted of three masks."""
    predicted: list[float] = []
    actual: list[float] = []

    def note(index: int, answers: Answers) -> None:
        answer = answers["point"]
        truth = torch.from_numpy(truth_of(data.images[index])).to(answer.masks.device)
        iou = intersection_over_union(answer.masks, truth).cpu()
        best = answer.iou.float().cpu().argmax(dim=1)
        rows = torch.arange(len(best))
        predicted.extend(answer.iou.float().cpu()[rows, best].tolist())
        actual.extend(iou[rows, best].tolist())

    result = evaluate(
        sam,
        data,
        min_area=MIN_AREA,
        limit=limit,
        on_answers=note,
        progress=lambda images: print(".", end="", file=sys.stderr, flush=True),
    )
    del result["by_category"]
    return result | {"reliability": reliability(np.array(predicted), np.array(actual))}


def everything(
    sam: SamFast, data: Dataset, pred_iou: float, stability: float, limit: int | None
) -> dict[str, Any]:
    """What 16 x 16 clicks find in every eighth photo that has masks of MIN_AREA pixels.

    The thresholds are `pred_iou_thresh` and `stability_score_thresh`.
    """
    photos = [image for image in data.images[:limit] if len(truth_of(image))][::8]
    counts, holes, islands = [], 0, 0
    best: list[float] = []
    for image in photos:
        records = sam.segment(
            [image.path],
            points_per_side=16,
            pred_iou_thresh=pred_iou,
            stability_score_thresh=stability,
        )[0]
        counts.append(len(records))
        masks = [decode(record["segmentation"]).astype(bool) for record in records]
        for mask in masks:
            hole, island = small_pieces(mask)
            holes, islands = holes + hole, islands + island
        for real in truth_of(image):
            ious = [(mask & real).sum() / (mask | real).sum() for mask in masks]
            best.append(float(max(ious, default=0.0)))
        print("+", end="", file=sys.stderr, flush=True)
    masks_in_all = max(1, sum(counts))
    return {
        "thresholds": [pred_iou, stability],
        "photos": len(photos),
        "annotated_masks": len(best),
        "masks_per_photo": float(np.mean(counts)),
        "median_masks": float(np.median(counts)),
        "least_and_most": [min(counts), max(counts)],
        "recall_50": float((np.array(best) >= 0.5).mean()),
        "recall_75": float((np.array(best) >= 0.75).mean()),
        "holes_per_mask": holes / masks_in_all,
        "islands_per_mask": islands / masks_in_all,
        "small_pieces_per_mask": (holes + islands) / masks_in_all,
    }


def table(
    checkpoint: Path,
    folders: list[Path],
    recipe: str = "fp32_blocked",
    limit: int | None = None,
    thresholds: list[tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """The whole table of a checkpoint as a dictionary."""
    sam = samfast.load("vit_xs", checkpoint=checkpoint, recipe=recipe)
    data = [open_dataset(folder) for folder in folders]
    return {
        "checkpoint": checkpoint.name,
        "everything": [
            everything(sam, data[0], *pair, limit)
            for pair in thresholds or [(0.88, 0.95), (0.6, 0.85)]
        ],
        **{
            folder.name: scores(sam, each, limit)
            for folder, each in zip(folders, data, strict=True)
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--recipe", default="fp32_blocked")
    parser.add_argument("--limit", type=int, help="photos of each folder")
    options = parser.parse_args(argv)
    result = table(options.checkpoint, options.data, options.recipe, options.limit)
    print(file=sys.stderr)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
