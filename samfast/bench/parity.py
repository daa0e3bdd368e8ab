"""Whether a recipe's answers are still SAM's: errors against fp32, and how large they may be."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from samfast.recipes import Recipe

Errors = dict[str, float]

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest relative error of each answer of an unquantized recipe, or a rival, of that dtype."""

TIMES_REFERENCE = 2.0
"""How many times the error of the plain model in the same half precision an error may be."""

LOSSY = {"quantize": 0.3, "sparsify": 1.2}
"""Largest relative error of the features of recipes that round further, by the field that does.

These bounds only tell SAM's answers from unrelated ones, which are 1.4 apart: random weights under
2:4 are 0.75 away in vit_xs. The mean IoU says what such a recipe costs.
"""


def without_tf32() -> AbstractContextManager[None]:
    """A block in which cuDNN's float32 convolutions are float32.

    torch allows TF32 in them, whose rounding would hide the differences between recipes. Timing
    uses torch's own settings, as the stamp states them.
    """
    block: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return block


def errors(answers: dict[str, Tensor], truth: dict[str, Tensor]) -> Errors:
    """The relative error of each of the answers."""
    return {key: relative_error(answer, truth[key]) for key, answer in answers.items()}


def relative_error(answer: Tensor, truth: Tensor) -> float:
    """||a - b|| / ||b|| in float64."""
    exact = truth.double()
    return float((answer.double().to(exact.device) - exact).norm() / exact.norm())


def judge(recipe: Recipe, relative: Errors, reference: Errors | None) -> str | None:
    """A row's status where a recipe's errors are too large; None where they are not.

    reference   the errors of the plain model in the same half precision, if it is one

    Lossy recipes are judged by their features against LOSSY. Others by every answer against
    TOLERANCE, and in half precision by the features, and by the largest of all errors, against
    TIMES_REFERENCE times the reference's: the IoU of a few objects is too noisy by itself.
    """
    if recipe.lossy:
        bound = max(LOSSY[field] for field in LOSSY if getattr(recipe, field) is not None)
        return _above(relative["features"], bound, "features' relative error")
    worst = max(relative.values(), key=lambda error: (error != error, error))  # NaN is the largest
    wrong = _above(worst, TOLERANCE[recipe.dtype], "relative error")
    if wrong is None and reference is not None:
        plain = f"; {TIMES_REFERENCE:g} times the error of the plain model in {name_of(recipe)}"
        bound = TIMES_REFERENCE * reference["features"]
        wrong = _above(relative["features"], bound, "features' relative error", plain)
        bound = TIMES_REFERENCE * max(reference.values())
        wrong = wrong or _above(worst, bound, "relative error", plain)
    return wrong


def judge_rival(dtype: torch.dtype, error: float) -> str | None:
    """A row's status where a rival's features are wrong; None where they are not."""
    return _above(error, TOLERANCE[dtype], "features' relative error")


def name_of(recipe: Recipe) -> str:
    """A recipe's dtype, as "bfloat16"."""
    return str(recipe.dtype).removeprefix("torch.")


def _above(error: float, bound: float, what: str, why: str = "") -> str | None:
    if error <= bound:  # false for NaN
        return None
    return f"wrong: {what} {error:.1e}, at most {bound:.1e} is allowed{why}"
