"""GELU by erf, for the kernels that apply it to what they hold."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(value, EXACT: tl.constexpr):
    """x * Phi(x) = max(x, 0) - |x| * Phi(-|x|).

    Phi by Abramowitz and Stegun's 7.1.26 (error 1.5e-7) where the input has 16 bits: a third of the
    instructions, and what calls this is bound by them. The series' coefficients are theirs halved.
    """
    if EXACT:
        return 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    size = tl.abs(value)
    root = tl.rsqrt(
        1.0 + 0.23164189 * size
    )  # 0.3275911 / sqrt(2); squared, a reciprocal in two instructions
    t = root * root
    series = t * (
        0.127414796
        + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))
    )
    tail = series * tl.exp2(size * size * -0.7213475204444817)  # log2(e) / 2
    return tl.maximum(value, 0.0) - size * tail
