"""A PIL image of any mode -> (H, W, 3) uint8 RGB, and notes on each visible change."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from samfast.errors import ImageError, one_line
from samfast.images import tiff
from samfast.images.files import check_format

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def pixels_of_picture(picture: Image.Image, name: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode, turn upright, convert to RGB: (H, W, 3) uint8 and the notes of LoadedImage.

    Raises ImageError if the pixels are damaged or truncated, of a format or layout that is refused,
    or are floats or 32-bit integers: such files do not state which values are black and white. The
    picture is loaded, otherwise unchanged.
    """
    check_format(picture, name)
    tiff.check_layout(picture, name)
    if 0 in picture.size:
        size = f"{picture.width} x {picture.height}"
        raise ImageError(f"{name}: has no pixels ({size}); check how it was made")
    try:
        notes = [*_frame_notes(picture), *_depth_notes(picture)]  # load() forgets the file's layout
        inverted = tiff.white_is_zero(picture)
        picture.load()
        picture, turned = _upright(picture)
        pixels, converted = _rgb(picture, name, inverted)
    except ImageError:
        raise
    except MemoryError as error:
        size = f"{picture.width} x {picture.height}"
        raise ImageError(f"{name}: {size} pixels do not fit into memory; scale it down") from error
    except Exception as error:  # plugins raise nearly anything on damaged data
        raise ImageError(
            f"{name}: truncated or damaged image data ({one_line(error)}); copy or export it again"
        ) from error
    return pixels, (*notes, *turned, *converted)


def _frame_notes(picture: Image.Image) -> list[str]:
    if not getattr(picture, "is_animated", False):
        return []
    frame, count = picture.tell(), getattr(picture, "n_frames", 0)
    which = "only the first" if frame == 0 else f"only number {frame + 1}"
    return [f"it has {count} frames; {which} is used"]


def _depth_notes(picture: Image.Image) -> list[str]:
    """Pillow reads 16-bit colour as 8-bit without saying so; the file's layout shows it."""
    layouts = [repr(tile[3]) for tile in getattr(picture, "tile", None) or []]
    if picture.mode not in (*_SIXTEEN_BIT, "I") and any(";16" in layout for layout in layouts):
        return ["16-bit colour became 8-bit: the high byte of each value is used"]
    return []


def _upright(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # a photo with broken EXIF is still a photo
        return picture, [f"its EXIF data is damaged and was ignored ({one_line(error)})"]
    if orientation not in range(2, 9):
        return picture, []
    turned = ImageOps.exif_transpose(picture)
    size = f"{turned.height} x {turned.width} (H x W)"
    return turned, [f"turned upright by its EXIF orientation {orientation}: now {size}"]


def _rgb(picture: Image.Image, name: str, inverted: bool) -> tuple[NDArray[np.uint8], list[str]]:
    """The pixels and notes on their conversion; inverted: 0 is white in 16-bit pixels."""
    mode = picture.mode
    if mode == "RGB":
        return np.array(picture), []
    if mode in _SIXTEEN_BIT or mode == "I":
        return _from_integers(np.asarray(picture), mode, name, inverted)
    if mode == "F":
        raise ImageError(
            f"{name}: holds 32-bit floats (PIL mode F), whose black and white are not stated; "
            "scale them to 0..255 and convert to 8 bits"
        )
    if picture.has_transparency_data:
        if mode == "La":
            picture = picture.convert("LA")
        rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        opaque = rgba.getchannel("A").getextrema()[0] == 255
        note = "alpha was dropped; what was transparent shows its own colour"
        return np.array(rgba.convert("RGB")), [] if opaque else [note]
    notes = ["CMYK became RGB without a colour profile"] if mode == "CMYK" else []
    return np.array(picture.convert("RGB")), notes


def _from_integers(
    values: NDArray[np.integer], mode: str, name: str, inverted: bool
) -> tuple[NDArray[np.uint8], list[str]]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535 or (0 < high <= 255) or (mode == "I" and high == 0):
        raise ImageError(
            f"{name}: PIL mode {mode} with values {low}..{high}, which are not 16-bit pixels; "
            "scale them to 0..255 and convert to 8 bits"
        )
    grey = (values >> 8).astype(np.uint8)
    scaled = f"values {low}..{high} are divided by 256, to {low >> 8}..{high >> 8}"
    if inverted:
        grey = 255 - grey
        scaled += ", and inverted, because 0 is white in this file"
    return np.repeat(grey[:, :, None], 3, axis=2), [f"16-bit grey became 8-bit: {scaled}"]
