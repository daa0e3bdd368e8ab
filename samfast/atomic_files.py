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
from itertools import count
from pathlib import Path
from typing import IO

from samfast.errors import OutputError, SamfastError, shown

_BINARY = getattr(os, "O_BINARY", 0)  # Windows

_TEMPORARY = re.compile(r"\.samfast-(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{16}\.tmp")
"""Names of temporary files: the machine's digest and the process's number, which 0.2 left out."""

_NUMBERS = count(secrets.randbits(63))
"""Of temporary files: random for each process, as those of two containers may look the same."""

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
    with _written(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        yield file


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write the bytes to `path` as `atomic_open` does; OutputError if that fails."""
    # Not as a file object, which asks the system for twice as much as small files need.
    with _written(path) as descriptor:
        left = memoryview(data).cast("B")
        while left:
            left = left[os.write(descriptor, left) :]


@contextmanager
def _written(path: str | os.PathLike[str]) -> Iterator[int]:
    """The descriptor of a file to write, which becomes `path` as `atomic_open` says."""
    if not isinstance(path, str | os.PathLike):
        raise OutputError(f"{shown(path)} instead of a path to write to")
    path = os.fsdecode(path)
    try:
        # Also if the block changes the working directory. Not normalized: ".." behind a link.
        target = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
        if os.path.lexists(path):  # else, as for most files, there is no more to find out
            if _is_stream(path):
                yield from _open(path, os.O_WRONLY)
                return
            target = os.path.realpath(path)
            if os.path.isdir(target):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = os.path.dirname(target)
        _remove_stale(folder)
        # Not the target's name with a suffix, which could be too long.
        name = f"{_start_of_names(os.getpid())}{next(_NUMBERS):016x}.tmp"
        temporary = os.path.join(folder, name)
        try:
            yield from _open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except SamfastError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written: {_reason(Path(path), error)}") from error


def _open(path: str, flags: int) -> Iterator[int]:
    """A descriptor of the file, which is closed afterwards."""
    # 0o666 and the umask, as in open(); with tempfile's 0o600 colleagues could not read it.
    descriptor = os.open(path, flags | _BINARY, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@cache
def _machine() -> str:
    """A short digest of this machine's name: numbers of processes mean nothing on another one."""
    return hashlib.sha256(platform.node().encode(errors="surrogateescape")).hexdigest()[:8]


@cache
def _start_of_names(process: int) -> str:
    """What the names of a process's temporary files begin with."""
    return f".samfast-{_machine()}-{process}-"


@cache  # once for each folder: listing a large one takes longer than writing a file
def _remove_stale(folder: str) -> None:
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


def _is_stream(path: str) -> bool:
    """Whether `path` is a device, pipe or socket, which a rename would replace by a file."""
    try:
        mode = os.stat(path).st_mode
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
