"""The sparsify step: linear layers of the encoder's blocks with two of four neighbouring weights
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from samfast.errors import UnsupportedRecipeError
from samfast.linear import QuantizedLinear, SparseLinear, check_24, prune_layerwise
from samfast.linear import prune as pruning
from samfast.linear.encoder_layers import Place, places
from samfast.linear.sparse_24 import multiples
from samfast.model.sam import Sam
from samfast.recipes.recipe import Recipe


def apply(sam: Sam, recipe: Recipe) -> None:
    """Put a compressed layer in place of each that the recipe names; the model is on a GPU, in the
    recipe's dtype.

    The weights must be 2:4 sparse as they are: no weight is dropped here. A layer that is to be
    quantized too stays as it is for that step.

    Raises UnsupportedRecipeError for weights that are not 2:4 sparse, and says how they become so,
    and for sizes that the kernels cannot take.
    """
    assert recipe.sparsify is not None
    for place in places(sam, recipe.sparse_layers):
        if isinstance(place.module, QuantizedLinear):
            continue  # from a file: its pattern is checked when it is compressed
        layer = _linear(place)
        check_24(layer.weight, place.name)
        if recipe.quantize is None or place.layer not in recipe.quantized_layers:
            rows, columns = multiples()
            if layer.out_features % rows or layer.in_features % columns:
                raise UnsupportedRecipeError(
                    f"{place.name} has {layer.in_features} inputs and {layer.out_features} "
                    "outputs; 2:4 needs "
                    f"multiples of {columns} and {rows}: take a recipe without sparsify"
                )
            place.put(SparseLinear.from_linear(layer))


@torch.no_grad()
def by_magnitude(sam: Sam, recipe: Recipe) -> None:
    """Drop the smaller two of four weights of each layer that the recipe names.

    For random weights in benchmarks, where only speed is measured: trained ones lose several points
    of mean IoU.
    """
    for place in places(sam, recipe.sparse_layers):
        layer = _linear(place)
        layer.weight.copy_(pruning.magnitude(layer.weight))


def prune_by_calibration(
    sam: Sam,
    recipe: Recipe,
    images: Sequence[Tensor],
    *,
    progress: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """Prune each layer that the recipe names, in place, so that the model's answers on some photos
    change least.

    sam       in float32, on any device
    images    normalised pixels (1, 3, S, S) of each photo
    progress  called with 1 for each block that is done
    returns   for each layer, by its name in the state dict, the relative error of its answers on
              these photos
    """
    for place in places(sam, recipe.sparse_layers):
        _linear(place)
    return prune_layerwise.walk(sam, images, recipe.sparse_layers, progress=progress)


def _linear(place: Place) -> nn.Linear:
    if not isinstance(place.module, nn.Linear):
        raise UnsupportedRecipeError(
            f"{place.name} is a {type(place.module).__name__}, not an nn.Linear that could be made "
            "2:4 sparse; take "
            "a recipe without sparsify"
        )
    return place.module
