"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before each step.

The update of every matrix then has singular values near 1, so no direction of its weights learns
much faster than the others. Matrices of one shape are stacked and treated together, because this
model has a hundred small ones. Everything that is no matrix inside the network goes to AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan's quintic iteration."""


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, m, n), m <= n -> (N, m, n) with the same singular vectors, and singular values near 1."""
    a, b, c = COEFFICIENTS
    x: Tensor = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)


def hidden_matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights that Muon trains: linear layers, but for the last ones of small networks."""
    return [
        (f"{name}.weight", module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("layers.2")
    ]


def wide_parts(name: str, matrix: Tensor) -> Iterator[Tensor]:
    """A weight or its gradient as matrices that are not taller than wide, all of them views.

    The weight of `qkv` is three matrices on top of each other.
    """
    for part in matrix.chunk(3 if name.endswith("qkv.weight") else 1):
        yield part.mT if part.shape[0] > part.shape[1] else part


class Muon:
    """Muon for the given named matrices."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        weight_decay: float,
        momentum: float = 0.95,
        compiled: bool = False,
    ) -> None:
        self.weight_decay, self.momentum = weight_decay, momentum
        self.parameters = list(parameters)
        self.orthogonalize: Any = orthogonalize
        if compiled:
            self.orthogonalize = torch.compile(orthogonalize, dynamic=False)
        self.buffers: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update all matrices; `rate` is comparable to AdamW's (Liu et al. 2025, section 2.2)."""
        weights: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        grads: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for name, parameter in self.parameters:
            assert parameter.grad is not None
            parts = wide_parts(name, parameter.data), wide_parts(name, parameter.grad)
            for weight, grad in zip(*parts, strict=True):
                weights[tuple(weight.shape)].append(weight)
                grads[tuple(weight.shape)].append(grad)
        for shape, targets in weights.items():
            stack = torch.stack(grads[shape])
            buffer = self.buffers.setdefault(shape, torch.zeros_like(stack))
            buffer.mul_(self.momentum).add_(stack)
            update = self.orthogonalize(stack.add_(buffer, alpha=self.momentum))
            torch._foreach_mul_(targets, 1 - rate * self.weight_decay)
            torch._foreach_add_(targets, list(update.unbind()), alpha=-rate * 0.2 * shape[1] ** 0.5)
