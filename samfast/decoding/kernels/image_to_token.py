"""Image-to-token attention, its residual addition and the norm, in one pass over the image.

The keys are few: scores, softmax and answers of a block of places stay in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.decoding.decoder_operations import MAX_TOKENS
from samfast.decoding.kernels import hopper_image_to_token
from samfast.device.kernels.arithmetic import LOG2_E, dot_precision
from samfast.device.kernels.occupancy import (
    CONCURRENT_PROGRAMS,
    best_splits,
    has_large_shared_memory,
)
from samfast.device.kernels.tiles import load_rows, load_vector


@triton.jit
def _tokens(tensors, head, token, item, heads, count, tokens, C: tl.constexpr):
    """Keys and values (len(head), C) and score biases, times log2(e), of heads and tokens."""
    token_keys, score_bias, token_values = tensors
    real = (head < heads) & (token < tokens)
    row = (head * count + item) * tokens + token
    key = load_rows(token_keys, row, real, C, False)
    value = load_rows(token_values, row, real, C, False)
    # Padding tokens score -inf. Padding heads score 0, and their values are zeros.
    padding = tl.where(head < heads, float("-inf"), 0.0)
    return key, value, tl.load(score_bias + row, mask=real, other=padding) * 1.4426950408889634


@triton.jit
def _image_to_token_attention(
    images,
    position,
    source_of,
    token_keys,
    score_bias,
    token_values,
    out_bias,
    norm_weight,
    norm_bias,
    out,
    heads,
    count,  # objects
    tokens,  # per object
    places,  # per image
    span,  # places per program
    scale,  # of the scores, times log2(e)
    eps,
    C: tl.constexpr,
    HEADS: tl.constexpr,  # at a time, a power of two
    TOKENS: tl.constexpr,  # a power of two, at least tokens
    GROUPS: tl.constexpr,  # of HEADS heads
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,  # every program has whole blocks of places
    PRECISION: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    base = images + tl.load(source_of + item).to(tl.int64) * places * C
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, places)
    channel = tl.arange(0, C)
    column = tl.arange(0, HEADS * TOKENS)
    head, token = column // TOKENS, column % TOKENS
    tensors = (token_keys, score_bias, token_values)
    if GROUPS == 1:
        key, value, bias = _tokens(tensors, head, token, item, heads, count, tokens, C)
    for first in range(start, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < end
        x = load_rows(base, place, inside, C, EVEN)
        query = x + load_rows(position, place, inside, C, EVEN)
        answer = tl.zeros((BLOCK, C), tl.float32)
        for group in range(GROUPS):
            if GROUPS > 1:
                key, value, bias = _tokens(
                    tensors, group * HEADS + head, token, item, heads, count, tokens, C
                )
            scores = tl.dot(query, key.T, input_precision=PRECISION) * scale + bias[None, :]
            scores = tl.reshape(scores, (BLOCK, HEADS, TOKENS))
            scores = tl.exp2(scores - tl.max(scores, 2)[:, :, None])
            scores = scores * (1.0 / tl.sum(scores, 2))[:, :, None]
            weights = tl.reshape(scores, (BLOCK, HEADS * TOKENS)).to(value.dtype)
            answer = tl.dot(weights, value, answer, input_precision=PRECISION)
        # Vectors are read again for each block: registers are scarcer than time.
        total = x.to(tl.float32) + answer + load_vector(out_bias, channel, None)
        total -= (tl.sum(total, 1) / C)[:, None]
        share = 1.0 / tl.sqrt(tl.sum(total * total, 1) / C + eps)
        normed = total * share[:, None] * load_vector(norm_weight, channel, None)
        normed = (normed + load_vector(norm_bias, channel, None)).to(out.dtype.element_ty)
        here = out + item * places * C + place[:, None] * C + channel[None, :]
        if EVEN:
            tl.store(here, normed)
        else:
            tl.store(here, normed, mask=inside[:, None])


def launch(
    images: Tensor,
    position: Tensor,
    source_of: Tensor,
    token_keys: Tensor,
    score_bias: Tensor,
    token_values: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    scale: float,
    *,
    out: Tensor | None = None,
    block: int | None = None,
    columns: int | None = None,
    splits: int | None = None,
    warps: int = 8,
    stages: int | None = None,
) -> Tensor:
    """As `samfast.decoding.decoder_operations.image_to_token_attention`, for at most MAX_TOKENS.

    out      where the result is written: `images` itself if image i belongs to object i; None: new
    block    places at a time
    columns  heads * tokens at a time, at least the tokens of one head
    splits   programs for the places of an object
    None: as fits an H100
    """
    heads, count, tokens, channels = token_keys.shape
    places = images.shape[1]
    out = images.new_empty(count, places, channels) if out is None else out
    if out.numel() == 0:
        return out
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens} tokens; this kernel takes up to {MAX_TOKENS}")
    vectors = (out_bias, norm_weight, norm_bias)
    if hopper_image_to_token.takes(images, source_of, token_keys, vectors):
        inputs = (images, position, source_of, token_keys, score_bias, token_values)
        hopper_image_to_token.launch(*inputs, *vectors, eps, scale, out)
        return out
    wide = images.dtype == torch.float32
    large = not wide and has_large_shared_memory(images.device)
    all_heads = triton.next_power_of_2(heads)
    padded = max(triton.next_power_of_2(tokens), 16 // all_heads)
    columns = columns or (32 if wide else 128 if large and all_heads * padded <= 128 else 64)
    together = max(1, min(all_heads, columns // padded), 16 // padded)
    groups = all_heads // together
    many = count * triton.cdiv(places, 128) >= CONCURRENT_PROGRAMS // 2
    if wide:
        fitting = 16
    elif large and groups > 1:
        fitting = 64  # the heads are read again for every block, hence few large blocks
    else:
        fitting = 128 if large and many and together * padded <= 64 else 32
    block = block or fitting
    blocks = triton.cdiv(places, block)
    splits = min(splits or best_splits(count, blocks), blocks)
    span = triton.cdiv(blocks, splits) * block
    sizes = (heads, count, tokens, places, span)
    _image_to_token_attention[(count, triton.cdiv(places, span))](
        images,
        position,
        source_of,
        token_keys,
        score_bias,
        token_values,
        *vectors,
        out,
        *sizes,
        scale * LOG2_E,
        eps,
        C=channels,
        HEADS=together,
        TOKENS=padded,
        GROUPS=groups,
        BLOCK=block,
        EVEN=places % block == 0,
        PRECISION=dot_precision(images.dtype),
        num_warps=warps,
        num_stages=stages or (2 if large and groups == 1 else 1),
    )
    return out
