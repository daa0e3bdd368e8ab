"""Pruning to 2:4: which two of four neighbouring weights go, and what the others become to make up
for them.

A layer is seen through the moments of its inputs on some photos alone: with X its inputs (tokens,
in) and Y what it should answer (tokens, out), a weight W costs ||X W^T - Y||^2, which H = X^T X and
B = Y^T X determine.

`prune` is what samfast does: SparseGPT's choice of weights, then the best values for those that are
left, all of an output channel's at once. On vit_xs that halves the error that SparseGPT leaves.
`magnitude` and `wanda` are here to compare with, and the first for random weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samfast.linear.pattern import GROUP, KEPT, best_two

DAMPING = 1e-3
"""Added to H, as a share of its mean diagonal: how much a weight is held to what it was where
photos say little."""

NUMBERS_AT_ONCE = 2**27
"""Size of the systems that `refit` solves together, in numbers: one for each output channel, (in /
2) x (in / 2)."""


@dataclass
class Moments:
    """Sums over tokens, in float64, of inputs x (in,) and wanted answers y (out,); they grow photo
    by photo.
    """

    xx: Tensor
    yx: Tensor
    x: Tensor
    y: Tensor
    yy: Tensor
    count: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int, device: torch.device | str = "cpu") -> Moments:
        """Those of no token at all."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            zeros(inputs, inputs),
            zeros(outputs, inputs),
            zeros(inputs),
            zeros(outputs),
            zeros(outputs),
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Tokens x (T, in) and what they should be answered with, y (T, out), float32."""
        self.xx += x.T @ x
        self.yx += y.T @ x
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.yy += y.square().sum(0)
        self.count += len(x)

    def relative_error(self, weight: Tensor, bias: Tensor | None) -> float:
        """||X W^T + b - Y|| / ||Y||. Of moments on a GPU this waits for it."""
        w = weight.double()
        b = torch.zeros_like(self.y) if bias is None else bias.double()
        own = (
            ((w @ self.xx) * w).sum() + 2 * (b * (w @ self.x)).sum() + self.count * b.square().sum()
        )
        shared = (w * self.yx).sum() + (b * self.y).sum()
        whole = self.yy.sum()
        return float(((own - 2 * shared + whole).clamp(min=0) / whole).sqrt())


def prune(
    weight: Tensor, bias: Tensor | None, moments: Moments, *, keep_bias: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A layer's weight (out, in) made 2:4, and its bias (out,) with it, so that its answers change
    least.

    keep_bias  leave the bias as it is
    returns    both in their own dtypes; no bias if there was none
    """
    w = weight.double()
    if bias is None or keep_bias:
        h = moments.xx
        b = moments.yx if bias is None else moments.yx - torch.outer(bias.double(), moments.x)
    else:  # what remains when the bias takes the means
        h = moments.xx - torch.outer(moments.x, moments.x) / moments.count
        b = moments.yx - torch.outer(moments.y, moments.x) / moments.count
    damping = DAMPING * h.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    h = h + damping * torch.eye(len(h), dtype=h.dtype, device=h.device)
    b = b + damping * w
    # Rounding is part of the answer, so the bias is found for the weight as it will be.
    w = refit(sparsegpt(w, h), h, b).to(weight.dtype)
    if bias is not None and not keep_bias:
        bias = ((moments.y - w.double() @ moments.x) / moments.count).to(bias.dtype)
    return w, bias


def magnitude(weight: Tensor) -> Tensor:
    """The larger two of four; they stay as they are."""
    return weight * best_two(weight.abs())


def wanda(weight: Tensor, h: Tensor) -> Tensor:
    """The two of four with the larger |w| ||x||; they stay as they are.

    Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models". h (in, in)
    is X^T X.
    """
    norms = h.diagonal().clamp(min=0).sqrt().to(weight.dtype)
    return weight * best_two(weight.abs() * norms)


def sparsegpt(weight: Tensor, h: Tensor) -> Tensor:
    """Column by column from the left, each removal made up for by the columns to its right.

    Frantar and Alistarh 2023, "SparseGPT", algorithm 1 with a mask block of four: of each four the
    two go whose removal costs least by the optimal brain surgeon's measure w^2 / [H^-1]_jj.

    weight  (out, in) float64;  h (in, in), positive definite
    """
    w = weight.clone()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for start in range(0, w.shape[1], GROUP):
        group = slice(start, start + GROUP)
        keep = best_two((w[:, group] / factor.diagonal()[group]).square())
        for column in range(start, start + GROUP):
            gone = w[:, column].masked_fill(keep[:, column - start], 0.0)
            w[:, column:] -= torch.outer(gone / factor[column, column], factor[column, column:])
        w[:, group] *= keep
    return w


def refit(weight: Tensor, h: Tensor, b: Tensor) -> Tensor:
    """The best values of the weights that are not zero, all of an output channel's at once (least
    squares).

    weight  (out, in) float64, already 2:4;  h (in, in), positive definite;  b (out, in)
    """
    rows, columns = weight.shape
    kept = best_two(
        (weight != 0).double()
    )  # exactly two of four, so that all systems are of one size
    index = kept.nonzero()[:, 1].view(rows, columns // GROUP * KEPT)
    out = torch.zeros_like(weight)
    step = max(1, NUMBERS_AT_ONCE // index.shape[1] ** 2)
    for start in range(0, rows, step):
        own = index[start : start + step]
        systems = torch.linalg.cholesky(h[own[:, :, None], own[:, None, :]])
        right = b[start : start + step].gather(1, own)
        values = torch.cholesky_solve(right.unsqueeze(-1), systems).squeeze(-1)
        out[start : start + step].scatter_(1, own, values)
    return out
