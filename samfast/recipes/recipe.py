"""Recipe: how a SAM is made fast, as data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from samfast.attention import IMPLEMENTATIONS
from samfast.errors import RecipeError, UnsupportedRecipeError, shown
from samfast.linear.encoder_layers import LAYERS, LayerFormats, is_known

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPTS = ("looped", "nested", "packed")
PRODUCTS = ("torch", "onednn", "openvino")
COMPILE = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Recipe:
    """How a SAM is made fast. None or False leaves a step out.

    dtype       of weights and activations; coordinates and positional encodings stay float32
    attention   a name in `samfast.attention.IMPLEMENTATIONS`
    compile     a torch.compile mode for the encoder's blocks; "reduce-overhead" and "max-autotune"
                also replay the whole encoder as one CUDA graph
    prompts     "looped": one image's prompts at a time; "nested": those of all images as jagged
                nested tensors; "packed": as one flat batch, with `fuse` through a fused decoder,
                and on a GPU, with `graph`, in few sizes that are CUDA graphs
    quantize    "int8": the linear layers of the encoder's blocks in int8, activations quantized
                token by token; "fp8": the same in float8 (e4m3), which needs a 16-bit dtype
    sparsify    "2:4": two of four neighbouring weights are zero and are not multiplied; needs a
                16-bit dtype
    fuse        norms, residual additions, GELU and the quantization between the encoder's matrix
                products as one kernel each
    graph       replay the encoder, and a decoder of packed prompts, as CUDA graphs
    products    the library that multiplies matrices in the encoder: "torch", as torch itself
                chooses; "onednn", for CPUs: oneDNN with packed weights, GELU and residual additions
                inside its products; "openvino", for CPUs: the whole encoder, its attention too, as
                a graph that OpenVINO compiles, which needs the extra openvino
    quantized_layers, sparse_layers
                the layers of quantize and of sparsify, some of `LAYERS`; only beside that step

    Raises RecipeError for an unknown value or for layers without their step, and
    UnsupportedRecipeError for a combination that no device runs.

    >>> from dataclasses import replace
    >>> replace(RECIPES["fused"], quantize="int8")
    """

    dtype: torch.dtype = torch.float32
    attention: str = "reference"
    compile: str | None = None
    prompts: str = "looped"
    quantize: str | None = None
    sparsify: str | None = None
    fuse: bool = False
    graph: bool = False
    products: str = "torch"
    quantized_layers: tuple[str, ...] = LAYERS
    sparse_layers: tuple[str, ...] = LAYERS

    def __post_init__(self) -> None:
        for field, value, known in (
            ("dtype", self.dtype, DTYPES),
            ("attention", self.attention, tuple(IMPLEMENTATIONS)),
            ("prompts", self.prompts, PROMPTS),
            ("products", self.products, PRODUCTS),
            ("compile", self.compile, COMPILE),
            ("fuse", self.fuse, (False, True)),
            ("graph", self.graph, (False, True)),
        ):
            if not is_known(value, known):
                raise RecipeError(
                    f"recipe field {field}={shown(value)}; there are {', '.join(map(repr, known))}"
                )
        if self.products != "torch" and self.compile is not None:
            raise UnsupportedRecipeError(
                f"products={self.products!r} and compile={self.compile!r}: torch.compile makes "
                "products of its own; take one of the two"
            )
        if self.products == "openvino" and self.attention != "reference":
            raise UnsupportedRecipeError(
                f"products='openvino' and attention={self.attention!r}: OpenVINO's graph of the "
                "encoder has an attention of its own; leave attention out"
            )
        formats = self.layer_formats  # checks those fields
        for field, value in (("quantize", formats.quantize), ("sparsify", formats.sparsify)):
            if self.dtype == torch.float32 and value in ("fp8", "2:4"):
                raise UnsupportedRecipeError(
                    f"{field}={value!r} needs bf16 or fp16; take dtype=torch.bfloat16"
                )

    @property
    def layer_formats(self) -> LayerFormats:
        """The fields that change the weights of the encoder's linear layers."""
        return LayerFormats(self.quantize, self.quantized_layers, self.sparsify, self.sparse_layers)

    @property
    def encoder_settings(self) -> dict[str, Any]:
        """All fields on which the encoder depends, as JSON values: all but `prompts`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["prompts"]
        if self.products == "torch":  # as rows have it that are older than the field
            del values["products"]
        return values | {
            "dtype": _name(self.dtype),
            "quantized_layers": list(self.quantized_layers),
            "sparse_layers": list(self.sparse_layers),
        }

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

    def __repr__(self) -> str:
        """The fields that are not the default's, as a call."""
        given = [
            (field.name, getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in given)})"

    def __str__(self) -> str:
        parts = [f"dtype={_name(self.dtype)}"]
        parts += [f"attention={self.attention}", f"prompts={self.prompts}"]
        if self.compile:
            parts.append(f"compile={self.compile}")
        if self.products != "torch":
            parts.append(f"products={self.products}")
        parts += [name for name in ("fuse", "graph") if getattr(self, name)]
        for name, value, layers in (
            ("quantize", self.quantize, self.quantized_layers),
            ("sparsify", self.sparsify, self.sparse_layers),
        ):
            if value:
                chosen = "" if layers == LAYERS else f" of {'+'.join(layers)}"
                parts.append(f"{name}={value}{chosen}")
        return ", ".join(parts)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
