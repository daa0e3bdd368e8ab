"""The bytes of images as they came, and the files below `--root` that callers may name."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path, PurePosixPath

from samfast.serve.messages import StoredImage
from samfast.serve.problems import ProblemError, bad_request, not_found, too_large


def content_id(data: bytes) -> str:
    """An image's id: the SHA-256 of its bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class ImageStore:
    """The latest images, within a number of bytes; of files below a root only their paths.

    Safe to use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._images: OrderedDict[str, tuple[StoredImage, bytes | Path]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, image: StoredImage, source: bytes | Path) -> None:
        """Keep an image, and drop the images that were not used for longest if it is too much."""
        with self._lock:
            self._drop(image.id)
            self._images[image.id] = image, source
            self._bytes += _size(source)
            while self._bytes > self._max_bytes and len(self._images) > 1:
                self._drop(next(iter(self._images)))

    def get(self, image_id: str) -> StoredImage | None:
        """What is known of an image, or None."""
        with self._lock:
            entry = self._images.get(image_id)
            if entry is not None:
                self._images.move_to_end(image_id)
            return entry and entry[0]

    def read(self, image_id: str) -> bytes:
        """An image's bytes, from disk if need be; ProblemError if they are gone or have changed."""
        with self._lock:
            entry = self._images.get(image_id)
        if entry is None:
            raise not_found(f"image {image_id} is not here; upload it (again)")
        source = entry[1]
        if isinstance(source, bytes):
            return source
        try:
            data = source.read_bytes()
        except OSError:
            data = b""
        if content_id(data) != image_id:
            with self._lock:
                self._drop(image_id)
            raise not_found(f"the file of image {image_id} has changed; name its path again")
        return data

    def remove(self, image_id: str) -> bool:
        """Forget an image; False if it is not known."""
        with self._lock:
            return self._drop(image_id)

    def _drop(self, image_id: str) -> bool:
        entry = self._images.pop(image_id, None)
        if entry is not None:
            self._bytes -= _size(entry[1])
        return entry is not None


def _size(source: bytes | Path) -> int:
    return len(source) if isinstance(source, bytes) else 0


def resolve_below(root: Path | None, relative: str) -> Path:
    """The regular file of that path below the root, symbolic links followed.

    Raises ProblemError: the server has no root, the path is absolute or leads out of the root, also
    by a symbolic link, or there is no such file. All but the first look alike to the caller, who is
    not told what lies outside.
    """
    if root is None:
        raise ProblemError(
            403, "no_root", "this server takes no paths; it was started without --root"
        )
    missing = not_found(f"there is no file {relative[:200]!r} below the root")
    if (
        not relative
        or "\0" in relative
        or "\\" in relative
        or PurePosixPath(relative).is_absolute()
    ):
        raise bad_request("path: give one relative to the server's root, with slashes")
    try:
        home = root.resolve(strict=True)
        path = (home / relative).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise missing from None
    if not path.is_relative_to(home) or not path.is_file():
        raise missing
    return path


def read_below(root: Path | None, relative: str, max_bytes: int) -> tuple[Path, bytes]:
    """The path and the bytes of that file below the root. Raises as `resolve_below`."""
    path = resolve_below(root, relative)
    try:
        # The path has no symbolic link left. One that is put there now is not followed.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError:
        raise not_found(f"the file {relative[:200]!r} cannot be read") from None
    if len(data) > max_bytes:
        raise too_large(f"{relative!r} has more than {max_bytes} bytes")
    return path, data
