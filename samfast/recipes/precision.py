"""The dtype step: weights and activations in another precision, coordinates untouched."""

from __future__ import annotations

import torch

from samfast.linear import QuantizedLinear
from samfast.model.sam import Sam

KEPT = ("pixel_mean", "pixel_std", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")
"""Buffers that stay float32: in half precision a click would move by several pixels."""


def convert(sam: Sam, dtype: torch.dtype) -> None:
    """Convert every floating-point parameter and buffer of the model in place, except KEPT.

    Of a quantized layer, only the bias and the dtype of its outputs.
    """
    kept = set(KEPT)
    for prefix, module in sam.named_modules():
        if isinstance(module, QuantizedLinear):
            kept |= {f"{prefix}.{name}" for name, _ in module.named_buffers() if name != "bias"}
            module.dtype = dtype
    for parameter in sam.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, buffer in sam.named_buffers():
        if name not in kept and buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
