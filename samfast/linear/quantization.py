"""Quantization row by row: each row divided by a scale of its own, then rounded to an 8-bit
format.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest value that a row's largest becomes. int8 stays symmetric: -128 is not used."""

SMALLEST_SCALE = 1e-12
"""So that a row of zeros has a scale to be divided by."""


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Activations (..., K), any floating-point dtype -> (q, scale), so that q * scale[..., None] is
    about x.

    dtype    torch.int8 or torch.float8_e4m3fn
    returns  q (..., K) of that dtype and scale (...) float32: the row's largest magnitude over
             `LARGEST`

    Rounds to nearest, halves to even. Never waits for a GPU.
    """
    values = x.float()
    scale = (values.abs().amax(dim=-1) / LARGEST[dtype]).clamp(min=SMALLEST_SCALE)
    values = values / scale.unsqueeze(-1)
    # A quotient is never more than LARGEST by a rounding of float32, which neither format can show.
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


def quantize_weight(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight (out, in) -> (q, scale (out,) float32), a scale an output channel.

    int8 takes the whole range from -128 to 127 with steps of max|w| / 127.5, as torchao does
    (`choose_qparams_affine`, symmetric): the largest magnitudes lose half a step, all others gain.
    """
    if dtype != torch.int8:
        return quantize_rows(weight, dtype)
    values = weight.float()
    scale = (values.abs().amax(dim=-1) / 127.5).clamp(min=torch.finfo(torch.float32).eps)
    return torch.round(values * (1.0 / scale).unsqueeze(-1)).clamp(-128, 127).to(torch.int8), scale
