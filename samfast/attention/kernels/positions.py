"""The two relative-position terms of global attention's scores, from the projected tokens."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from samfast.attention.kernels.tunables import split_dim
from samfast.device.kernels.arithmetic import LOG2_E, dot_precision


@triton.jit
def _positions(
    qkv,
    table,
    out,
    num_heads,
    lines,
    length,
    channels,
    line_stride,  # tokens from one line to the next
    step,  # tokens from one place of a line to the next
    out_key,  # stride of `out` in keys
    out_token,
    out_item,
    DIM: tl.constexpr,
    DIM_1: tl.constexpr,
    DIM_2: tl.constexpr,  # the rest of a head whose width is not a power of two, or 0
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    LOG2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All queries of a line (a row or a column of the grid) have the same offsets to the keys."""
    line = tl.program_id(0)
    item = tl.program_id(2).to(tl.int64)
    image, head = item // num_heads, item % num_heads
    places = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    real = (places < length)[:, None]
    dims = tl.arange(0, DIM_1)
    more = DIM_1 + tl.arange(0, DIM_2 if DIM_2 else 16)
    tokens = line * line_stride + places * step
    base = qkv + (image * lines * length + tokens[:, None]) * (3 * channels) + head * DIM
    q = tl.load(base + dims[None, :], mask=real & (dims[None, :] < DIM), other=0.0)
    if DIM_2:
        q2 = tl.load(base + more[None, :], mask=real & (more[None, :] < DIM), other=0.0)
    for start in range(0, lines, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        inside = (keys < lines)[None, :]
        entry = table + (line - keys + lines - 1)[None, :] * DIM
        part = tl.load(entry + dims[:, None], mask=inside & (dims[:, None] < DIM), other=0.0)
        products = tl.dot(q, part, input_precision=PRECISION)
        if DIM_2:
            part = tl.load(entry + more[:, None], mask=inside & (more[:, None] < DIM), other=0.0)
            products = tl.dot(q2, part, products, input_precision=PRECISION)
        tl.store(
            out + item * out_item + tokens[:, None] * out_token + keys[None, :] * out_key,
            (products * LOG2).to(out.dtype.element_ty),
            mask=real & inside,
        )


def launch(qkv: Tensor, table_h: Tensor, table_w: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Both terms, times log2(e).

    qkv      (B, H, W, 3 * C), contiguous
    table_h  (2 * H - 1, C / num_heads), contiguous, and table_w (2 * W - 1, C / num_heads)
    returns  rel_h (B * heads, H, H * W), a query's term for row r of keys at [:, r, query], and
             rel_w (B * heads, H * W, W), both in qkv's dtype
    """
    batch, height, width, channels = qkv.shape
    dim = channels // (3 * num_heads)
    items, tokens = batch * num_heads, height * width
    rel_h = qkv.new_empty(items, height, tokens)
    rel_w = qkv.new_empty(items, tokens, width)
    dim_1, dim_2 = split_dim(dim)
    for table, out, lines, length, line_stride, step, out_key, out_token in (
        (table_h, rel_h, height, width, width, 1, tokens, 1),
        (table_w, rel_w, width, height, 1, width, 1, width),
    ):
        block_tokens = min(64, max(16, triton.next_power_of_2(length)))
        strides = (line_stride, step, out_key, out_token, out.stride(0))
        _positions[(lines, triton.cdiv(length, block_tokens), items)](
            qkv,
            table,
            out,
            num_heads,
            lines,
            length,
            channels // 3,
            *strides,
            DIM=dim,
            DIM_1=dim_1,
            DIM_2=dim_2,
            BLOCK_TOKENS=block_tokens,
            BLOCK_KEYS=min(64, max(16, triton.next_power_of_2(lines))),
            LOG2=LOG2_E,
            PRECISION=dot_precision(qkv.dtype),
            num_warps=4,
        )
    return rel_h, rel_w
