"""The decoder's attentions and its upscaling by oneDNN's products, for CPUs.

The functions of `samfast.decoding.decoder_operations`, with their arguments. Objects follow one
another, so that what is computed of one stays in the cache. In bfloat16 scores are rounded to it,
which the references keep in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.decoding import decoder_operations
from samfast.device import onednn_products
from samfast.device.onednn_products import product

token_attention = decoder_operations.token_attention
"""The tokens are too few for another way."""


def token_to_image_attention(
    queries: Tensor, images: Tensor, position: Tensor, source_of: Tensor, scale: float
) -> Tensor:
    """As `decoder_operations.token_to_image_attention`."""
    heads, count, tokens, channels = queries.shape
    rows = (queries * scale).transpose(0, 1).reshape(count, heads * tokens, channels)
    if len(images) == 1:  # all objects' queries at once
        rows, sources = rows.reshape(1, -1, channels), [0]
    else:
        sources = source_of.tolist()
    answers = torch.empty_like(rows)
    for i, source in enumerate(sources):
        image = images[source]
        scores = product(rows[i], image + position)
        torch.softmax(scores, dim=-1, out=scores)
        answers[i] = product(scores, image.T)
    answers = answers.view(count, heads, tokens, channels)
    return answers.transpose(0, 1).contiguous()


def image_to_token_attention(
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
) -> Tensor:
    """As `decoder_operations.image_to_token_attention`."""
    out = images.new_empty(token_keys.shape[1], *images.shape[1:])
    arguments = (token_keys, score_bias, token_values, out_bias, norm_weight, norm_bias, eps, scale)
    _write_image_to_token(out, images, position, source_of.tolist(), *arguments)
    return out


def image_to_token_attention_(
    images: Tensor, position: Tensor, source_of: Tensor, *rest: *tuple[Any, ...]
) -> None:
    """As `decoder_operations.image_to_token_attention_`."""
    # An object's image is read before it is written, and no other object's.
    _write_image_to_token(images, images, position, range(len(images)), *rest)


def _write_image_to_token(
    out: Tensor,
    images: Tensor,
    position: Tensor,
    sources: Sequence[int],
    token_keys: Tensor,
    score_bias: Tensor,
    token_values: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    scale: float,
) -> None:
    heads, count, tokens, channels = token_keys.shape
    together = heads * tokens
    keys = (token_keys * scale).transpose(0, 1).reshape(count, together, channels)
    values = token_values.transpose(0, 1).reshape(count, together, channels)
    biases = score_bias.transpose(0, 1).reshape(count, together, 1).to(images.dtype)
    for i, source in enumerate(sources):
        image = images[source]
        scores = product(keys[i], image + position).add_(biases[i])
        # The tokens are not the last dimension: a softmax over few neighbours is slow.
        weights = scores.view(heads, tokens, -1).softmax(1).view(together, -1)
        total = product(weights.T.contiguous(), values[i].T, out_bias, add=image)
        out[i] = F.layer_norm(total, (channels,), norm_weight, norm_bias, eps)


def upscaling(
    images: Tensor,
    source_of: Tensor,
    height: int,
    width: int,
    wide: Tensor,
    wide_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    narrow: Tensor,
    narrow_bias: Tensor,
    hyper_in: Tensor,
    wanted: Tensor | None,
) -> Tensor:
    """As `decoder_operations.upscaling`."""
    count, masks, _ = hyper_in.shape
    out = images.new_zeros(count, masks, 4 * height, 4 * width)
    wide = onednn_products.pack(wide.transpose(1, 2).flatten(0, 1))
    narrow = onednn_products.pack(narrow.T)
    wide_bias, narrow_bias = wide_bias.repeat(4), narrow_bias.repeat(4)
    for i, source in enumerate(source_of.tolist()):
        if wanted is not None and not wanted[i]:
            continue
        x = product(images[source], wide, wide_bias)
        x = x.view(-1, len(norm_weight))  # (N * 4, C1): h, w, dy, dx
        x = F.gelu(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps))
        x = product(x, narrow, narrow_bias, gelu=True)
        # (N * 16, C2): h, w, dy, dx, ey, ex
        logits = hyper_in[i] @ x.view(-1, hyper_in.shape[-1]).T
        logits = logits.view(masks, height, width, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        out[i].view(logits.shape).copy_(logits)
    return out
