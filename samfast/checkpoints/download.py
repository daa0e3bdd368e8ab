"""A file over HTTP, once: resumed, checked, and put in place whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from samfast.checkpoints.hashes import file_sha256
from samfast.checkpoints.verified_files import remember
from samfast.errors import CheckpointError, DownloadError

_CHUNK = 1 << 20
_LOG = logging.getLogger(__name__)


def download(
    url: str,
    target: Path,
    size: int,
    sha256: str,
    *,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 30.0,
    progress: bool = True,
) -> None:
    """Fetch `url` to `target`, which appears only when its size and SHA-256 are right.

    Bytes are kept in `<target>.part`; what a broken connection, a crash or Ctrl-C left there is
    asked for no second time, if the server knows ranges. Of several processes one downloads, the
    others wait for it.

    size      in bytes; more or fewer are an error
    attempts  how many times in a row a connection may bring nothing new before this gives up
    pause     seconds before the first new attempt, twice as many before each one after
    timeout   seconds without any answer after which a connection counts as broken
    progress  whether to show a bar on stderr

    Raises DownloadError, which says where to put the file by hand.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if target.exists():  # another process was faster
                return
            with _bar(target.name, size, progress) as bar:
                _fetch(url, part, size, bar, attempts, pause, timeout)
            found = file_sha256(part)
            if found != sha256:
                part.unlink()
                raise _FailedError(
                    f"what arrived has SHA-256 {found}, not {sha256}, and was deleted"
                )
            os.replace(part, target)
            remember(target, sha256)
    except _FailedError as failure:
        raise DownloadError(
            f"cannot download {url}: {failure}; {_by_hand(url, target)}"
        ) from failure.__cause__
    except CheckpointError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        needs = f" ({size} bytes are needed)" if error.errno == errno.ENOSPC else ""
        raise DownloadError(
            f"cannot write {error.filename or target}: {reason}{needs}; make room or set "
            "SAMFAST_CACHE to"
            f" another directory, or {_by_hand(url, target)}"
        ) from error


class _FailedError(Exception):
    """The download cannot succeed by trying again."""


class _BrokenError(Exception):
    """The connection failed; another attempt may work."""


class _UnreachableError(_BrokenError):
    """There was no connection at all: no network, or nobody at that address."""


def _fetch(
    url: str, part: Path, size: int, bar: Any, attempts: int, pause: float, timeout: float
) -> None:
    """Bring `part` to `size` bytes, in as many connections as it takes."""
    idle, arrived, furthest = 0, False, 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        if have == size:
            bar.update(size - bar.n)
            return
        if have > size:
            part.unlink()
            have = 0
        try:
            _attempt(url, part, have, size, bar, timeout)
        except _BrokenError as broken:
            now = part.stat().st_size if part.exists() else 0
            arrived = arrived or now > have
            # Only what was never reached before is progress: a server that starts over, or serves
            # another file's length, would otherwise keep this busy for ever.
            idle = 0 if now > max(have, furthest) else idle + 1
            furthest = max(now, have, furthest)
            # Who is offline should hear it at once; who has lost the network midway may get it
            # back.
            if idle >= attempts or (isinstance(broken, _UnreachableError) and not arrived):
                kept = f"; {now} of {size} bytes are kept in {part}" if now else ""
                raise _FailedError(f"{broken}{kept}") from broken
            time.sleep(pause * 2**idle)


def _attempt(url: str, part: Path, have: int, size: int, bar: Any, timeout: float) -> None:
    headers = {"User-Agent": "samfast", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        ) as response:
            start = _start(response, have, size)
            bar.update(start - bar.n)
            with part.open("r+b" if start else "wb") as file:
                file.seek(start)
                _copy(response, file, size - start, bar)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            part.unlink()  # the server has fewer bytes than we kept: they were of another file
            raise _BrokenError("the server refused to resume") from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _BrokenError(f"the server answered {error.code} {error.reason}") from error
        raise _FailedError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        gone = isinstance(error.reason, (socket.gaierror, ConnectionRefusedError))
        raise (_UnreachableError if gone else _BrokenError)(
            f"no connection ({error.reason})"
        ) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _BrokenError(f"the connection broke ({error or type(error).__name__})") from error


def _start(response: Any, have: int, size: int) -> int:
    """The first byte that this answer holds. Raises _FailedError if it is of a file of another
    size.
    """
    start, total = 0, response.headers.get("Content-Length")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise _FailedError(
                "the server answered with another part of the file than was asked for"
            )
        start, total = have, match[2]
    if total is not None and total != "*" and total != str(size):
        raise _FailedError(
            f"the server offers {total} bytes, not {size}: it is not the published file (a proxy's "
            "page,"
            " perhaps)"
        )
    return start


def _copy(response: Any, file: BinaryIO, wanted: int, bar: Any) -> None:
    while wanted:
        try:
            chunk = response.read(min(_CHUNK, wanted))
        except (http.client.HTTPException, OSError) as error:
            raise _BrokenError(f"the connection broke ({error or type(error).__name__})") from error
        if not chunk:
            raise _BrokenError("the connection broke before the end of the file")
        file.write(chunk)
        wanted -= len(chunk)
        bar.update(len(chunk))


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of a target; wait for whoever has it. The operating system frees a dead
    process's.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process downloads %s; waiting for it", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _bar(name: str, size: int, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(
        total=size, desc=name, unit="B", unit_scale=True, unit_divisor=1000, disable=not progress
    ) as bar:
        yield bar


def _by_hand(url: str, target: Path) -> str:
    return (
        f"without a network, download {url} elsewhere and put the file at {target}, or pass its "
        "path as"
        " checkpoint="
    )
