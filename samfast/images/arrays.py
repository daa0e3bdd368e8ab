"""Arrays and tensors -> (H, W, 3) uint8 RGB, or an ImageError that names the missing conversion."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import ImageError

_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def pixels_of_array(array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """(H, W, 3), (H, W, 1) or (H, W) uint8 -> (H, W, 3) uint8; an RGB array is not copied.

    Raises ImageError on another shape or dtype.
    """
    array = np.asarray(array)
    _check_dtype(array, name, "array")
    _check_shape(array.shape, name, "array")
    return _three_channels(array)


def pixels_of_tensor(tensor: Tensor, name: str) -> NDArray[np.uint8]:
    """(3, H, W) or (1, H, W) uint8 on any device -> (H, W, 3) uint8, a view of an RGB host tensor.

    Raises ImageError on another shape or dtype.
    """
    if tensor.is_nested:
        raise ImageError(f"{name}: is a nested tensor; pass its images one by one: x.unbind()")
    _check_shape(tuple(tensor.shape), name, "tensor")
    if tensor.is_floating_point() and tensor.dtype not in _NUMPY_FLOATS:
        tensor = tensor.float()  # numpy has no bfloat16, and the message gives the range of values
    try:
        array = tensor.detach().cpu().numpy()
    except Exception as error:  # meta, sparse, quantized
        raise ImageError(
            f"{name}: has no plain values to read ({tensor.layout}, {tensor.device})"
        ) from error
    _check_dtype(array, name, "tensor")
    return _three_channels(array.transpose(1, 2, 0))


def _three_channels(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = array.astype(np.uint8, copy=False)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _check_shape(shape: tuple[int, ...], name: str, kind: str) -> None:
    """ImageError unless an array is (H, W), (H, W, 1 or 3), or a tensor (1 or 3, H, W)."""
    if kind == "array":
        channels, wrong, order = 2, 0, "first"
        move, layout = ".transpose(1, 2, 0)", "arrays are (H, W, 3) RGB or (H, W) grey, uint8"
    else:
        channels, wrong, order = 0, 2, "last"
        move, layout = ".permute(2, 0, 1)", "tensors are (3, H, W) RGB or (1, H, W) grey, uint8"
    if len(shape) == 4:
        raise ImageError(f"{name}: is a batch; pass its images one by one, e.g. list(x)")
    if len(shape) == 3 and shape[channels] not in (1, 3):
        if shape[wrong] in (1, 3):
            raise ImageError(f"{name}: looks like channels {order}; {layout}: pass x{move}")
        if 4 in (shape[0], shape[2]):
            rgb = "x[..., :3]" if shape[2] == 4 else "x[:3]"
            rgb += "" if shape[channels] == 4 else move
            raise ImageError(
                f"{name}: has 4 channels; drop alpha: pass {rgb} (and put channels in RGB order)"
            )
    grey = kind == "array" and len(shape) == 2
    if not grey and (len(shape) != 3 or shape[channels] not in (1, 3)):
        raise ImageError(f"{name}: not an image; {layout}")
    if 0 in shape:
        raise ImageError(f"{name}: has no pixels; check the slice or crop it came from")


def _check_dtype(array: NDArray[np.generic], name: str, kind: str) -> None:
    if array.dtype == np.uint8:
        return
    to_uint8 = ".astype(np.uint8)" if kind == "array" else ".to(torch.uint8)"
    start = f"{name}: dtype {array.dtype}, and an image is uint8 with values 0..255"
    if array.dtype == np.bool_:
        raise ImageError(f"{start}; pass x{to_uint8} * 255")
    if array.dtype.kind not in "iuf" or array.size == 0:
        raise ImageError(f"{start}; pass a uint8 {kind} with pixels")
    values = array.astype(np.float64)
    bad = int(array.size - np.isfinite(values).sum())
    if bad:
        many = f"{bad} of {array.size} values are NaN or infinite"
        raise ImageError(f"{start}; {many}: find out why before converting")
    low, high = values.min(), values.max()
    remedy = f"scale x to 0..255 first, then x{to_uint8}"
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        remedy = f"pass (x * 255){to_uint8}"
    elif low >= 0 and high <= 255:
        remedy = f"pass x{to_uint8}"
    elif array.dtype == np.uint16:
        remedy = f"pass (x // 256){to_uint8}, or stretch the values you need to 0..255"
    raise ImageError(f"{start}; these lie in {low:g}..{high:g}: {remedy}")
