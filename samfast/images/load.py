"""A path, PIL image, array or tensor -> LoadedImage."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from samfast.errors import ImageError, ImageSizeError
from samfast.images.arrays import pixels_of_array, pixels_of_tensor
from samfast.images.decode import pixels_of_picture
from samfast.images.files import open_picture, read_header
from samfast.types import BriefRepr

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor
"""A path, PIL image, (H, W, 3) or (H, W) uint8 array, (3, H, W) or (1, H, W) uint8 tensor."""


@dataclass(frozen=True, eq=False, repr=False)
class LoadedImage(BriefRepr):
    """An image as it is shown to a person: upright RGB.

    pixels  (H, W, 3) uint8 RGB; an RGB array of the caller is not copied
    name    names the image in messages
    notes   visible changes made on the way (alpha dropped, first frame used, turned upright, ...),
            one sentence each; empty for a plain RGB or grey photo. `SamFast` gives them out as an
            ImageWarning for images that it loads itself
    """

    pixels: NDArray[np.uint8]
    name: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


Images = Sequence[ImageLike | LoadedImage]
"""A list of images in any form that `SamFast.embed` takes."""


def load_image(source: ImageLike, name: str | None = None) -> LoadedImage:
    """Decode one image to upright RGB, as `PIL.Image.open(path).convert("RGB")` would show it.

    source  see ImageLike. Files: the formats of `samfast.images.files.FORMATS`, and those of
            plugins that the caller registered with Pillow. EXIF rotation is applied, to PIL images
            too; alpha is dropped, not composited (as `convert("RGB")` and OpenCV do); 16-bit is
            scaled to 8; the first frame of several is used (of a PIL image, its current one).
            Arrays and tensors must be uint8; tensors may be on any device.
    name    names the image in messages; by default the path, or the kind of the source

    Raises ImageError, one line with the name, the trouble and the remedy, if the source cannot be
    used. Safe to call from several threads at once; Pillow releases the GIL while it decodes.
    """
    notes: tuple[str, ...] = ()
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if not isinstance(path, str):
            raise ImageError(f"{path!r}: a path of bytes; pass os.fsdecode(path)")
        name = name or _printable(path)
        with open_picture(path, name) as picture:
            pixels, notes = pixels_of_picture(picture, name)
    elif isinstance(source, Image.Image):
        name = name or _printable(str(getattr(source, "filename", "")) or "PIL image")
        pixels, notes = pixels_of_picture(source, name)
    elif isinstance(source, np.ndarray):
        name = name or f"array of shape {source.shape}"
        pixels = pixels_of_array(source, name)
    elif isinstance(source, Tensor):
        name = name or ("tensor" if source.is_nested else f"tensor of shape {tuple(source.shape)}")
        pixels = pixels_of_tensor(source, name)
    else:
        raise ImageError(_unknown(source, name or "image"))
    return LoadedImage(pixels, name, notes)


def load_bytes(data: bytes, name: str, max_pixels: int | None = None) -> LoadedImage:
    """Decode an image file that is in memory, as `load_image` decodes one on disk.

    max_pixels  refuse images of more; None: those of Pillow's limit

    Raises ImageError; ImageSizeError for one of too many pixels, whose pixels are not decoded.

    >>> load_bytes(Path("photo.jpg").read_bytes(), "photo.jpg").size
    """
    if not data:
        raise ImageError(f"{name}: is empty (0 bytes)")
    with read_header(io.BytesIO(data), "", name) as picture:
        width, height = picture.size
        if max_pixels is not None and width * height > max_pixels:
            raise ImageSizeError(
                f"{name}: its {width} x {height} pixels are more than the limit of {max_pixels}"
            )
        pixels, notes = pixels_of_picture(picture, name)
    return LoadedImage(pixels, name, notes)


def _printable(name: str) -> str:
    """The name, escaped if it holds line breaks or the undecodable bytes of a file name."""
    return name if name.isprintable() else ascii(name)


def _unknown(source: object, name: str) -> str:
    kind = source if source is None else f"a {type(source).__name__}"
    if isinstance(source, bytes | bytearray | memoryview):
        remedy = "encoded bytes open with PIL.Image.open(io.BytesIO(data))"
    elif hasattr(source, "read"):
        remedy = "an open file opens with PIL.Image.open(file)"
    else:
        remedy = (
            "pass a path, a PIL image, an (H, W, 3) uint8 RGB array or a (3, H, W) uint8 RGB "
            "tensor, one image at a time"
        )
    return f"{name}: cannot use {kind} as an image; {remedy}"
