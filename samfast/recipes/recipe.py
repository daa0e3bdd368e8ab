"""Recipe: what is done to a SAM, as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samfast.attention import IMPLEMENTATIONS
from samfast.errors import RecipeError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPTS = ("looped",)


@dataclass(frozen=True)
class Recipe:
    """How a SAM is made fast. Every field stands alone; None leaves that step out.

    dtype      of weights and activations; coordinates and positional encodings stay float32
    attention  a name in `samfast.attention.IMPLEMENTATIONS`
    compile    a torch.compile mode; no mode is offered in this version
    prompts    "looped": one image's prompts at a time
    quantize   no step is offered in this version
    sparsify   no step is offered in this version

    Raises RecipeError for a value that there is not.
    """

    dtype: torch.dtype = torch.float32
    attention: str = "reference"
    compile: str | None = None
    prompts: str = "looped"
    quantize: str | None = None
    sparsify: str | None = None

    def __post_init__(self) -> None:
        for field, value, known in (
            ("dtype", self.dtype, DTYPES),
            ("attention", self.attention, tuple(IMPLEMENTATIONS)),
            ("prompts", self.prompts, PROMPTS),
            ("compile", self.compile, (None,)),
            ("quantize", self.quantize, (None,)),
            ("sparsify", self.sparsify, (None,)),
        ):
            if value not in known:
                raise RecipeError(f"recipe field {field}={value!r}; there are {', '.join(map(repr, known))}")

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"dtype={dtype}, attention={self.attention}, prompts={self.prompts}"
