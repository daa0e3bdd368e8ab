"""The photos of a folder, as the page shows them: their names, small pictures, and large ones."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from samfast.errors import ImageError, ImageSizeError
from samfast.images import load_bytes
from samfast.images.files import read_header
from samfast.serve.annotations_file import AnnotationsFile
from samfast.serve.image_store import read_below
from samfast.serve.problems import ProblemError, not_found, too_large
from samfast.types import Size

_ENDINGS = "avif bmp dib gif j2k jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
ENDINGS = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Endings of the files that are listed."""

MAX_PHOTOS = 20000
"""More are not listed: a page would be slow, and a folder of that size is rarely meant."""

SHOWN_BY_BROWSERS = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
"""Formats that are handed out as they are; others become JPEG."""

THUMBNAIL = (176, 128)
"""Width and height, twice those on the page for fine screens."""

THUMBNAIL_BYTES = 32 << 20


@dataclass(frozen=True)
class Picture:
    """An encoded picture and its media type."""

    data: bytes
    media_type: str


class PhotoFolder:
    """A folder of photos, and the annotations file that labels them, if they are labelled.

    root         the folder
    recursive    whether its subfolders belong to it; hidden ones do not
    annotations  None: the photos are shown and segmented, and nothing is written
    max_bytes    larger files are refused, as `max_pixels` refuses larger images

    A photo's name is its path below the root with slashes. Only names of listed files are taken.
    Safe to call from several threads.
    """

    def __init__(
        self,
        root: Path,
        *,
        recursive: bool = True,
        annotations: AnnotationsFile | None = None,
        max_bytes: int = 64 << 20,
        max_pixels: int = 64_000_000,
    ) -> None:
        self.root, self.recursive, self.annotations = root, recursive, annotations
        self._max_bytes, self._max_pixels = max_bytes, max_pixels
        self._lock = threading.Lock()
        self._thumbnails: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._sizes: dict[tuple[str, int, int], Size] = {}
        self._thumbnail_bytes = 0

    def names(self) -> list[str]:
        """The photos there are now, in the order of their names."""
        listed: list[str] = []
        for parent, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = Path(parent).relative_to(self.root)
            listed += [(below / name).as_posix() for name in sorted(files) if _is_photo(name)]
            if not self.recursive or len(listed) >= MAX_PHOTOS:
                break
        return listed[:MAX_PHOTOS]

    def picture(self, name: str) -> Picture:
        """A photo that a browser can show, upright or with an orientation that browsers apply.

        ProblemError 404 if there is none of that name, 413 or 422 if it cannot be used.
        """
        data = self._read(name)[1]
        try:
            with read_header(io.BytesIO(data), name, name) as opened:
                media_type = SHOWN_BY_BROWSERS.get(opened.format or "")
                # Browsers and Pillow differ in how they show 16 bits, CMYK and transparency.
                plain = opened.mode in ("RGB", "L", "P", "1") and "transparency" not in opened.info
            if media_type is not None and plain:
                return Picture(data, media_type)
        except ImageError:  # `_pixels` raises it again, as a problem that the page shows
            pass
        picture = Image.fromarray(self._pixels(name, data))
        return Picture(_encoded(picture, quality=93), "image/jpeg")

    def thumbnail(self, name: str) -> Picture:
        """A small JPEG of a photo, cut to the sides of THUMBNAIL. ProblemError as `picture`."""
        path, data = self._read(name)
        return Picture(
            self._kept(name, path, lambda: self._make_thumbnail(name, data)), "image/jpeg"
        )

    def size(self, name: str) -> Size:
        """(H, W) of a photo as it is shown. ProblemError as `picture`."""
        path, data = self._read(name)
        status = path.stat()
        key = (name, status.st_mtime_ns, status.st_size)
        if key not in self._sizes:
            self._sizes[key] = _upright_size(data) or self._pixels(name, data).shape[:2]
        return self._sizes[key]

    def _read(self, name: str) -> tuple[Path, bytes]:
        parts = name.split("/")
        hidden = any(part.startswith(".") for part in parts)
        if not _is_photo(parts[-1]) or hidden or (len(parts) > 1 and not self.recursive):
            raise not_found(f"there is no photo {name!r} in this folder")
        return read_below(self.root, name, self._max_bytes)

    def _pixels(self, name: str, data: bytes) -> np.ndarray:
        try:
            return load_bytes(data, name, self._max_pixels).pixels
        except ImageSizeError as error:
            raise too_large(str(error)) from None
        except ImageError as error:
            raise ProblemError(422, "bad_image", str(error)) from None

    def _make_thumbnail(self, name: str, data: bytes) -> bytes:
        picture = Image.fromarray(self._pixels(name, data))
        width, height = THUMBNAIL
        scale = max(width / picture.width, height / picture.height)
        sides = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
        small = picture.resize(sides, Image.Resampling.BILINEAR, reducing_gap=2.0)
        left, top = (sides[0] - width) // 2, (sides[1] - height) // 2
        return _encoded(small.crop((left, top, left + width, top + height)), quality=80)

    def _kept(self, name: str, path: Path, make: Callable[[], bytes]) -> bytes:
        """The thumbnail of a file that has not changed since it was made, or a new one."""
        status = path.stat()
        key = (name, status.st_mtime_ns, status.st_size)
        with self._lock:
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key]
        made = make()
        with self._lock:
            if key not in self._thumbnails:
                self._thumbnails[key] = made
                self._thumbnail_bytes += len(made)
            while self._thumbnail_bytes > THUMBNAIL_BYTES:
                self._thumbnail_bytes -= len(self._thumbnails.popitem(last=False)[1])
        return made


def _is_photo(name: str) -> bool:
    return Path(name).suffix.lower() in ENDINGS and not name.startswith(".")


def _encoded(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _upright_size(data: bytes) -> Size | None:
    """(H, W) from the header of a common format, its EXIF orientation applied; None of others."""
    try:
        with read_header(io.BytesIO(data), "photo", "photo") as picture:
            if picture.format not in SHOWN_BY_BROWSERS:
                return None
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception:  # Pillow's reader of EXIF raises nearly anything on damaged data
        return None
    return (width, height) if turned else (height, width)
