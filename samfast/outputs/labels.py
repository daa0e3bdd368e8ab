"""PNG label maps: the number of the mask at each pixel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from samfast import coco_rle
from samfast.atomic_files import atomic_open
from samfast.coco_rle import MaskSequence
from samfast.errors import InputError, shown
from samfast.types import Size


def label_map(masks: MaskSequence, size: Size) -> NDArray[np.integer]:
    """(H, W) uint8, or uint16 for more than 255 masks: 0 is background, i + 1 is mask i.

    Where masks overlap, the smaller is on top (of equals, the later), so that small ones stay
    visible; JSON and NPZ keep overlaps. Raises InputError if a mask is of another size, or for more
    than 65535 masks.
    """
    order = by_area(masks, size)
    painted = paint(masks, size, np.arange(1, len(masks) + 1), order)
    return painted.astype(np.uint8) if len(masks) <= 255 else painted


def write_labels(path: str | os.PathLike[str], masks: MaskSequence, size: Size) -> None:
    """Write the label map as a grey PNG of 8 bits, or of 16 for more than 255 masks.

    It looks nearly black: the values are labels, not shades. Raises InputError as label_map does,
    OutputError if the file cannot be written.

        size = results[0].masks.shape[-2:]
        samfast.outputs.write_labels("photo.png", results[0].best(), size)
    """
    picture = Image.fromarray(np.ascontiguousarray(label_map(masks, size)))
    with atomic_open(path) as file:
        picture.save(file, "PNG")


def check_masks(masks: object) -> None:
    """InputError unless this is a list of masks, an array or a tensor of them."""
    dense = isinstance(masks, np.ndarray | Tensor) and not getattr(masks, "is_nested", False)
    listed = isinstance(masks, Sequence) and not isinstance(masks, str | bytes)
    if not listed and not (dense and masks.ndim == 3):  # type: ignore[attr-defined]
        raise InputError(f"{shown(masks)} instead of a list of masks; wrap it: [mask]")


def by_area(masks: MaskSequence, size: Size) -> list[int]:
    """The masks' indices, the largest first; InputError if one is of another size."""
    check_masks(masks)
    pair = isinstance(size, Sequence) or (isinstance(size, np.ndarray) and size.ndim == 1)
    if (
        not pair
        or len(size) != 2
        or not all(isinstance(side, Integral) and side >= 1 for side in size)
    ):
        raise InputError(f"an image of size {shown(size)}; give (height, width) in pixels")
    if len(masks) > 65535:
        raise InputError(f"{len(masks)} masks; a label map holds at most 65535: write JSON or NPZ")
    areas = []
    for index, mask in enumerate(masks):
        try:
            height, width = coco_rle.size_of(mask)
            if (height, width) != tuple(size):
                raise InputError(
                    f"is {height} x {width}, its image {size[0]} x {size[1]} (H x W); pass the "
                    "masks of that image"
                )
            areas.append(coco_rle.area_of(mask))
        except InputError as error:
            raise InputError(f"mask {index}: {error}") from error
    return sorted(range(len(areas)), key=lambda index: -areas[index])


def paint(
    masks: MaskSequence, size: Size, values: NDArray[np.integer], order: Sequence[int]
) -> NDArray[np.uint16]:
    """(H, W) uint16: values[i] on mask i, later ones of `order` over earlier, 0 elsewhere."""
    canvas = np.zeros((size[1], size[0]), np.uint16).T  # column-major, as the runs of RLE are
    flat = canvas.T.reshape(-1)
    for index in order:
        mask = masks[index]
        if isinstance(mask, Mapping):
            # Paint run by run: decoding hundreds of masks of a large photo takes seconds.
            borders = np.cumsum(coco_rle.run_lengths(mask)[1]).tolist()
            for start, end in zip(borders[0::2], borders[1::2], strict=False):
                flat[start:end] = values[index]
        else:
            canvas[coco_rle.dense_mask(mask)] = values[index]
    return canvas
