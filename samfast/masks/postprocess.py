"""Low-resolution logits to what is asked for of the masks, with no float masks between where Triton
runs.

On a GPU a Triton kernel, elsewhere, and on a GPU without Triton, plain torch with the same results,
a few masks at a time. Only the latter's speed and memory differ. Nothing here waits for the GPU,
but `measure` with `wanted` where Triton does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from samfast.device.triton_support import has_triton
from samfast.masks import postprocess_reference
from samfast.masks.measures import Measures, Upscaled
from samfast.masks.resize_geometry import ResizeGeometry


def masks(low_res: Tensor, frame: ResizeGeometry, threshold: float = 0.0) -> Tensor:
    """The masks (original: `Sam.postprocess_masks`, and the threshold).

    low_res  (N, h, w) logits of the decoder, h = w = side / 4, of objects of one image
    returns  (N, H, W) bool, true where the logit is above the threshold; NaN is not
    """
    made = _upscale(low_res, frame, threshold, masks=True).masks
    assert made is not None
    return made


def masks_of_images(
    low_res: Tensor,
    offsets: Sequence[int],
    frames: Sequence[ResizeGeometry],
    threshold: float = 0.0,
) -> list[Tensor]:
    """The masks of several images' objects; neighbours of equal frames share a launch.

    low_res  (P, M, h, w), the objects of image i being offsets[i] to offsets[i + 1]
    returns  for each image (n, M, H, W) bool
    """
    found: list[Tensor] = []
    first = 0
    for last in range(1, len(frames) + 1):
        if last < len(frames) and frames[last] == frames[first]:
            continue
        part = low_res[offsets[first] : offsets[last]]
        made = masks(part.flatten(0, 1), frames[first], threshold)
        made = made.view(*part.shape[:2], *frames[first].original_size)
        places = [offset - offsets[first] for offset in offsets[first : last + 1]]
        found += [made[start:stop] for start, stop in pairwise(places)]
        first = last
    return found


def packed(low_res: Tensor, frame: ResizeGeometry, threshold: float = 0.0) -> Tensor:
    """As `masks`, (N, W, ceil(H / 32)) int32, a bit a pixel (`samfast.masks.bit_masks`)."""
    made = _upscale(low_res, frame, threshold, pack=True).packed
    assert made is not None
    return made


def measure(
    low_res: Tensor,
    frame: ResizeGeometry,
    threshold: float,
    offset: float,
    wanted: Tensor | None = None,
) -> Measures:
    """Area, box, and what the stability score compares; arguments as `masks`, offset in logits.

    wanted  (N,) bool: others cost no time, and all their measures are 0; None: all are
    """
    made = _upscale(low_res, frame, threshold, offset=offset, wanted=wanted).measures
    assert made is not None
    return made


def measured_masks(
    low_res: Tensor, frame: ResizeGeometry, threshold: float, offset: float
) -> tuple[Measures, Tensor]:
    """`measure` and `masks` in one pass."""
    made = _upscale(low_res, frame, threshold, offset=offset, masks=True)
    assert made.measures is not None and made.masks is not None
    return made.measures, made.masks


def _upscale(low_res: Tensor, frame: ResizeGeometry, threshold: float, **wanted: Any) -> Upscaled:
    height, width = frame.original_size
    if has_triton(low_res.device) and height * width < 2**31:
        from samfast.masks.kernels.postprocess_tiles import launch

        return launch(low_res, frame, threshold, **wanted)
    return postprocess_reference.tiles(low_res, frame, threshold, **wanted)
