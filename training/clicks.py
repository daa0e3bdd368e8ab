"""Simulated prompts: first a click or a box, then clicks on the error (SAM, section A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augment import LOW_RES


def interior(mask: Tensor) -> Tensor:
    """(P, h, w) float, larger deeper inside the mask: a cheap distance transform."""
    depth = mask.float().unsqueeze(1)
    total = torch.zeros_like(depth)
    for size in (3, 9, 27, 81):
        # A box filter is the product of one along each axis, which is many times cheaper.
        rows = F.avg_pool2d(depth, (size, 1), stride=1, padding=(size // 2, 0))
        total += F.avg_pool2d(rows, (1, size), stride=1, padding=(0, size // 2))
    return total[:, 0] * mask


def pick(score: Tensor) -> Tensor:
    """(P, 2) XY in input pixels: the centre of the pixel with the highest score (P, h, w)."""
    width = score.shape[-1]
    flat = score.flatten(1).argmax(1)
    xy = torch.stack([flat % width, flat // width], dim=-1).float()
    return xy * LOW_RES + (LOW_RES - 1) / 2


def click(mask: Tensor, central: float, generator: torch.Generator) -> Tensor:
    """A point (P, 2) in each mask (P, h, w): deep inside for a share `central`, else anywhere."""
    noise = torch.rand(mask.shape, generator=generator, device=mask.device)
    anywhere = noise * mask
    deep = interior(mask) * (1 + 0.05 * noise)
    share = torch.rand(mask.shape[0], 1, 1, generator=generator, device=mask.device) < central
    return pick(torch.where(share, deep, anywhere))


def correction(logits: Tensor, truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The next click (P, 2), deep inside the error, and its label (P,): 1 where mask is missing."""
    wrong = (logits > 0) != truth
    none = ~wrong.flatten(1).any(1)
    wrong = torch.where(none[:, None, None], truth, wrong)
    point = click(wrong, 0.5, generator)
    cell = (point / LOW_RES).long()
    rows = torch.arange(len(truth), device=truth.device)
    return point, truth[rows, cell[:, 1], cell[:, 0]].long()


def boxes(mask: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """(P, 4) XYXY in input pixels around each mask.

    A share `jitter` of the boxes is moved by noise with a deviation of a tenth of the side.
    """
    columns, rows = mask.any(1), mask.any(2)

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        length = line.shape[1]
        first = line.float().argmax(1)
        last = length - line.flip(1).float().argmax(1)
        return first.float() * LOW_RES, last.float() * LOW_RES

    x0, x1 = ends(columns)
    y0, y1 = ends(rows)
    box = torch.stack([x0, y0, x1, y1], dim=-1)
    sides = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], dim=-1)
    device = mask.device
    noise = torch.randn(box.shape, generator=generator, device=device) * sides * 0.1
    noise = noise.clamp(-20, 20)
    exact = torch.rand(len(box), 1, generator=generator, device=device) >= jitter
    # A box of a low-resolution mask is off by up to two pixels; make that error uniform.
    noise = torch.where(
        exact, torch.rand(box.shape, generator=generator, device=device) * 4 - 2, noise
    )
    return box + noise
