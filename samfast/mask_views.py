"""What `Masks` and `MaskRecords` convert to and draw: polygons, cutouts, detections, pictures.

The types lie before every stage and call these functions, which import stages, from their methods.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samfast.errors import MissingExtraError
from samfast.images.load import ImageLike, load_image
from samfast.masks import boxes
from samfast.outputs.cutouts import cutout
from samfast.outputs.overlay import draw_masks, draw_overlay
from samfast.outputs.polygons import Polygon, mask_to_polygons
from samfast.types import MaskRecords, Masks, Prompts, Size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Axes", "ImageLike", "Polygon", "cutouts", "detections", "plot", "polygons", "thumbnail"]

THUMBNAIL_SIDE = 320
"""Most pixels of a thumbnail's longer side."""


def polygons(masks: Masks) -> list[list[Polygon]]:
    """The polygons of each object's best mask."""
    return [mask_to_polygons(mask) for mask in _best(masks)]


def cutouts(masks: Masks, image: ImageLike) -> list[NDArray[np.uint8]]:
    """The RGBA cutout of each object's best mask; (0, 0, 4) of an empty mask."""
    pixels = load_image(image).pixels
    nothing = np.zeros((0, 0, 4), np.uint8)
    return [cutout(pixels, mask) if mask.any() else nothing for mask in _best(masks)]


def detections(masks: Masks) -> Any:
    """Each object's best mask as `supervision.Detections`."""
    try:
        import supervision
    except ImportError as error:
        raise MissingExtraError(
            f"to_supervision needs supervision ({error}); pip install supervision"
        ) from error
    masks = masks.cpu()
    best = masks.best()
    # Supervision's boxes end behind the last pixel, so that their areas are those of the pixels.
    xyxy = boxes.from_masks(best)
    xyxy[:, 2:] += best.flatten(1).any(1)[:, None]
    return supervision.Detections(
        xyxy=xyxy.numpy().astype(np.float64),
        mask=best.numpy(),
        confidence=masks.iou.float().amax(1).numpy(),
    )


def plot(
    masks: Masks | MaskRecords,
    image: ImageLike,
    prompts: Prompts | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draw the overlay of the masks in matplotlib's axes, new ones if none are given."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError(
            f"plot needs matplotlib ({error}); pip install matplotlib"
        ) from error
    picture = draw_overlay(load_image(image).pixels, _masks_and_size(masks)[0], prompts)
    drawn: Axes = pyplot.subplots(layout="constrained")[1] if axes is None else axes
    drawn.imshow(picture)
    drawn.set_axis_off()
    return drawn


def thumbnail(masks: Masks | MaskRecords) -> bytes | None:
    """A small PNG of the masks on a plain ground, for notebooks; None if there are none."""
    drawn, size = _masks_and_size(masks)
    if not len(drawn):
        return None
    file = io.BytesIO()
    draw_masks(drawn, size, THUMBNAIL_SIDE).save(file, "PNG")
    return file.getvalue()


def _masks_and_size(masks: Masks | MaskRecords) -> tuple[Any, Size]:
    if isinstance(masks, MaskRecords):
        return [record["segmentation"] for record in masks], masks.size
    best = _best(masks)
    return best, (best.shape[1], best.shape[2])


def _best(masks: Masks) -> NDArray[np.bool_]:
    """(N, H, W), each object's best mask, on the host."""
    best: NDArray[np.bool_] = masks.cpu().best().numpy()
    return best
