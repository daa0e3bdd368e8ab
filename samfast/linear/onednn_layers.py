"""Linear layers of the encoder with their weights packed for oneDNN's products on a CPU."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.device import onednn_products
from samfast.errors import UnsupportedRecipeError
from samfast.linear.int8 import Int8Linear
from samfast.linear.quantization import quantize_rows


class PackedLayer(Protocol):
    """A linear layer on rows, with GELU or an addition inside its product."""

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """x (M, K) -> (M, N); gelu by erf, or else add (M, N) is added."""


class PackedLinear:
    """A dense layer, or a convolution whose stride is its kernel size, of float32 or bfloat16."""

    def __init__(self, layer: Any) -> None:
        self._weight = onednn_products.pack(layer.weight.detach().flatten(1))
        self._bias = layer.bias

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        return onednn_products.product(x, self._weight, self._bias, gelu=gelu, add=add)


class PackedInt8Linear:
    """An Int8Linear, with the same sums: the rows of x are quantized one by one, at each call."""

    def __init__(self, layer: Int8Linear) -> None:
        self._weight = onednn_products.pack_int8(layer.weight)
        self._scale = layer.weight_scale
        self._bias = layer.weight_scale.new_zeros(()) if layer.bias is None else layer.bias.float()

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        q, scale = quantize_rows(x, torch.int8)
        sums = onednn_products.product_int8(q, self._weight, self._scale)
        out = torch.addcmul(self._bias, sums, scale.unsqueeze(-1))
        if gelu:
            out = F.gelu(out)
        return (out if add is None else out.add_(add)).to(x.dtype)


def pack_layer(layer: nn.Module) -> PackedLayer:
    """The layer's weights, packed; later changes of the layer do not reach them.

    Raises UnsupportedRecipeError for a layer of another kind than a recipe for CPUs makes.
    """
    if type(layer) is Int8Linear:
        return PackedInt8Linear(layer)
    if type(layer) in (nn.Linear, nn.Conv2d):
        return PackedLinear(layer)
    raise UnsupportedRecipeError(
        f"products='onednn' packs nn.Linear and int8 layers, and this is a {type(layer).__name__}; "
        "take products='torch'"
    )
