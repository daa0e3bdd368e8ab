"""The dtype step: weights and activations in another precision, coordinates untouched."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.linear import QuantizedLinear
from samfast.model.layers import MLP
from samfast.model.sam import Sam

KEPT = ("pixel_mean", "pixel_std", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")
"""Buffers that stay float32: in half precision a click would move by several pixels."""


class Float32Linear(nn.Module):
    """A linear layer in float32, whatever the dtype of its input and of its weights.

    weight, bias  of the layer that it replaces, shared with it
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) of any dtype -> (..., out_features) float32."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(input.float(), self.weight.float(), bias)


def convert(sam: Sam, dtype: torch.dtype) -> None:
    """Convert every floating-point parameter and buffer of the model in place, except KEPT and the
    last layer of the IoU head.

    Of a quantized layer, only the bias and the dtype of its outputs.

    The predicted IoU that this last layer writes decides which of an object's masks is the best. In
    bfloat16 every rating between 0.5 and 1 would be a multiple of 1/256, masks would tie, and
    others would be chosen: one in four of vit_xs.
    """
    kept = set(KEPT)
    if dtype != torch.float32:
        kept |= keep_ratings(sam)
    for prefix, module in sam.named_modules():
        if isinstance(module, QuantizedLinear):
            kept |= {f"{prefix}.{name}" for name, _ in module.named_buffers() if name != "bias"}
            module.dtype = dtype
    for name, parameter in sam.named_parameters():
        if name not in kept:
            parameter.data = parameter.data.to(dtype)
    for name, buffer in sam.named_buffers():
        if name not in kept and buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)


def keep_ratings(sam: Sam) -> set[str]:
    """Let the IoU head end in float32; returns the names of the parameters that stay float32.

    None, and the head is left as it is, where it is not the original's.
    """
    head = getattr(sam.mask_decoder, "iou_prediction_head", None)
    if type(head) is not MLP:
        return set()
    last = head.layers[-1]
    if isinstance(last, nn.Linear):
        head.layers[-1] = Float32Linear(last.weight, last.bias).train(last.training)
    elif not isinstance(last, Float32Linear):
        return set()
    place = f"mask_decoder.iou_prediction_head.layers.{len(head.layers) - 1}"
    return {f"{place}.weight", f"{place}.bias"}
