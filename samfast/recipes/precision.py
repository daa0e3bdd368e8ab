"""The dtype step: weights and activations in another precision, coordinates untouched."""

from __future__ import annotations

import torch

from samfast.model.sam import Sam

KEPT = ("pixel_mean", "pixel_std", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")
"""Buffers that stay float32: in half precision a click would move by several pixels."""


def convert(sam: Sam, dtype: torch.dtype) -> None:
    """Convert every floating-point parameter and buffer of the model in place, but those of KEPT."""
    kept = {name: buffer for name, buffer in sam.named_buffers() if name in KEPT}
    for parameter in sam.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, buffer in sam.named_buffers():
        if name not in kept and buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
