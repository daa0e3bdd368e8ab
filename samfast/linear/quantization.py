"""Rowwise quantization: each row divided by its scale, then rounded to an 8-bit format."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""What the largest magnitude of a row becomes. int8 stays symmetric: -128 is not used."""

SMALLEST_SCALE = 1e-12
"""A row of zeros is divided by this."""


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Floating-point activations (..., K) -> q and scale, with x = q * scale[..., None] about.

    dtype    torch.int8 or torch.float8_e4m3fn
    returns  q (..., K) of that dtype, scale (...) float32: a row's largest magnitude over `LARGEST`

    Rounds to nearest, halves to even. Does not synchronise with a GPU.
    """
    values = x.float()
    scale = (values.abs().amax(dim=-1) / LARGEST[dtype]).clamp(min=SMALLEST_SCALE)
    values = values / scale.unsqueeze(-1)
    # A quotient exceeds LARGEST at most by a rounding of float32, which neither format resolves.
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


def quantize_weight(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight (out, in) -> q and scale (out,) float32, one per output channel.

    int8 takes the whole range from -128 to 127 in steps of max|w| / 127.5, as torchao does
    (`choose_qparams_affine`, symmetric): the largest magnitudes lose half a step, all others gain.
    """
    if dtype != torch.int8:
        return quantize_rows(weight, dtype)
    values = weight.float()
    scale = (values.abs().amax(dim=-1) / 127.5).clamp(min=torch.finfo(torch.float32).eps)
    return torch.round(values * (1.0 / scale).unsqueeze(-1)).clamp(-128, 127).to(torch.int8), scale
