"""To which of several replicas an image belongs, and which image a request is about."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

_IMAGE_PATH = re.compile(r"/v1/images/([0-9a-f]{64})(?:/|$)")


def owners(image_id: str, replicas: Iterable[str]) -> list[str]:
    """The replicas by their claim on an image, the owner first.

    Rendezvous hashing (Thaler and Ravishankar, 1998): whoever knows the same replicas finds the
    same owner, without asking anybody. When a replica comes or goes, only the images that it gets
    or had belong to another one.

    >>> owners("9f86d081...", ["a1", "b2"])
    ['b2', 'a1']
    """

    def claim(replica: str) -> bytes:
        return hashlib.blake2b(f"{image_id}/{replica}".encode(), digest_size=8).digest()

    return sorted(replicas, key=claim, reverse=True)


def image_in_path(path: str) -> str | None:
    """The image's id in a path of the API, or None."""
    match = _IMAGE_PATH.match(path)
    return None if match is None else match[1]
