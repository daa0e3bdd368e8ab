"""Whether weights are 2:4 sparse."""

from __future__ import annotations

from torch import Tensor

from samfast.errors import UnsupportedRecipeError
from samfast.linear import check_24


def satisfies_24(weight: Tensor) -> bool:
    """Whether a weight (out, in) has the pattern."""
    try:
        check_24(weight)
    except UnsupportedRecipeError:
        return False
    return True
