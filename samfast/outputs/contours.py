"""Outlines through the centres of pixels, as OpenCV's `findContours` makes them, and simpler ones.

Tools that draw polygons with OpenCV or Pillow, which colour the pixels that the outline crosses,
want these; `mask_to_polygons` follows the edges of pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samfast.coco_rle import MaskLike, decode
from samfast.outputs.polygons import mask_to_polygons


def mask_to_contours(mask: MaskLike) -> list[NDArray[np.int64]]:
    """The outlines of a mask's regions, (K, 2) XY of pixels, clockwise on the image.

    Drawn and filled, an outline gives its region back, without its holes. Regions are connected by
    edges of pixels. Only the corners of an outline are told, and the first one is not repeated.

    Raises InputError if it is not a mask.

        samfast.outputs.mask_to_contours(mask)[0]  # [[3, 1], [7, 1], [7, 4], [3, 4]]
    """
    return [_pixels_along(polygon.exterior) for polygon in mask_to_polygons(decode(mask))]


def _pixels_along(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pixels inside a clockwise ring, at both ends of each of its sides."""
    following = np.roll(ring, -1, 0)
    step = np.sign(following - ring)
    # The right hand of who goes along a side. A pixel lies down and right of its corner (x, y).
    inward = np.stack([-step[:, 1], step[:, 0]], 1)
    first = ring + (step + inward - 1) // 2
    last = following + (inward - step - 1) // 2
    pixels = np.stack([first, last], 1).reshape(-1, 2)
    kept = pixels[(pixels != np.roll(pixels, -1, 0)).any(1)]
    return kept if len(kept) else pixels[:1]


def simplify_ring(ring: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """The fewest corners that Douglas and Peucker find, none of those left out farther away.

    ring       (K, 2) XY in pixels, closed: the first corner follows the last one
    tolerance  in pixels; 0 leaves out only corners on straight lines

    Returns at least two corners where there are two.

        samfast.outputs.simplify_ring(contour, 0.001 * perimeter)
    """
    if len(ring) < 3:
        return ring
    # Cut at the corner farthest from the first one, so that both halves have ends to keep.
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(1)))
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(len(closed), bool)
    kept[[0, far]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        start, end = spans.pop()
        if end - start < 2:
            continue
        distances = _distances(closed[start + 1 : end], closed[start], closed[end])
        farthest = int(np.argmax(distances))
        if distances[farthest] > tolerance:
            middle = start + 1 + farthest
            kept[middle] = True
            spans += [(start, middle), (middle, end)]
    return ring[kept[: len(ring)]]


def _distances(
    points: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The distances (K,) of points (K, 2) from the segment between two others."""
    along = (end - start).astype(np.float64)
    squared = float(along @ along)
    position = ((points - start) @ along / squared).clip(0, 1) if squared else np.zeros(len(points))
    return np.asarray(np.linalg.norm(points - start - position[:, None] * along, axis=1))


def perimeter(ring: NDArray[np.int64]) -> float:
    """The length of a closed ring (K, 2) in pixels.

    samfast.outputs.perimeter(contour)  # 14.0 for [[3, 1], [7, 1], [7, 4], [3, 4]]
    """
    return float(np.linalg.norm(np.roll(ring, -1, 0) - ring, axis=1).sum())


def enclosed_area(ring: NDArray[np.int64]) -> float:
    """The area that a closed ring (K, 2) encloses, in square pixels.

    samfast.outputs.enclosed_area(contour)  # 12.0 for [[3, 1], [7, 1], [7, 4], [3, 4]]
    """
    x, y = ring.T
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2
