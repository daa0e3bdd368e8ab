"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import os

from samfast.errors import CheckpointError, CheckpointNotFoundError


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 as 64 hex digits, in constant memory. Raises CheckpointError if it is
    unreadable.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{os.fspath(path)}: no such file; check the path") from error
    except OSError as error:
        raise CheckpointError(
            f"{os.fspath(path)}: cannot be read ({error.strerror}); check the file"
        ) from error
