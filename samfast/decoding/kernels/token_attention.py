"""Attention of an object's few tokens to each other, a program for each head of an object."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.decoding.decoder_operations import MAX_TOKENS
from samfast.device.kernels.arithmetic import LOG2_E, dot_precision

MIN_DOT = 16
"""The smallest side of a product in Triton."""


@triton.jit
def _token_attention(
    queries,
    keys,
    values,
    token_mask,
    out,
    tokens,  # per object
    channels,  # of all heads
    width,  # of a head
    scale,  # of the scores, times log2(e)
    TOKENS: tl.constexpr,  # a power of two, at least tokens
    WIDTH: tl.constexpr,  # a power of two, at least width
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(1)
    token, channel = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    real = token < tokens
    row = tl.program_id(0).to(tl.int64) * tokens + token
    place = row[:, None] * channels + head * width + channel[None, :]
    inside = real[:, None] & (channel < width)[None, :]
    query = tl.load(queries + place, mask=inside, other=0.0)
    key = tl.load(keys + place, mask=inside, other=0.0)
    value = tl.load(values + place, mask=inside, other=0.0)
    if MASKED:
        real = real & (tl.load(token_mask + row, mask=real, other=0) != 0)
    scores = tl.dot(query, key.T, input_precision=PRECISION) * scale
    scores = tl.where(real[None, :], scores, float("-inf"))
    scores = tl.exp2(scores - tl.max(scores, 1)[:, None])
    scores = scores * (1.0 / tl.sum(scores, 1))[:, None]
    answer = tl.dot(scores.to(value.dtype), value, input_precision=PRECISION)
    tl.store(out + place, answer.to(out.dtype.element_ty), mask=inside)


def launch(
    queries: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor | None, heads: int
) -> Tensor:
    """As `samfast.decoding.decoder_operations.token_attention`, for at most MAX_TOKENS."""
    count, tokens, channels = queries.shape
    out = torch.empty_like(queries)
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens; this kernel takes up to {MAX_TOKENS}")
    if out.numel():
        width = channels // heads
        _token_attention[(count, heads)](
            queries,
            keys,
            values,
            # A mask that is not given is not read; the queries stand in for it.
            queries if token_mask is None else token_mask.contiguous().view(torch.uint8),
            out,
            tokens,
            channels,
            width,
            LOG2_E * width**-0.5,
            TOKENS=max(MIN_DOT, triton.next_power_of_2(tokens)),
            WIDTH=max(MIN_DOT, triton.next_power_of_2(width)),
            MASKED=token_mask is not None,
            PRECISION=dot_precision(queries.dtype),
            num_warps=1 if tokens <= MIN_DOT else 4,
        )
    return out
