"""Low-resolution logits to masks, packed masks and measures.

A GPU with Triton runs one kernel that stores no float masks; a Hopper GPU has its own, in CUDA C++.
Other devices run plain torch with the same results, a few masks at a time. Nothing here waits for
the GPU, except `measure` with `wanted` where Triton does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from samfast.device.triton_support import has_triton
from samfast.masks import postprocess_reference
from samfast.masks.kernels import hopper_tiles
from samfast.masks.measures import Postprocess
from samfast.masks.resize_geometry import ResizeGeometry


def masks(low_res: Tensor, geometry: ResizeGeometry, threshold: float = 0.0) -> Tensor:
    """The masks (original: `Sam.postprocess_masks`, and the threshold).

    low_res  (N, h, w), or (P, M, h, w) where N = P * M, logits of the decoder, h = w = side / 4, of
             objects of one image
    returns  (N, H, W) bool, true where the logit is above the threshold; NaN is not
    """
    run = _implementation(low_res, geometry)
    made = run(low_res, geometry, threshold, masks=True).masks
    assert made is not None
    return made


def masks_of_images(
    low_res: Tensor,
    offsets: Sequence[int],
    geometries: Sequence[ResizeGeometry],
    threshold: float = 0.0,
) -> list[Tensor]:
    """The masks of several images' objects; neighbours of equal geometry share a launch.

    low_res  (P, M, h, w), the objects of image i being offsets[i] to offsets[i + 1]
    returns  for each image (n, M, H, W) bool
    """
    per_image: list[Tensor] = []
    first = 0
    for last in range(1, len(geometries) + 1):
        if last < len(geometries) and geometries[last] == geometries[first]:
            continue
        part = low_res[offsets[first] : offsets[last]]
        made = masks(part, geometries[first], threshold)
        made = made.view(*part.shape[:2], *geometries[first].original_size)
        bounds = [offset - offsets[first] for offset in offsets[first : last + 1]]
        per_image += [made[start:stop] for start, stop in pairwise(bounds)]
        first = last
    return per_image


def packed(low_res: Tensor, geometry: ResizeGeometry, threshold: float = 0.0) -> Tensor:
    """As `masks`, (N, W, ceil(H / 32)) int32, a bit a pixel (`samfast.masks.bit_masks`)."""
    run = _implementation(low_res, geometry)
    made = run(low_res, geometry, threshold, pack=True).packed
    assert made is not None
    return made


def measure(
    low_res: Tensor,
    geometry: ResizeGeometry,
    threshold: float,
    offset: float,
    wanted: Tensor | None = None,
) -> Tensor:
    """(N, 7) int32, the table of `samfast.masks.measures`; arguments as `masks`, offset in logits.

    wanted  (N,) bool: other masks cost no time, and all their measures are 0; None: all masks
    """
    run = _implementation(low_res, geometry)
    made = run(low_res, geometry, threshold, offset=offset, wanted=wanted).measures
    assert made is not None
    return made


def measured_masks(
    low_res: Tensor, geometry: ResizeGeometry, threshold: float, offset: float
) -> tuple[Tensor, Tensor]:
    """`measure` and `masks` in one pass."""
    run = _implementation(low_res, geometry)
    made = run(low_res, geometry, threshold, offset=offset, masks=True)
    assert made.measures is not None and made.masks is not None
    return made.measures, made.masks


def _implementation(low_res: Tensor, geometry: ResizeGeometry) -> Postprocess:
    height, width = geometry.original_size
    if has_triton(low_res.device) and height * width < 2**31:
        if hopper_tiles.takes(low_res, geometry):
            return hopper_tiles.launch
        from samfast.masks.kernels.postprocess_tiles import launch

        return launch
    return postprocess_reference.tiles
