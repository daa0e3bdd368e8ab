"""What the decoder's kernels compute, in plain torch; also what runs on a CPU.

In 16 bits they round where the kernels do: what is multiplied, and what is stored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def from_image(
    queries: Tensor, keys: Tensor, position: Tensor, source_of: Tensor, scale: float
) -> Tensor:
    """Attention whose keys are an image's rows with their positions, and whose values are the rows.

    queries    (heads, P, T, C), contiguous
    keys       (Q, N, C), contiguous: the images
    position   (N, C), contiguous
    source_of  (P,) the image that each object's queries look at
    returns    (heads, P, T, C)
    """
    heads, count, tokens, channels = queries.shape
    images, placed = keys, _wide(keys + position)
    own = _wide(queries).transpose(0, 1).reshape(count, heads * tokens, channels)
    if len(keys) == 1:
        own = own.reshape(1, -1, channels)  # all objects' queries at once
    else:
        images, placed = _seen(images, source_of), _seen(placed, source_of)
    weights = (torch.bmm(own, placed.mT) * scale).softmax(-1).to(keys.dtype)
    answers = torch.bmm(weights, images).view(count, heads, tokens, channels)
    return answers.transpose(0, 1).contiguous()


def to_image(
    keys: Tensor,
    position: Tensor,
    source_of: Tensor,
    mixed: Tensor,
    shift: Tensor,
    values: Tensor,
    bias: Tensor,
    norm: tuple[Tensor, Tensor, float],
    scale: float,
) -> Tensor:
    """LayerNorm(x + attention(x + position) + bias) of each row x of an image, which looks at an
    object's tokens.

    keys, position, source_of  as `from_image`
    mixed    (heads, P, T, C), contiguous: the tokens' keys, as wide as an image's row
    shift    (heads, P, T) float32, contiguous: added to the scaled scores; -inf where a token is
             not to be seen
    values   (heads, P, T, C), contiguous: the tokens' values; the answers of all heads are added
    bias     (C,)
    norm     weight and bias, each (C,), and epsilon
    returns  (P, N, C)
    """
    heads, count, tokens, channels = mixed.shape
    weight, norm_bias, eps = norm
    images, placed = _wide(keys), _wide(keys + position)
    own = _wide(mixed).transpose(0, 1).reshape(count, heads * tokens, channels)
    if len(keys) == 1:
        scores = torch.mm(own.view(-1, channels), placed[0].T)
    else:
        images, placed = _seen(images, source_of), _seen(placed, source_of)
        scores = torch.bmm(own, placed.mT)
    # Tokens are no last dimension here: a softmax over few neighbours is slow on a CPU.
    scores = scores.view(count, heads, tokens, -1) * scale + shift.transpose(0, 1).unsqueeze(-1)
    weights = _wide(scores.softmax(2).to(keys.dtype)).view(count, heads * tokens, -1)
    told = _wide(values).transpose(0, 1).reshape(count, heads * tokens, channels)
    total = torch.baddbmm((images + bias).expand(count, -1, -1), weights.mT, told)
    return F.layer_norm(total, (channels,), _wide(weight), _wide(norm_bias), eps).to(keys.dtype)


def upscaling(
    keys: Tensor,
    source_of: Tensor,
    size: tuple[int, int],
    wide: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor, float],
    keep_dtype: tuple[Tensor, Tensor],
    kernels: Tensor,
    wanted: Tensor | None = None,
) -> Tensor:
    """An image's rows to logits: two transposed convolutions of side and stride 2, each through
    GELU, and a product.

    keys, source_of  as `from_image`; N = h * w
    size     (h, w)
    wide     the first convolution: (4, C, C1), a matrix for each of the four pixels it makes of
             one, and bias (C1,)
    norm     of the pixels after it: weight and bias, each (C1,), and epsilon
    narrow   the second: (C1, 4 * C2), the four matrices side by side, and bias (C2,)
    kernels  (P, M, C2), contiguous: what a pixel is multiplied by for each mask
    wanted   (P,) bool, the objects whose logits are asked for, zeros for others; None: all
    returns  (P, M, 4 * h, 4 * w)
    """
    if wanted is not None:
        whole = upscaling(keys, source_of, size, wide, norm, keep_dtype, kernels)
        return whole.masked_fill(~wanted[:, None, None, None], 0)
    if keys.device.type == "cpu" and len(keys) > 1:
        # An object at a time: what lies between is large, and memory of that size is not there
        # again.
        one = torch.zeros(1, dtype=torch.int64)
        each = enumerate(source_of.tolist())
        return torch.cat(
            [
                upscaling(keys[s : s + 1], one, size, wide, norm, keep_dtype, kernels[i : i + 1])
                for i, s in each
            ]
        )
    height, width = size
    x = F.linear(
        _wide(keys), _wide(wide[0]).transpose(1, 2).flatten(0, 1), _wide(wide[1]).repeat(4)
    )
    x = x.view(len(keys), -1, len(norm[0]))  # (Q, N * 4, C1): h, w, dy, dx
    x = F.gelu(F.layer_norm(x, x.shape[-1:], _wide(norm[0]), _wide(norm[1]), norm[2])).to(
        keys.dtype
    )
    x = F.gelu(F.linear(_wide(x), _wide(keep_dtype[0]).T, _wide(keep_dtype[1]).repeat(4))).to(
        keys.dtype
    )
    pixels = _wide(
        x.view(len(keys), -1, len(keep_dtype[1]))
    )  # (Q, N * 16, C2): h, w, dy, dx, ey, ex
    if len(keys) != 1:
        pixels = _seen(pixels, source_of)
    logits = torch.matmul(pixels, _wide(kernels).mT).view(
        -1, height, width, 2, 2, 2, 2, kernels.shape[1]
    )
    logits = logits.permute(0, 7, 1, 3, 5, 2, 4, 6).to(keys.dtype)
    return logits.reshape(*kernels.shape[:2], 4 * height, 4 * width)


def _seen(images: Tensor, source_of: Tensor) -> Tensor:
    """The image of each object; not copied, where a CPU can look, if that is the object's own."""
    if images.device.type == "cpu" and torch.equal(source_of, torch.arange(len(images))):
        return images
    return images[source_of]


def _wide(x: Tensor) -> Tensor:
    """With at least 32 bits, in which sums are kept."""
    return x if x.dtype == torch.float64 else x.float()
