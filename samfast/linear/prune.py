"""Pruning to 2:4: which two of four neighbouring weights go, and what the rest become to make up for them.

A layer is seen through the moments of its inputs on calibration photos alone: with X its inputs (tokens, in) and Y
what it should answer (tokens, out), a weight W costs ||X W^T - Y||^2, which H = X^T X and B = Y^T X determine.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from samfast.linear.pattern import GROUP, KEPT, best_two, groups

ROWS_AT_A_TIME = 128
"""Rows of a weight whose systems are solved together; each has a matrix of (in / 2)^2 of its own."""


@dataclass
class Moments:
    """Sums over tokens, float64, of inputs x (in,) and wanted answers y (out,), added to photo by photo."""

    xx: Tensor
    yx: Tensor
    x: Tensor
    y: Tensor
    yy: Tensor
    count: int = 0

    @classmethod
    def of(cls, outputs: int, inputs: int, device: torch.device) -> Moments:
        """Empty ones."""
        zeros = [
            torch.zeros(shape, dtype=torch.float64, device=device)
            for shape in ((inputs, inputs), (outputs, inputs), (inputs,), (outputs,), (outputs,))
        ]
        return cls(*zeros)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Tokens x (T, in) with their answers y (T, out), float32."""
        self.xx += x.T @ x
        self.yx += y.T @ x
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.yy += y.square().sum(0)
        self.count += len(x)

    def centred(self) -> tuple[Tensor, Tensor]:
        """H (in, in) and B (out, in) of deviations from the mean: what is left when the bias is free."""
        h = self.xx - torch.outer(self.x, self.x) / self.count
        b = self.yx - torch.outer(self.y, self.x) / self.count
        return h, b

    def relative_error(self, weight: Tensor, bias: Tensor) -> float:
        """||X W^T + b - Y|| / ||Y||."""
        w, c = weight.double(), bias.double()
        product = ((w @ self.xx) * w).sum() + 2 * (c * (w @ self.x)).sum() + self.count * c.square().sum()
        cross = (w * self.yx).sum() + (c * self.y).sum()
        rest = product - 2 * cross + self.yy.sum()
        return float((rest.clamp(min=0) / self.yy.sum()).sqrt())


def magnitude(weight: Tensor) -> Tensor:
    """The larger two of four; the rest unchanged."""
    return weight * best_two(weight.abs())


def wanda(weight: Tensor, h: Tensor) -> Tensor:
    """The two of four with the larger |w| ||x|| (Sun et al. 2023, "A Simple and Effective Pruning Approach")."""
    return weight * best_two(weight.abs() * h.diagonal().clamp(min=0).sqrt().to(weight.dtype))


def surgeon(weight: Tensor, h: Tensor) -> Tensor:
    """Column by column, each removal made up for by the columns to its right (SparseGPT, Frantar and Alistarh 2023).

    weight  (out, in) float64;  h (in, in), positive definite
    """
    w = weight.clone()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for start in range(0, w.shape[1], GROUP):
        stop = start + GROUP
        block = w[:, start:stop]
        keep = best_two((block / factor.diagonal()[start:stop]).square())
        for column in range(start, stop):
            gone = torch.where(keep[:, column - start], 0.0, w[:, column])
            w[:, column:] -= torch.outer(gone / factor[column, column], factor[column, column:])
        w[:, start:stop] *= keep
    return w


def descend(weight: Tensor, h: Tensor, b: Tensor, sweeps: int) -> Tensor:
    """Group by group, the pair and the two values that are best while all other weights stay; never worse.

    weight  (out, in) float64, already 2:4;  h (in, in);  b (out, in)
    """
    w = weight.clone()
    pairs = torch.tensor(list(combinations(range(GROUP), KEPT)), device=w.device)
    blocks = torch.stack([h[i : i + GROUP, i : i + GROUP] for i in range(0, len(h), GROUP)])
    small = blocks[:, pairs[:, :, None], pairs[:, None, :]]  # (in / 4, 6, 2, 2)
    inverse = torch.linalg.inv(small)
    slope = b - w @ h
    for _ in range(sweeps):
        before = w.clone()
        for g, start in enumerate(range(0, w.shape[1], GROUP)):
            own = slice(start, start + GROUP)
            pull = slope[:, own] + w[:, own] @ blocks[g]  # as if the group were zero
            each = pull[:, pairs]  # (out, 6, 2)
            values = torch.einsum("npi,pij->npj", each, inverse[g])
            best = (values * each).sum(-1).argmax(dim=-1)
            chosen = torch.zeros_like(pull).scatter_(
                1, pairs[best], values[torch.arange(len(w), device=w.device), best]
            )
            slope -= (chosen - w[:, own]) @ h[own]
            w[:, own] = chosen
        if torch.equal(w != 0, before != 0):
            break
    return w


def refit(weight: Tensor, h: Tensor, b: Tensor) -> Tensor:
    """The best values of the weights that are not zero, all of a row's at once.

    weight  (out, in) float64, already 2:4;  h (in, in), positive definite;  b (out, in)
    """
    kept = best_two((weight != 0).double())  # exactly two of four, so that the systems of all rows are of one size
    index = kept.nonzero()[:, 1].view(len(weight), -1)
    out = torch.zeros_like(weight)
    for rows in torch.arange(len(weight), device=weight.device).split(ROWS_AT_A_TIME):
        own = index[rows]
        systems = h[own[:, :, None], own[:, None, :]]
        values = torch.cholesky_solve(
            b[rows].gather(1, own).unsqueeze(-1), torch.linalg.cholesky(systems)
        ).squeeze(-1)
        out[rows] = out[rows].scatter(1, own, values)
    return out
