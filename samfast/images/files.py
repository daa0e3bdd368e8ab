"""A path -> an opened PIL image whose pixels have not been read yet."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from PIL import Image

from samfast.errors import ImageError


@contextmanager
def open_picture(path: str, name: str) -> Iterator[Image.Image]:
    """The image in that file, its header read; the file is closed at the end.

    Raises ImageError, naming `name`, if the file is missing, unreadable, not a regular file or not
    an image, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _open_file(path, name) as file:
        try:
            picture = _identify(file, path, name)
            width, height = picture.size
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and width * height > limit:
                many = f"its {width} x {height} pixels are more than Pillow's limit of {limit}"
                raise ImageError(_bomb(name, many))
        except Image.DecompressionBombError as error:  # a few plugins check by themselves
            raise ImageError(_bomb(name, "it is so large")) from error
        yield picture


def one_line(error: BaseException) -> str:
    """A library's message without line breaks, to quote inside an error of ours."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


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
    caller registered with Pillow are tried too.
    """
    prefix = file.read(16)
    tried: set[str] = set()
    damaged = missing = ""
    for load_plugins in (Image.preinit, Image.init):  # the few common formats first, as Pillow does
        load_plugins()
        for kind in [kind for kind in Image.ID if kind not in tried]:
            tried.add(kind)
            factory, accept = Image.OPEN[kind]
            matches = False
            try:
                accepted = accept(prefix) if accept is not None else True
                if isinstance(accepted, str):  # the plugin lacks a library; this is its message
                    missing = f" ({accepted})"
                elif accepted:
                    matches = accept is not None
                    file.seek(0)
                    return factory(file, path)
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                if matches:  # otherwise it only means that the file is of another format
                    damaged = damaged or _damaged(kind, error)
            except Image.DecompressionBombError:
                raise
            except Exception as error:
                raise ImageError(f"{name}: {_damaged(kind, error)}") from error
    if damaged:
        raise ImageError(f"{name}: {damaged}")
    raise ImageError(
        f"{name}: not an image, or of a format that Pillow cannot read{missing}; convert it to PNG "
        "or JPEG"
    )


def _damaged(kind: str, error: Exception) -> str:
    return f"damaged {kind} file ({one_line(error)}); copy or export it again"


def _bomb(name: str, reason: str) -> str:
    return (
        f"{name}: may be a decompression bomb, {reason}; if you trust it, scale it down, "
        "cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS"
    )
