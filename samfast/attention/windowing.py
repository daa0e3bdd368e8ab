"""Windows of tokens: partition with padding, and back."""

from __future__ import annotations

from torch import Tensor

from samfast.types import Size


def padded_grid(height: int, width: int, window: int) -> Size:
    """The grid rounded up to whole windows."""
    # Not -(-height // window): a graph of ONNX rounds the quotient of a negative number to zero.
    whole_h, whole_w = (height + window - 1) // window, (width + window - 1) // window
    return whole_h * window, whole_w * window


def pad_tokens(tokens: Tensor, window: int, pad: Tensor | None) -> Tensor:
    """(B, H, W, C) -> (B, Hp, Wp, C), filled at right and bottom with `pad` (C,), or zeros."""
    batch, height, width, channels = tokens.shape
    padded_h, padded_w = padded_grid(height, width, window)
    if (padded_h, padded_w) == (height, width):
        return tokens
    if pad is None:
        out = tokens.new_zeros(batch, padded_h, padded_w, channels)
    else:
        out = pad.to(tokens.dtype).expand(batch, padded_h, padded_w, channels).clone()
    out[:, :height, :width] = tokens
    return out


def partition(tokens: Tensor, window: int, pad: Tensor | None = None) -> Tensor:
    """(B, H, W, C) -> (B * windows, window, window, C) (original: `window_partition`)."""
    tokens = pad_tokens(tokens, window, pad)
    batch, height, width, channels = tokens.shape
    grid = tokens.view(batch, height // window, window, width // window, window, channels)
    return grid.transpose(2, 3).reshape(-1, window, window, channels)


def unpartition(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B * windows, window, window, C) -> (B, H, W, C) (original: `window_unpartition`)."""
    padded_h, padded_w = padded_grid(height, width, window)
    rows, columns = padded_h // window, padded_w // window
    grid = windows.view(-1, rows, columns, window, window, windows.shape[-1])
    tokens = grid.transpose(2, 3).reshape(-1, padded_h, padded_w, windows.shape[-1])
    return tokens[:, :height, :width].contiguous()
