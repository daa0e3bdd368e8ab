"""The quantize step: linear layers of the encoder's blocks in int8 or fp8."""

from __future__ import annotations

from torch import nn

from samfast.errors import CheckpointError, UnsupportedRecipeError
from samfast.linear import Fp8Linear, Int8Linear, QuantizedLinear, SparseInt8Linear
from samfast.linear.encoder_layers import Place, places
from samfast.model.sam import Sam
from samfast.recipes.recipe import Recipe

FORMATS: dict[str, type[Int8Linear] | type[Fp8Linear]] = {"int8": Int8Linear, "fp8": Fp8Linear}

MULTIPLE, SPARSE_MULTIPLE = 16, 32
"""What both sizes of an 8-bit layer must be multiples of on a GPU, and of one that is 2:4 sparse
too."""


def apply(sam: Sam, recipe: Recipe) -> None:
    """Put a quantized layer in place of each that the recipe names, where the model is; those that
    a file brought are kept as they are.

    Weights are quantized as they stand: in the recipe's dtype, and with the zeros that pruning
    left.

    Raises UnsupportedRecipeError for sizes that the kernels cannot take, CheckpointError for layers
    that are quantized to another format, or that are to be 2:4 sparse and are not.
    """
    assert recipe.quantize is not None
    for place in places(sam, recipe.quantized_layers):
        sparse = recipe.sparsify is not None and place.layer in recipe.sparse_layers
        place.put(_quantized(place, recipe, sparse))


def _quantized(place: Place, recipe: Recipe, sparse: bool) -> QuantizedLinear:
    module = place.module
    assert recipe.quantize is not None
    if sparse and recipe.quantize != "int8":
        raise UnsupportedRecipeError(
            f"{place.name}: {recipe.quantize} and 2:4 in one layer; take int8 with 2:4, or other "
            "sparse_layers than "
            "quantized_layers"
        )
    kind = FORMATS[recipe.quantize]
    if isinstance(module, QuantizedLinear):
        if module.kind != recipe.quantize:
            raise CheckpointError(
                f"{place.name} is quantized to {module.kind} already, and the recipe asks for "
                f"{recipe.quantize}; "
                "give the checkpoint that it was made from"
            )
        layer = module
    elif isinstance(module, nn.Linear):
        _check_sizes(place, module, recipe.quantize, SPARSE_MULTIPLE if sparse else MULTIPLE)
        layer = kind.from_linear(module)
    else:
        raise UnsupportedRecipeError(
            f"{place.name} is a {type(module).__name__}, not an nn.Linear that could be quantized; "
            "take a recipe "
            "without quantize"
        )
    if sparse and isinstance(layer, Int8Linear):
        return SparseInt8Linear(
            layer.weight, layer.weight_scale, layer.bias, layer.dtype, place.name
        )
    return layer


def _check_sizes(place: Place, module: nn.Linear, kind: str, multiple: int) -> None:
    sizes = (module.in_features, module.out_features)
    on_gpu = kind == "fp8" or module.weight.is_cuda  # a CPU multiplies int8 of any size
    if on_gpu and any(size % multiple for size in sizes):
        raise UnsupportedRecipeError(
            f"{place.name} has {sizes[0]} inputs and {sizes[1]} outputs; {kind} needs multiples of "
            f"{multiple}: take "
            "a recipe without quantize"
        )
