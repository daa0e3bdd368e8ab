"""The decoder's attentions and its upscaling, as operations of PyTorch.

On a GPU in 16 bits Triton kernels run, elsewhere these references in plain torch. In 16 bits the
references round where the kernels do: the factors of a product, and what is stored. In float32 on
a GPU the kernels' results have been seen to change from run to run (Triton 3.6, small images), so
there the reference runs as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.device.custom_ops import on_gpu, operation

MAX_TOKENS = 64
"""Tokens per object that the attentions to tokens take: their kernels hold all tokens of a head."""


def _on_gpu_in_16_bits(x: Tensor) -> bool:
    return on_gpu(x) and x.dtype != torch.float32


@operation(
    kernel="samfast.decoding.kernels.token_attention",
    has_kernel=lambda queries: _on_gpu_in_16_bits(queries) and queries.shape[1] <= MAX_TOKENS,
    fake=lambda queries, *rest: torch.empty_like(queries),
)
def token_attention(
    queries: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor | None, heads: int
) -> Tensor:
    """Attention of each object's tokens to each other.

    queries, keys, values  (P, T, C), contiguous; a head has C / heads channels that follow another
    token_mask             (P, T) bool, False for padding, to which no token attends; or None
    returns                (P, T, C)
    """
    count, tokens, channels = queries.shape

    def of_heads(x: Tensor) -> Tensor:
        return x.view(count, tokens, heads, channels // heads).transpose(1, 2)

    mask = None if token_mask is None else token_mask[:, None, None, :]
    parts = of_heads(queries), of_heads(keys), of_heads(values)
    answers = F.scaled_dot_product_attention(*parts, attn_mask=mask)
    return answers.transpose(1, 2).flatten(2)


@operation(
    kernel="samfast.decoding.kernels.token_to_image",
    has_kernel=_on_gpu_in_16_bits,
    fake=lambda queries, *rest: torch.empty_like(queries),
)
def token_to_image_attention(
    queries: Tensor, images: Tensor, position: Tensor, source_of: Tensor, scale: float
) -> Tensor:
    """Attention whose keys are an image's rows plus their positions, and whose values are the rows.

    queries    (heads, P, T, C), contiguous
    images     (Q, N, C), contiguous
    position   (N, C), contiguous
    source_of  (P,) the image of each object
    returns    (heads, P, T, C)
    """
    heads, count, tokens, channels = queries.shape
    values, keys = images, _accumulated(images + position)
    rows = _accumulated(queries).transpose(0, 1).reshape(count, heads * tokens, channels)
    if len(images) == 1:
        rows = rows.reshape(1, -1, channels)  # all objects' queries at once
    else:
        values, keys = _of_objects(values, source_of), _of_objects(keys, source_of)
    weights = (torch.bmm(rows, keys.mT) * scale).softmax(-1).to(images.dtype)
    answers = torch.bmm(weights, values).view(count, heads, tokens, channels)
    return answers.transpose(0, 1).contiguous()


@operation(
    kernel="samfast.decoding.kernels.image_to_token",
    has_kernel=_on_gpu_in_16_bits,
    fake=lambda images, position, source_of, token_keys, *rest: images.new_empty(
        token_keys.shape[1], *images.shape[1:]
    ),
)
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
    """LayerNorm(x + attention(x + position) + out_bias) of each row x of an object's image.

    images, position, source_of  as `token_to_image_attention`
    token_keys    (heads, P, T, C), contiguous: as wide as a row of an image
    score_bias    (heads, P, T) float32, contiguous: added to the scaled scores; -inf for padding
    token_values  (heads, P, T, C), contiguous; the results of all heads are added
    out_bias, norm_weight, norm_bias  (C,)
    returns       (P, N, C)
    """
    heads, count, tokens, channels = token_keys.shape
    rows, queries = _accumulated(images), _accumulated(images + position)
    keys = _accumulated(token_keys).transpose(0, 1).reshape(count, heads * tokens, channels)
    if len(images) == 1:
        scores = torch.mm(keys.view(-1, channels), queries[0].T)
    else:
        rows, queries = _of_objects(rows, source_of), _of_objects(queries, source_of)
        scores = torch.bmm(keys, queries.mT)
    # The tokens are not the last dimension: a softmax over few neighbours is slow on a CPU.
    scores = scores.view(count, heads, tokens, -1) * scale
    scores = scores + score_bias.transpose(0, 1).unsqueeze(-1)
    weights = _accumulated(scores.softmax(2).to(images.dtype)).view(count, heads * tokens, -1)
    values = _accumulated(token_values).transpose(0, 1).reshape(count, heads * tokens, channels)
    total = torch.baddbmm((rows + out_bias).expand(count, -1, -1), weights.mT, values)
    weight, bias = _accumulated(norm_weight), _accumulated(norm_bias)
    return F.layer_norm(total, (channels,), weight, bias, eps).to(images.dtype)


image_to_token_attention_ = image_to_token_attention.to_in_place("images")
"""The same in place: image i belongs to object i and is overwritten."""


@operation(
    kernel="samfast.decoding.kernels.upscaling",
    has_kernel=_on_gpu_in_16_bits,
    fake=lambda images, source_of, height, width, *rest: images.new_empty(
        *rest[-2].shape[:2], 4 * height, 4 * width
    ),
)
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
    """Mask logits: two transposed convolutions of side and stride 2 and the hypernetworks' product.

    images, source_of  as `token_to_image_attention`; N = height * width
    wide      (4, C, C1), the first convolution: a matrix for each of the four pixels of one;
              wide_bias (C1,)
    norm      of the pixels after it, then GELU; norm_weight and norm_bias (C1,)
    narrow    (C1, 4 * C2), the second, then GELU: the four matrices side by side; narrow_bias (C2,)
    hyper_in  (P, M, C2), contiguous: for each mask, what its pixels are multiplied by
    wanted    (P,) bool, objects whose logits are computed, the others' are zeros; None: all
    returns   (P, M, 4 * height, 4 * width)
    """
    layers = (wide, wide_bias, norm_weight, norm_bias, eps, narrow, narrow_bias)
    run = upscaling.function
    if wanted is not None:
        logits = run(images, source_of, height, width, *layers, hyper_in, None)
        return logits.masked_fill(~wanted[:, None, None, None], 0)
    if images.device.type == "cpu" and len(images) > 1:
        # Object by object: the intermediate pixels are large, and their memory is reused.
        one = torch.zeros(1, dtype=torch.int64)
        return torch.cat(
            [
                run(images[s : s + 1], one, height, width, *layers, hyper_in[i : i + 1], None)
                for i, s in enumerate(source_of.tolist())
            ]
        )
    weight = _accumulated(wide).transpose(1, 2).flatten(0, 1)
    x = F.linear(_accumulated(images), weight, _accumulated(wide_bias).repeat(4))
    x = x.view(len(images), -1, len(norm_weight))  # (Q, N * 4, C1): h, w, dy, dx
    x = F.layer_norm(x, x.shape[-1:], _accumulated(norm_weight), _accumulated(norm_bias), eps)
    x = _accumulated(F.gelu(x).to(images.dtype))
    x = F.gelu(F.linear(x, _accumulated(narrow).T, _accumulated(narrow_bias).repeat(4)))
    # (Q, N * 16, C2): h, w, dy, dx, ey, ex
    pixels = _accumulated(x.to(images.dtype).view(len(images), -1, len(narrow_bias)))
    if len(images) != 1:
        pixels = _of_objects(pixels, source_of)
    logits = torch.matmul(pixels, _accumulated(hyper_in).mT)
    logits = logits.view(-1, height, width, 2, 2, 2, 2, hyper_in.shape[1])
    logits = logits.permute(0, 7, 1, 3, 5, 2, 4, 6).to(images.dtype)
    return logits.reshape(*hyper_in.shape[:2], 4 * height, 4 * width)


def _of_objects(images: Tensor, source_of: Tensor) -> Tensor:
    """The image of each object; on a CPU not copied if object i's image is image i."""
    if images.device.type == "cpu" and torch.equal(source_of, torch.arange(len(images))):
        return images
    return images[source_of]


def _accumulated(x: Tensor) -> Tensor:
    """In float32, in which sums are kept; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()
