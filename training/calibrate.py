"""Calibrate a trained checkpoint: `python -m training.calibrate IN OUT --data DIR...`.

Two factors are absorbed exactly into last layers, so that no mask changes and no order of masks:

- Predicted IoU p becomes a * p + b, such that of the masks that the original's default of 0.88
  keeps, nine in ten overlap their object by at least half, and one in a hundred is rated 0.99.
- Logits are multiplied by a power of two, such that 19 in 20 of those are stable by the
  original's default (a stability score of 0.95).

Both are measured on the photos that training held out (`training.store.HELD_OUT`). Prints both as
JSON, with how often the answers of a rating are then right.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from samfast.model.config import CONFIGS
from samfast.model.sam import Sam, build
from training import state
from training.clicks import click
from training.network import Trainee
from training.score import shown, whole_photos
from training.store import Store, load

DEFAULT_IOU, DEFAULT_STABILITY = 0.88, 0.95
"""The original's default thresholds of predicted IoU and of the stability score."""

RATINGS = (0.0, 0.84, 0.88, 0.9, 0.92, 0.94, 0.96)
"""Where the bins of `reliability` begin."""

SCALES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Factors of the logits that are considered."""


@dataclass(frozen=True)
class Sample:
    """N answers to clicks.

    predicted, actual  (N, 3) IoU of the three masks
    stability          (N, 3, len(SCALES)), what each factor would make of the stability score
    """

    predicted: Tensor
    actual: Tensor
    stability: Tensor

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N,), (N,), (N, len(SCALES)): the mask of the highest predicted IoU."""
        rows, best = torch.arange(len(self.predicted)), self.predicted.argmax(1)
        return self.predicted[rows, best], self.actual[rows, best], self.stability[rows, best]


@torch.no_grad()
def sample(sam: Sam, store: Store, device: torch.device, clicks: int = 3, seed: int = 0) -> Sample:
    """Answers to random clicks in each object of whole photos."""
    trainee = Trainee(sam).eval()
    generator = torch.Generator(device).manual_seed(seed)
    corner = torch.zeros(2, dtype=torch.int64, device=device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for photo in whole_photos(store, device, sam.image_encoder.img_size, min_area=400):
        features = trainee.encode(shown(photo, sam), corner)
        truth = photo.truth.repeat_interleave(clicks, 0)
        points = click(truth, 0.3, generator)[:, None]
        labels = torch.ones(len(points), 1, dtype=torch.int64, device=device)
        unused = torch.zeros(len(points), 4, device=device)
        logits, iou = trainee.decode(
            features, corner, points, labels, unused, unused[:, 0] > 0, None
        )
        logits, iou = logits[:, 1:], iou[:, 1:]
        real = truth[:, None]
        overlap = ((logits > 0) & real).flatten(2).sum(2)
        actual = overlap / ((logits > 0) | real).flatten(2).sum(2).clamp(min=1)
        stability = [
            (logits > 1 / s).flatten(2).sum(2) / (logits > -1 / s).flatten(2).sum(2).clamp(min=1)
            for s in SCALES
        ]
        parts.append((iou.cpu(), actual.cpu(), torch.stack(stability, -1).cpu()))
    return Sample(*(torch.cat(each) for each in zip(*parts, strict=True)))


def share_right(predicted: Tensor, right: Tensor, share: float = 0.9) -> float:
    """The lowest prediction such that `share` of the answers predicted at least that are right."""
    order = predicted.argsort(descending=True)
    shares = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    enough = (shares >= share).nonzero()
    return float(predicted[order[enough[-1, 0] if len(enough) else 0]])


def fit(answers: Sample, right: float = 0.5) -> dict[str, float]:
    """`logit_scale`, `iou_scale` and `iou_shift` for `state.export`; right: the IoU that counts."""
    predicted, actual, stability = answers.best()
    kept_from = share_right(predicted, actual >= right)
    best = max(float(predicted.quantile(0.99)), kept_from + 0.1)
    scale = (0.99 - DEFAULT_IOU) / (best - kept_from)
    shift = 0.99 - scale * best
    kept = stability[predicted * scale + shift >= DEFAULT_IOU]
    enough = (kept >= DEFAULT_STABILITY).float().mean(0) >= 0.95
    index = int(enough.float().argmax()) if enough.any() else len(SCALES) - 1
    return {"logit_scale": float(SCALES[index]), "iou_scale": scale, "iou_shift": shift}


def reliability(answers: Sample, factors: dict[str, float]) -> list[dict[str, float]]:
    """Per bin of calibrated ratings: clicks, the share with an IoU of at least 0.5, mean IoU."""
    predicted, actual, _ = answers.best()
    rated = predicted * factors["iou_scale"] + factors["iou_shift"]
    rows = []
    for low, high in pairwise((*RATINGS, torch.inf)):
        iou = actual[(rated >= low) & (rated < high)]
        if len(iou):
            right = float((iou >= 0.5).float().mean())
            rows.append({"from": low, "clicks": len(iou), "right": right, "iou": float(iou.mean())})
    return rows


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="vit_xs", choices=CONFIGS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=Path, help="keep the answers here, or take them")
    options = parser.parse_args(argv)
    weights = state.read_checkpoint(options.checkpoint)
    if options.samples and options.samples.exists():
        answers = Sample(**torch.load(options.samples, weights_only=True))
    else:
        store = load(options.data, held_out=True)
        sam = build(CONFIGS[options.model])
        sam.load_state_dict(weights)
        device = torch.device(options.device)
        answers = sample(sam.to(device), store, device)
        if options.samples:
            torch.save(vars(answers), options.samples)
    factors = fit(answers)
    state.export(weights, options.out, **factors)
    print(json.dumps({**factors, "reliability": reliability(answers, factors)}, indent=1))


if __name__ == "__main__":
    main()
