"""A path -> an opened PIL image whose pixels have not been read yet."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from PIL import Image

from samfast.errors import ImageError, one_line
from samfast.images import tiff

_NAMES = "AVIF BMP DDS DIB GIF ICNS ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI TGA TIFF WEBP"
FORMATS = frozenset(_NAMES.split())
"""Pillow's raster formats that are read. Its others are refused, whatever a file is called: EPS,
for example, is a program, which Pillow has Ghostscript run. Formats that the caller has registered
with Pillow are read too."""


@contextmanager
def open_picture(path: str, name: str) -> Iterator[Image.Image]:
    """The image in that file, its header read; the file is closed at the end.

    Raises ImageError, naming `name`, if the file is missing, unreadable, not a regular file or not
    an image, of a format that is not read, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _open_file(path, name) as file:
        yield read_header(file, path, name)


def read_header(file: IO[bytes], path: str, name: str) -> Image.Image:
    """The image in an open file, its header read. Raises as `open_picture`."""
    try:
        picture = _identify(file, path, name)
        width, height = picture.size
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > limit:
            many = f"its {width} x {height} pixels are more than Pillow's limit of {limit}"
            raise ImageError(_bomb(name, many))
    except Image.DecompressionBombError as error:  # a few plugins check by themselves
        raise ImageError(_bomb(name, "it is so large")) from error
    return picture


def check_format(picture: Image.Image, name: str) -> None:
    """ImageError if a PIL image was opened from a format that is not read."""
    kind = picture.format
    if kind is not None and not _is_read(kind, type(picture)):
        raise ImageError(
            f"{name}: {_refused(kind)}; if you trust it, pass what Image.open(...).convert('RGB') "
            "returns"
        )


def _open_file(path: str, name: str) -> IO[bytes]:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: is a folder; name the image files in it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise ImageError(f"{name}: is not a regular file; save the image to a file first")
        if status.st_size == 0:
            raise ImageError(f"{name}: is empty (0 bytes); copy or download it again")
        return open(path, "rb")
    except FileNotFoundError:
        hint = "download it first" if "://" in path else "check the path and the current folder"
        raise ImageError(f"{name}: no such file; {hint}") from None
    except PermissionError:
        raise ImageError(f"{name}: may not be read; give this user permission to read it") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ImageError(f"{name}: cannot be opened ({reason}); check the path") from error


def _identify(file: IO[bytes], path: str, name: str) -> Image.Image:
    """`PIL.Image.open` without its warnings.

    Image.open only warns about a decompression bomb. Turning that into an error would change the
    warning filters of the whole process, which is not safe with other threads. Plugins that the
    caller registered with Pillow are tried too. Of the formats that are not read only the first
    bytes are compared.
    """
    prefix = file.read(16)
    tried: set[str] = set()
    damaged = missing = refused = ""
    for load_plugins in (Image.preinit, Image.init):  # the few common formats first, as Pillow does
        load_plugins()
        for kind in [kind for kind in Image.ID if kind not in tried]:
            tried.add(kind)
            factory, accept = Image.OPEN[kind]
            matches = False
            try:
                accepted = accept(prefix) if accept is not None else True
                if not _is_read(kind, factory):
                    refused = refused or (kind if accepted is True and accept else "")
                elif isinstance(accepted, str):  # the plugin lacks a library; this is its message
                    missing = f" ({accepted})"
                elif accepted:
                    matches = accept is not None
                    file.seek(0)
                    return factory(file, path)
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                if matches:  # otherwise it only means that the file is of another format
                    what = tiff.unsupported(file) if kind == "TIFF" else None
                    wrong = f"{what}, which Pillow cannot read; {tiff.REMEDY}" if what else ""
                    damaged = damaged or wrong or _damaged(kind, error)
            except Image.DecompressionBombError:
                raise
            except Exception as error:
                raise ImageError(f"{name}: {_damaged(kind, error)}") from error
    if damaged:
        raise ImageError(f"{name}: {damaged}")
    if refused:
        raise ImageError(f"{name}: {_refused(refused)}; convert it to PNG or JPEG")
    raise ImageError(
        f"{name}: not an image, or of a format that Pillow cannot read{missing}; convert it to PNG "
        "or JPEG"
    )


def _is_read(kind: str, factory: object) -> bool:
    """Whether files of a format are read: of FORMATS, or by a plugin that is not Pillow's own."""
    return kind in FORMATS or not str(getattr(factory, "__module__", "")).startswith("PIL.")


def _refused(kind: str) -> str:
    return f"{kind}, which samfast does not read, whatever the file is called"


def _damaged(kind: str, error: Exception) -> str:
    return f"damaged {kind} file ({one_line(error)}); copy or export it again"


def _bomb(name: str, reason: str) -> str:
    return (
        f"{name}: may be a decompression bomb, {reason}; if you trust it, scale it down, "
        "read it in tiles (--tile 1024, in Python segment_large), or raise the limit: --max-pixels "
        "on the command line, in Python PIL.Image.MAX_IMAGE_PIXELS"
    )
