"""What the decoder's kernels compute, in plain torch; also what runs on a CPU.

In 16 bits they round where the kernels do: what is multiplied, and what is stored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def from_image(queries: Tensor, keys: Tensor, position: Tensor, source_of: Tensor, scale: float) -> Tensor:
    """Attention whose keys are an image's rows with their positions, and whose values are the rows.

    queries    (heads, P, T, C), contiguous
    keys       (Q, N, C), contiguous: the images
    position   (N, C), contiguous
    source_of  (P,) the image that each object's queries look at
    returns    (heads, P, T, C)
    """
    seen = keys[source_of]
    scores = _wide(queries) @ _wide(keys + position)[source_of].mT * scale
    return scores.softmax(-1).to(keys.dtype) @ seen


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
    """LayerNorm(x + attention(x + position) + bias) of each row x of an image, which looks at an object's tokens.

    keys, position, source_of  as `from_image`
    mixed    (heads, P, T, C), contiguous: the tokens' keys, as wide as an image's row
    shift    (heads, P, T) float32, contiguous: added to the scaled scores; -inf where a token is not to be seen
    values   (heads, P, T, C), contiguous: the tokens' values; the answers of all heads are added
    bias     (C,)
    norm     weight and bias, each (C,), and epsilon
    returns  (P, N, C)
    """
    heads, count, tokens, channels = mixed.shape
    weight, norm_bias, eps = norm
    scores = _wide(keys + position)[source_of] @ _wide(mixed).mT * scale + shift.unsqueeze(-2)
    weights = _wide(scores.softmax(-1).to(keys.dtype)).permute(1, 2, 0, 3).reshape(count, -1, heads * tokens)
    answer = weights @ _wide(values).transpose(0, 1).reshape(count, heads * tokens, channels)
    total = _wide(keys)[source_of] + answer + bias
    return F.layer_norm(total, (channels,), _wide(weight), _wide(norm_bias), eps).to(keys.dtype)


def upscaling(
    keys: Tensor,
    source_of: Tensor,
    size: tuple[int, int],
    wide: tuple[Tensor, Tensor],
    norm: tuple[Tensor, Tensor, float],
    narrow: tuple[Tensor, Tensor],
    kernels: Tensor,
) -> Tensor:
    """An image's rows to logits: two transposed convolutions of side and stride 2, each through GELU, and a product.

    keys, source_of  as `from_image`; N = h * w
    size     (h, w)
    wide     the first convolution: (4, C, C1), a matrix for each of the four pixels it makes of one, and bias (C1,)
    norm     of the pixels after it: weight and bias, each (C1,), and epsilon
    narrow   the second: (C1, 4 * C2), the four matrices side by side, and bias (C2,)
    kernels  (P, M, C2), contiguous: what a pixel is multiplied by for each mask
    returns  (P, M, 4 * h, 4 * w)
    """
    weight, norm_bias, eps = norm
    x = _wide(keys).unsqueeze(1) @ _wide(wide[0]) + wide[1]  # (Q, 4, N, C1)
    x = F.gelu(F.layer_norm(x, x.shape[-1:], _wide(weight), _wide(norm_bias), eps)).to(keys.dtype)
    x = F.gelu((_wide(x) @ _wide(narrow[0])).view(*x.shape[:3], 4, -1) + narrow[1]).to(keys.dtype)
    pixels = x.view(len(keys), 2, 2, *size, 2, 2, -1)  # dy, dx, h, w, ey, ex
    pixels = pixels.permute(0, 7, 3, 1, 5, 4, 2, 6).flatten(5, 7).flatten(2, 4)  # (Q, C2, 4 * h, 4 * w)
    return torch.einsum("pchw,pmc->pmhw", _wide(pixels[source_of]), _wide(kernels)).to(keys.dtype)


def _wide(x: Tensor) -> Tensor:
    """With at least 32 bits, in which sums are kept."""
    return x if x.dtype == torch.float64 else x.float()
