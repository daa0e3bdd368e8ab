"""Files that are whole or absent: written under a temporary name, then renamed to the target."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from samfast.errors import OutputError, SamfastError, shown

_BINARY = getattr(os, "O_BINARY", 0)  # Windows

_TEMPORARY = re.compile(r"\.samfast-(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{16}\.tmp")
"""Names of temporary files: the machine's digest and the process's number, which 0.2 left out."""

STALE_SECONDS = 24 * 3600
"""Age from which a temporary file is stale whoever wrote it, counted from the last write."""

_LOG = logging.getLogger("samfast")


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write, which becomes `path` when the block ends without an exception.

    After an exception, Ctrl-C included, an older file of that name is unchanged and no part of the
    new one remains. A symbolic link is followed and stays a link; a device or pipe (/dev/stdout) is
    written to directly. The new file has the permissions that `open` would give it. Temporary files
    that killed processes left in its folder are removed.

    Raises OutputError, which names the path and the remedy, where the system refuses.

        with samfast.outputs.atomic_open("result.bin") as file:
            file.write(b"all or nothing")
    """
    if not isinstance(path, str | os.PathLike):
        raise OutputError(f"{shown(path)} instead of a path to write to")
    path = Path(os.fsdecode(path))
    try:
        target = path.absolute()  # also if the block changes the working directory
        if os.path.lexists(path):  # else, as for most files, there is no more to find out
            if _is_stream(path):
                with open(path, "wb") as stream:
                    yield stream
                return
            target = Path(os.path.realpath(path))
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _remove_stale(target.parent)
        # Not the target's name with a suffix, which could be too long.
        owner = f"{_machine()}-{os.getpid()}"
        temporary = target.parent / f".samfast-{owner}-{secrets.token_hex(8)}.tmp"
        try:
            # 0o666 and the umask, as in open(); with tempfile's 0o600 colleagues could not read it.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
            with open(descriptor, "wb") as file:
                yield file
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except SamfastError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written: {_reason(path, error)}") from error


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write the bytes to `path` as `atomic_open` does; OutputError if that fails."""
    with atomic_open(path) as file:
        file.write(data)


@cache
def _machine() -> str:
    """A short digest of this machine's name: numbers of processes mean nothing on another one."""
    return hashlib.sha256(platform.node().encode(errors="surrogateescape")).hexdigest()[:8]


@cache  # once for each folder: listing a large one takes longer than writing a file
def _remove_stale(folder: Path) -> None:
    """Remove the temporary files of processes that were killed, if that can be told."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError):  # another process has removed it, or may and we may not
                old = time.time() - entry.stat().st_mtime > STALE_SECONDS
                here = match[1] == _machine()
                if old or (here and not _alive(int(match[2]))):
                    os.unlink(entry.path)
                    _LOG.info("removed %s, which a killed process had left", entry.path)


def _alive(process: int) -> bool:
    """Whether a process of that number runs on this machine; True where that cannot be asked."""
    if os.name != "posix":  # os.kill ends processes there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user
    return True


def _is_stream(path: Path) -> bool:
    """Whether `path` is a device, pipe or socket, which a rename would replace by a file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _reason(path: Path, error: OSError | ValueError) -> str:
    number, folder = getattr(error, "errno", None), path.absolute().parent
    if number == errno.ENOENT:
        return f"there is no folder {folder}; create it"
    if number == errno.ENOTDIR:
        return f"{folder} is not a folder; choose another path"
    if number == errno.EISDIR:
        return "that is a folder; name a file in it"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{os.strerror(number)}; choose another folder, or allow writing to {folder}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{os.strerror(number)}; free some space or choose another disk"
    said = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return f"{said}; choose another path"
