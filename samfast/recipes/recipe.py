"""Recipe: what is done to a SAM, as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samfast.attention import IMPLEMENTATIONS
from samfast.errors import RecipeError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPTS = ("looped", "nested", "packed")
COMPILE = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
QUANTIZE = (None, "int8", "fp8")
SPARSIFY = (None, "2:4")
LAYERS = ("qkv", "proj", "lin1", "lin2")
"""The linear layers of an encoder block, by Meta's names."""


@dataclass(frozen=True)
class Recipe:
    """How a SAM is made fast. Every field stands alone; None or False leaves that step out.

    dtype       of weights and activations; coordinates and positional encodings stay float32
    attention   a name in `samfast.attention.IMPLEMENTATIONS`
    compile     a torch.compile mode for the encoder's blocks; in "reduce-overhead" and
                "max-autotune" the CUDA graph is samfast's own, one of the whole encoder
    prompts     "looped": one image's prompts at a time; "nested": those of all images as jagged
                nested tensors; "packed": as one flat batch, with `fuse` through a fused decoder,
                and on a GPU, with `graph`, in few sizes that are CUDA graphs
    quantize    "int8": the linear layers of the encoder's blocks in int8, activations quantized
                token by token; "fp8": the same in float8 (e4m3)
    sparsify    "2:4": two of four neighbouring weights are zero and are not multiplied
    fuse        norms, residual additions, GELU and the quantization between the encoder's matrix
                products as one kernel each
    graph       replay the encoder, and a decoder of packed prompts, as CUDA graphs
    quantized_layers, sparse_layers
                which layers the two steps take, of LAYERS

    Raises RecipeError for a value that there is not.
    """

    dtype: torch.dtype = torch.float32
    attention: str = "reference"
    compile: str | None = None
    prompts: str = "looped"
    quantize: str | None = None
    sparsify: str | None = None
    fuse: bool = False
    graph: bool = False
    quantized_layers: tuple[str, ...] = LAYERS
    sparse_layers: tuple[str, ...] = LAYERS

    def __post_init__(self) -> None:
        for field, value, known in (
            ("dtype", self.dtype, DTYPES),
            ("attention", self.attention, tuple(IMPLEMENTATIONS)),
            ("prompts", self.prompts, PROMPTS),
            ("compile", self.compile, COMPILE),
            ("quantize", self.quantize, QUANTIZE),
            ("sparsify", self.sparsify, SPARSIFY),
            ("fuse", self.fuse, (False, True)),
            ("graph", self.graph, (False, True)),
        ):
            if value not in known:
                raise RecipeError(
                    f"recipe field {field}={value!r}; there are {', '.join(map(repr, known))}"
                )
        for field, chosen in (
            ("quantized_layers", self.quantized_layers),
            ("sparse_layers", self.sparse_layers),
        ):
            if not chosen or isinstance(chosen, str) or not set(chosen) <= set(LAYERS):
                raise RecipeError(
                    f"recipe field {field}={chosen!r}; give some of {', '.join(LAYERS)}"
                )

    @property
    def graphed(self) -> bool:
        """Whether the encoder is replayed as a CUDA graph, by `graph` or by the mode of
        `compile`.
        """
        return self.graph or self.compile in ("reduce-overhead", "max-autotune")

    @property
    def lossy(self) -> bool:
        """Whether weights or activations are rounded further than to `dtype`."""
        return self.quantize is not None or self.sparsify is not None

    def __str__(self) -> str:
        parts = [
            f"dtype={str(self.dtype).removeprefix('torch.')}",
            f"attention={self.attention}",
            f"prompts={self.prompts}",
        ]
        if self.compile:
            parts.append(f"compile={self.compile}")
        if self.fuse:
            parts.append("fuse")
        if self.graph:
            parts.append("graph")
        for name, value, layers in (
            ("quantize", self.quantize, self.quantized_layers),
            ("sparsify", self.sparsify, self.sparse_layers),
        ):
            if value:
                chosen = "" if layers == LAYERS else f" of {'+'.join(layers)}"
                parts.append(f"{name}={value}{chosen}")
        return ", ".join(parts)
