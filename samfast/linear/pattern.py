"""The 2:4 pattern: at most two of four neighbouring weights of an output channel are not zero."""

from __future__ import annotations

from torch import Tensor

from samfast.errors import UnsupportedRecipeError

GROUP, KEPT = 4, 2


def check_24(weight: Tensor, name: str = "weight") -> None:
    """UnsupportedRecipeError, with that name, if a weight (out, in) lacks the pattern."""
    rows, columns = weight.shape
    if columns % GROUP:
        raise UnsupportedRecipeError(
            f"{name}: 2:4 needs a multiple of {GROUP} input features, not {columns}; take a recipe "
            "without sparsify"
        )
    broken = int(((groups(weight) != 0).sum(dim=-1) > KEPT).sum())
    if broken:
        raise UnsupportedRecipeError(
            f"{name}: {broken} of {rows * columns // GROUP} groups of {GROUP} neighbouring weights "
            f"have more than {KEPT} that are not zero; prune the checkpoint first: "
            "samfast quantize CHECKPOINT IMAGES... --recipe 2:4 --out FILE"
        )


def best_two(scores: Tensor) -> Tensor:
    """Scores (out, in) -> bool: the two highest of four neighbours, the first of equal ones."""
    order = groups(scores).argsort(dim=-1, descending=True, stable=True)
    ranks = order.argsort(dim=-1)
    return (ranks < KEPT).view(scores.shape)


def groups(weight: Tensor) -> Tensor:
    """(out, in) -> (out, in / 4, 4)."""
    return weight.reshape(weight.shape[0], -1, GROUP)
