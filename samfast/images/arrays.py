"""Arrays and tensors -> (H, W, 3) uint8 RGB, or one clear line about what they are instead."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.errors import ImageError

_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def pixels_of_array(array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """(H, W, 3), (H, W, 1) or (H, W) uint8 -> (H, W, 3) uint8; an RGB array itself, uncopied.

    Raises ImageError on another shape or dtype; it names both, the range, and the conversion that
    is missing.
    """
    array = np.asarray(array)
    _refuse_dtype(array, name, "array")
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3) and shape[0] in (1, 3):
        raise ImageError(
            f"{name}: looks like channels first; arrays are (H, W, 3): pass x.transpose(1, 2, 0), "
            "or a torch tensor"
        )
    if array.ndim == 3 and 4 in (shape[0], shape[2]) and shape[2] not in (1, 3):
        drop = "x[..., :3]" if shape[2] == 4 else "x[:3].transpose(1, 2, 0)"
        raise ImageError(
            f"{name}: has 4 channels; drop alpha: pass {drop} (and put channels in RGB order)"
        )
    if array.ndim == 4:
        raise ImageError(f"{name}: is a batch; pass its images one by one, e.g. list(x)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3)):
        raise ImageError(f"{name}: not an image; arrays are (H, W, 3) RGB or (H, W) grey, uint8")
    if 0 in shape:
        raise ImageError(f"{name}: has no pixels; check the slice or crop it came from")
    pixels: NDArray[np.uint8] = array.astype(np.uint8, copy=False)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def pixels_of_tensor(tensor: Tensor, name: str) -> NDArray[np.uint8]:
    """(3, H, W) or (1, H, W) uint8 on any device -> (H, W, 3) uint8 (a view, if it is on the host).

    Raises ImageError as pixels_of_array does.
    """
    if tensor.is_floating_point() and tensor.dtype not in _NUMPY_FLOATS:
        tensor = tensor.float()  # numpy has no such dtypes, and the message needs the range
    shape = tuple(tensor.shape)
    if tensor.ndim == 4:
        raise ImageError(f"{name}: is a batch; pass its images one by one, e.g. list(x)")
    if tensor.ndim == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3, 4):
        only = "" if shape[2] != 4 else "[..., :3]"
        raise ImageError(
            f"{name}: looks like channels last; tensors are (3, H, W): pass x{only}.permute(2, 0, "
            "1), "
            "or a numpy array"
        )
    if tensor.ndim == 3 and shape[0] == 4:
        raise ImageError(
            f"{name}: has 4 channels; drop alpha: pass x[:3] (and put channels in RGB order)"
        )
    if tensor.ndim != 3 or shape[0] not in (1, 3):
        raise ImageError(
            f"{name}: not an image; tensors are (3, H, W) RGB or (1, H, W) grey, uint8"
        )
    try:
        array = tensor.detach().cpu().numpy()
    except Exception as error:  # meta, sparse, quantized
        raise ImageError(
            f"{name}: has no plain values to read ({tensor.layout}, {tensor.device})"
        ) from error
    _refuse_dtype(array, name, "tensor")
    return pixels_of_array(array.transpose(1, 2, 0), name)


def _refuse_dtype(array: NDArray[np.generic], name: str, kind: str) -> None:
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
        raise ImageError(
            f"{start}; {bad} of {array.size} values are NaN or infinite: find out why before "
            "converting"
        )
    low, high = values.min(), values.max()
    remedy = f"scale x to 0..255 first, then x{to_uint8}"
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        remedy = f"pass (x * 255){to_uint8}"
    elif low >= 0 and high <= 255:
        remedy = f"pass x{to_uint8}"
    elif array.dtype == np.uint16:
        remedy = f"pass (x // 256){to_uint8}, or stretch the values you need to 0..255"
    raise ImageError(f"{start}; these lie in {low:g}..{high:g}: {remedy}")
