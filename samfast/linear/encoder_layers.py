"""The linear layers of the encoder's blocks, and the formats that a recipe gives them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from samfast.errors import RecipeError, UnsupportedRecipeError, shown
from samfast.linear.quantized_linear import QuantizedLinear
from samfast.linear.sparse_24 import SparseLinear
from samfast.model.sam import Sam

LAYERS = ("qkv", "proj", "lin1", "lin2")
"""The linear layers of an encoder block, by Meta's names."""

PARENTS = {"qkv": "attn", "proj": "attn", "lin1": "mlp", "lin2": "mlp"}

QUANTIZE = (None, "int8", "fp8")
SPARSIFY = (None, "2:4")


def is_known(value: object, known: Collection[object]) -> bool:
    """Whether the value is one of those; False for arrays, which compare to no single answer."""
    return any(value is each or (type(value) is type(each) and value == each) for each in known)


@dataclass(frozen=True)
class LayerFormats:
    """The part of a recipe that changes the weights of linear layers; fields as `Recipe` has them.

    Raises RecipeError for unknown values, and for layers of a step that is left out;
    UnsupportedRecipeError for fp8 and 2:4 in one layer.
    """

    quantize: str | None = None
    quantized_layers: tuple[str, ...] = LAYERS
    sparsify: str | None = None
    sparse_layers: tuple[str, ...] = LAYERS

    def __post_init__(self) -> None:
        for step, value, known, field, layers in (
            ("quantize", self.quantize, QUANTIZE, "quantized_layers", self.quantized_layers),
            ("sparsify", self.sparsify, SPARSIFY, "sparse_layers", self.sparse_layers),
        ):
            if not is_known(value, known):
                raise RecipeError(
                    f"recipe field {step}={shown(value)}; there are {', '.join(map(repr, known))}"
                )
            listed = isinstance(layers, tuple | list)
            if not listed or not layers or not all(is_known(each, LAYERS) for each in layers):
                raise RecipeError(
                    f"recipe field {field}={shown(layers)}; give some of {', '.join(LAYERS)}"
                )
            if value is None and layers != LAYERS:
                raise RecipeError(f"recipe field {field}={layers!r} needs {step}; give both")
        both = sorted(self.quantized & self.sparse)
        if self.quantize == "fp8" and both:
            raise UnsupportedRecipeError(
                f"fp8 and 2:4 in one layer ({', '.join(both)}); take int8 with 2:4, or other "
                "sparse_layers than quantized_layers"
            )

    @property
    def quantized(self) -> frozenset[str]:
        """The layers that are quantized."""
        return frozenset(self.quantized_layers if self.quantize else ())

    @property
    def sparse(self) -> frozenset[str]:
        """The layers that are 2:4 sparse."""
        return frozenset(self.sparse_layers if self.sparsify else ())

    def __str__(self) -> str:
        steps = ((self.quantize, self.quantized), (self.sparsify, self.sparse))
        done = [
            f"{step} ({', '.join(layer for layer in LAYERS if layer in layers)})"
            for step, layers in steps
            if step
        ]
        return " and ".join(done) or "neither quantized nor pruned"


@dataclass(frozen=True)
class EncoderLayer:
    """One linear layer of one block, which can be replaced.

    name   as in the model's state dict: "image_encoder.blocks.3.attn.qkv"
    layer  one of LAYERS
    """

    name: str
    layer: str
    parent: nn.Module

    @property
    def module(self) -> nn.Module:
        """The present module."""
        module: nn.Module = getattr(self.parent, self.layer)
        return module

    def put(self, module: nn.Module) -> None:
        """Replace the module."""
        setattr(self.parent, self.layer, module)

    def linear(self, step: str, made: str) -> nn.Linear:
        """The module, if it is a plain linear layer; else UnsupportedRecipeError.

        step, made  for the message: the recipe's field, and what the layer cannot become
        """
        if not isinstance(self.module, nn.Linear):
            raise UnsupportedRecipeError(
                f"{self.name} is a {type(self.module).__name__}, not an nn.Linear that could be "
                f"{made}; take a recipe without {step}"
            )
        return self.module


def encoder_layers(sam: Sam, layers: Collection[str] = LAYERS) -> list[EncoderLayer]:
    """Those layers of every block, from the first block to the last."""
    return [
        EncoderLayer(
            f"image_encoder.blocks.{index}.{PARENTS[layer]}.{layer}",
            layer,
            getattr(block, PARENTS[layer]),
        )
        for index, block in enumerate(sam.image_encoder.blocks)
        for layer in LAYERS
        if layer in layers
    ]


def parameter_count(model: nn.Module) -> int:
    """Weights and biases of the model, those of quantized and sparse layers included."""
    count = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, QuantizedLinear | SparseLinear):  # their weights are buffers
            count += module.in_features * module.out_features
            count += 0 if module.bias is None else module.out_features
    return count
