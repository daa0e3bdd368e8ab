"""The sparsify step: linear layers of the encoder's blocks with 2:4 sparse weights."""

from __future__ import annotations

from collections.abc import Collection

import torch

from samfast.errors import UnsupportedRecipeError
from samfast.linear.encoder_layers import LayerFormats, encoder_layers
from samfast.linear.pattern import check_24
from samfast.linear.prune import magnitude
from samfast.linear.quantized_linear import QuantizedLinear
from samfast.linear.sparse_24 import SparseLinear, multiples
from samfast.model.sam import Sam


def sparsify_layers(sam: Sam, formats: LayerFormats) -> None:
    """Compress the layers that the formats name, in place; the model is on a GPU.

    No weight is dropped: the weights must be 2:4 sparse as they are. Layers that are quantized too
    stay as they are for that step.

    Raises UnsupportedRecipeError for weights that are not 2:4 sparse, and says how they become so,
    and for sizes that the kernels cannot take.
    """
    for layer in encoder_layers(sam, formats.sparse):
        if isinstance(layer.module, QuantizedLinear):
            continue  # from a file: its pattern is checked when it is compressed
        linear = layer.linear("sparsify", "made 2:4 sparse")
        check_24(linear.weight, layer.name)
        if layer.layer in formats.quantized:
            continue
        rows, columns = multiples()
        if linear.out_features % rows or linear.in_features % columns:
            raise UnsupportedRecipeError(
                f"{layer.name} has {linear.in_features} inputs and {linear.out_features} outputs; "
                f"2:4 needs multiples of {columns} and {rows}: take a recipe without sparsify"
            )
        layer.put(SparseLinear.from_linear(linear))


@torch.no_grad()
def prune_by_magnitude(sam: Sam, layers: Collection[str]) -> None:
    """Drop the smaller two of four weights of those layers, in place.

    For random weights in benchmarks, where only speed is measured: trained ones lose several points
    of mean IoU.
    """
    for layer in encoder_layers(sam, layers):
        linear = layer.linear("sparsify", "made 2:4 sparse")
        linear.weight.copy_(magnitude(linear.weight))
