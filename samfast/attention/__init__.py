"""Window or global attention with decomposed relative position: one operation, implemented in
several ways behind the signature of `samfast.attention.reference.attend`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from samfast.attention import blocked, folded, onednn, reference, sdpa, triton
from samfast.errors import RecipeError


class Attend(Protocol):
    """The signature that every implementation has; see `samfast.attention.reference.attend`."""

    def __call__(
        self,
        qkv: Tensor,
        rel_pos_h: Tensor | None,
        rel_pos_w: Tensor | None,
        *,
        num_heads: int,
        window: int,
        pad: Tensor | None,
    ) -> Tensor: ...


IMPLEMENTATIONS: dict[str, Attend] = {
    "reference": reference.attend,
    "sdpa": sdpa.attend,
    "folded": folded.attend,
    "blocked": blocked.attend,
    "onednn": onednn.attend,
    "triton": triton.attend,
}


def get(name: str) -> Attend:
    """The implementation of that name; RecipeError if there is none."""
    if name not in IMPLEMENTATIONS:
        raise RecipeError(f"unknown attention {name!r}; there are {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]


__all__ = ["IMPLEMENTATIONS", "Attend", "get"]
