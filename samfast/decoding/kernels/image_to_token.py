"""An image that looks at the tokens: attention, what it adds, and the norm, in one pass over the
image.

The keys of that attention are few: scores, softmax and answer of a block of places stay in
registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from samfast.attention.kernels.positions import LOG2_E
from samfast.device.kernels.occupancy import PROGRAMS, has_large_shared_memory, parts
from samfast.device.kernels.tiles import load_rows, load_vector

MOST_TOKENS = 64
"""One head's tokens are held at once, each with a row of C numbers for its key and one for its
value."""


@triton.jit
def _tokens(mixed, shift, values, head, token, item, heads, count, tokens, C: tl.constexpr):
    """Rows of keys and of values, and the shifts in units of log2, of those heads and tokens."""
    real = (head < heads) & (token < tokens)
    row = (head * count + item) * tokens + token
    key = load_rows(mixed, row, real, C, False)
    value = load_rows(values, row, real, C, False)
    # A token that is none is never looked at. A head that is none looks at tokens whose values are
    # zero.
    nothing = tl.where(head < heads, float("-inf"), 0.0)
    return key, value, tl.load(shift + row, mask=real, other=nothing) * 1.4426950408889634


@triton.jit
def _to_image(
    keys,
    position,
    source_of,
    mixed,
    shift,
    values,
    bias,
    weight,
    norm_bias,
    out,
    heads,
    count,  # of objects
    tokens,  # of an object
    places,  # of an image
    span,  # places of a program
    scale,  # of the scores, times log2(e)
    eps,
    C: tl.constexpr,
    HEADS: tl.constexpr,  # together, a power of two
    TOKENS: tl.constexpr,  # a power of two, at least tokens
    GROUPS: tl.constexpr,  # of so many heads
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,  # a program's places are whole blocks
    PRECISION: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    base = keys + tl.load(source_of + item).to(tl.int64) * places * C
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, places)
    channel = tl.arange(0, C)
    column = tl.arange(0, HEADS * TOKENS)
    head, token = column // TOKENS, column % TOKENS
    if GROUPS == 1:
        key, value, offset = _tokens(
            mixed, shift, values, head, token, item, heads, count, tokens, C
        )
    for first in range(start, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < end
        x = load_rows(base, place, inside, C, EVEN)
        query = x + load_rows(position, place, inside, C, EVEN)
        answer = tl.zeros((BLOCK, C), tl.float32)
        for group in range(GROUPS):
            if GROUPS > 1:
                key, value, offset = _tokens(
                    mixed, shift, values, group * HEADS + head, token, item, heads, count, tokens, C
                )
            scores = tl.dot(query, key.T, input_precision=PRECISION) * scale + offset[None, :]
            scores = tl.reshape(scores, (BLOCK, HEADS, TOKENS))
            scores = tl.exp2(scores - tl.max(scores, 2)[:, :, None])
            scores = scores * (1.0 / tl.sum(scores, 2))[:, :, None]
            weights = tl.reshape(scores, (BLOCK, HEADS * TOKENS)).to(value.dtype)
            answer = tl.dot(weights, value, answer, input_precision=PRECISION)
        # What is added to every row is read here and not before: registers are scarcer than time.
        total = x.to(tl.float32) + answer + load_vector(bias, channel, None)
        total -= (tl.sum(total, 1) / C)[:, None]
        share = 1.0 / tl.sqrt(tl.sum(total * total, 1) / C + eps)
        normed = total * share[:, None] * load_vector(weight, channel, None)
        normed = (normed + load_vector(norm_bias, channel, None)).to(out.dtype.element_ty)
        here = out + item * places * C + place[:, None] * C + channel[None, :]
        if EVEN:
            tl.store(here, normed)
        else:
            tl.store(here, normed, mask=inside[:, None])


def launch(
    keys: Tensor,
    position: Tensor,
    source_of: Tensor,
    mixed: Tensor,
    shift: Tensor,
    values: Tensor,
    bias: Tensor,
    norm: tuple[Tensor, Tensor, float],
    scale: float,
    *,
    out: Tensor | None = None,
    block: int | None = None,
    columns: int | None = None,
    splits: int | None = None,
    warps: int = 8,
    stages: int | None = None,
) -> Tensor:
    """As `samfast.decoding.decoder_reference.to_image`, for at most MOST_TOKENS tokens.

    out      where the answer goes, `keys` too if each image is one object's, in their order; None:
             into new memory
    block    places at a time
    columns  heads * tokens at a time, if a head's tokens are not more
    splits   programs for the places of an object
    None: as fits an H100
    """
    heads, count, tokens, channels = mixed.shape
    places = keys.shape[1]
    out = keys.new_empty(count, places, channels) if out is None else out
    if out.numel() == 0:
        return out
    if tokens > MOST_TOKENS:
        raise ValueError(f"{tokens} tokens; this kernel takes up to {MOST_TOKENS}")
    wide = keys.dtype == torch.float32
    all_heads = triton.next_power_of_2(heads)
    padded = max(triton.next_power_of_2(tokens), 16 // all_heads)
    room = not wide and has_large_shared_memory(keys.device)
    columns = columns or (32 if wide else 128 if room and all_heads * padded <= 128 else 64)
    together = max(1, min(all_heads, columns // padded), 16 // padded)
    groups = all_heads // together
    # Heads that do not fit are read again for every block of places: let it be a large one.
    if block is None:
        many = count * triton.cdiv(places, 128) >= PROGRAMS // 2
        block = (
            16
            if wide
            else 32
            if not room
            else 64
            if groups > 1
            else 128
            if many and together * padded <= 64
            else 32
        )
    blocks = triton.cdiv(places, block)
    splits = min(splits or parts(count, blocks), blocks)
    span = triton.cdiv(blocks, splits) * block
    weight, norm_bias, eps = norm
    _to_image[(count, triton.cdiv(places, span))](
        keys,
        position,
        source_of,
        mixed,
        shift,
        values,
        bias,
        weight,
        norm_bias,
        out,
        heads,
        count,
        tokens,
        places,
        span,
        scale * LOG2_E,
        eps,
        C=channels,
        HEADS=together,
        TOKENS=padded,
        GROUPS=groups,
        BLOCK=block,
        EVEN=places % block == 0,
        PRECISION="tf32x3" if wide else "tf32",
        num_warps=warps,
        num_stages=stages or (2 if room and groups == 1 else 1),
    )
    return out
