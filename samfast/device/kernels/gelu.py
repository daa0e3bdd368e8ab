"""GELU by erf, on values in registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(value, EXACT: tl.constexpr):
    """x * Phi(x) = max(x, 0) - |x| * Phi(-|x|).

    For 16-bit input, Phi by Abramowitz and Stegun 7.1.26 (error 1.5e-7): a third of the
    instructions, by which the callers are bound. The coefficients of the series are theirs halved.
    """
    if EXACT:
        return 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    size = tl.abs(value)
    # 0.3275911 / sqrt(2); squaring the root makes a reciprocal in two instructions.
    root = tl.rsqrt(1.0 + 0.23164189 * size)
    t = root * root
    series = t * (
        0.127414796
        + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))
    )
    tail = series * tl.exp2(size * size * -0.7213475204444817)  # log2(e) / 2
    return tl.maximum(value, 0.0) - size * tail
