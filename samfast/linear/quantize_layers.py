"""The quantize step: linear layers of the encoder's blocks in int8 or fp8."""

from __future__ import annotations

from torch import nn

from samfast.errors import CheckpointError, UnsupportedRecipeError
from samfast.linear.encoder_layers import EncoderLayer, LayerFormats, encoder_layers
from samfast.linear.fp8 import Fp8Linear
from samfast.linear.int8 import Int8Linear
from samfast.linear.quantized_linear import QuantizedLinear
from samfast.linear.sparse_int8 import SparseInt8Linear
from samfast.model.sam import Sam

FORMATS: dict[str, type[Int8Linear] | type[Fp8Linear]] = {"int8": Int8Linear, "fp8": Fp8Linear}

MULTIPLE, SPARSE_MULTIPLE = 16, 32
"""On a GPU both sizes of an 8-bit layer must be multiples of this; of one that is 2:4 sparse too,
of the second."""


def quantize_layers(sam: Sam, formats: LayerFormats) -> None:
    """Quantize the layers that the formats name, in place; those read from a quantized file stay.

    Weights are quantized as they are: in the model's dtype, and with the zeros of pruning.

    Raises UnsupportedRecipeError for sizes that the kernels cannot take, CheckpointError for layers
    that are quantized to another format, or that must be 2:4 sparse and are not.
    """
    assert formats.quantize is not None
    for layer in encoder_layers(sam, formats.quantized):
        layer.put(_quantized(layer, formats.quantize, layer.layer in formats.sparse))


def _quantized(layer: EncoderLayer, kind: str, sparse: bool) -> QuantizedLinear:
    module = layer.module
    if isinstance(module, QuantizedLinear):
        if module.kind != kind:
            raise CheckpointError(
                f"{layer.name} is quantized to {module.kind} already, and the recipe asks for "
                f"{kind}; give the checkpoint that it was made from"
            )
        quantized = module
    else:
        linear = layer.linear("quantize", "quantized")
        _check_sizes(layer.name, linear, kind, SPARSE_MULTIPLE if sparse else MULTIPLE)
        quantized = FORMATS[kind].from_linear(linear)
    if sparse and isinstance(quantized, Int8Linear):
        return SparseInt8Linear(
            quantized.weight, quantized.weight_scale, quantized.bias, quantized.dtype, layer.name
        )
    return quantized


def _check_sizes(name: str, module: nn.Linear, kind: str, multiple: int) -> None:
    sizes = (module.in_features, module.out_features)
    on_gpu = kind == "fp8" or module.weight.is_cuda  # a CPU multiplies int8 of any size
    if on_gpu and any(size % multiple for size in sizes):
        raise UnsupportedRecipeError(
            f"{name} has {sizes[0]} inputs and {sizes[1]} outputs; {kind} needs multiples of "
            f"{multiple}: take a recipe without quantize"
        )
