"""Downloading a file over HTTP once: resumed, verified, and put in place only when complete."""

from __future__ import annotations

import errno
import http.client
import logging
import os
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from samfast.checkpoints.verified_files import file_sha256, remember
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
    """Fetch `url` to `target`, which appears only once its size and SHA-256 are right.

    Received bytes are kept in `<target>.part`. After a broken connection, a crash or Ctrl-C the
    download continues from there if the server supports ranges. Of several processes, one downloads
    and the others wait.

    size      of the published file, in bytes
    attempts  connections in a row without new bytes before giving up
    pause     seconds before the second attempt, doubled before each further one
    timeout   seconds without an answer after which a connection counts as broken
    progress  show a bar on stderr

    Raises DownloadError, which says where to put the file by hand.
    """
    from tqdm import tqdm

    by_hand = (
        f"without a network, download {url} elsewhere and put the file at {target}, or pass its "
        "path as checkpoint="
    )
    part = target.with_name(target.name + ".part")
    bar_options = {"unit": "B", "unit_scale": True, "unit_divisor": 1000}
    bar_options["disable"] = not progress or sys.stderr is None  # closed by the caller
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if target.exists():  # another process has downloaded it
                return
            _LOG.info("downloading %s (%d bytes) to %s", url, size, target)
            with tqdm(total=size, desc=target.name, **bar_options) as bar:
                _fetch(url, part, size, bar, attempts, pause, timeout)
            digest = file_sha256(part)
            if digest != sha256:
                part.unlink()
                raise _FailedError(
                    f"what arrived has SHA-256 {digest}, not {sha256}, and was deleted"
                )
            os.replace(part, target)
            remember(target, sha256)
    except _FailedError as failure:
        raise DownloadError(f"cannot download {url}: {failure}; {by_hand}") from failure.__cause__
    except CheckpointError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        needs = f" ({size} bytes are needed)" if error.errno == errno.ENOSPC else ""
        raise DownloadError(
            f"cannot write {error.filename or target}: {reason}{needs}; make room or set "
            f"SAMFAST_CACHE to another directory, or {by_hand}"
        ) from error


class _FailedError(Exception):
    """The download cannot succeed by trying again."""


class _BrokenError(Exception):
    """The connection failed; another attempt may work."""


class _UnreachableError(_BrokenError):
    """There was no connection: no network, or no server at the address."""


def _fetch(
    url: str, part: Path, size: int, bar: Any, attempts: int, pause: float, timeout: float
) -> None:
    """Complete `part` to `size` bytes, in as many connections as necessary."""
    fruitless, any_arrived, furthest = 0, False, 0
    while True:
        have = _size(part)
        if have == size:
            bar.update(size - bar.n)
            return
        if have > size:
            part.unlink()
            have = 0
        try:
            _attempt(url, part, have, size, bar, timeout)
        except _BrokenError as broken:
            now = _size(part)
            any_arrived = any_arrived or now > have
            # Only bytes beyond all earlier attempts count as progress. Otherwise a server that
            # starts over, or that serves a shorter file, would keep this loop busy for ever.
            fruitless = 0 if now > max(have, furthest) else fruitless + 1
            furthest = max(now, have, furthest)
            # Without a network, fail at once. A network that was lost midway may come back.
            offline = isinstance(broken, _UnreachableError) and not any_arrived
            if fruitless >= attempts or offline:
                kept = f"; {now} of {size} bytes are kept in {part}" if now else ""
                raise _FailedError(f"{broken}{kept}") from broken
            time.sleep(pause * 2**fruitless)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _attempt(url: str, part: Path, have: int, size: int, bar: Any, timeout: float) -> None:
    """Append to `part` over one connection."""
    headers = {"User-Agent": "samfast", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            start = _start(response, have, size)
            bar.update(start - bar.n)
            with part.open("r+b" if start else "wb") as file:
                file.seek(start)
                _copy(response, file, size - start, bar)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            part.unlink()  # the server's file is shorter than the kept part: it was another file
            raise _BrokenError("the server refused to resume") from error
        temporary = error.code in (408, 425, 429) or error.code >= 500
        raise (_BrokenError if temporary else _FailedError)(
            f"the server answered {error.code} {error.reason}"
        ) from error
    except urllib.error.URLError as error:
        unreachable = isinstance(error.reason, (socket.gaierror, ConnectionRefusedError))
        raise (_UnreachableError if unreachable else _BrokenError)(
            f"no connection ({error.reason})"
        ) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _BrokenError(f"the connection broke ({error or type(error).__name__})") from error


def _start(response: Any, have: int, size: int) -> int:
    """The offset of the response's first byte; _FailedError if its file has another size."""
    start, total = 0, response.headers.get("Content-Length")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise _FailedError("the server answered with another part of the file than requested")
        start, total = have, match[2]
    if total not in (None, "*", str(size)):
        raise _FailedError(
            f"the server offers {total} bytes, not {size}: it is not the published file (a proxy's "
            "page, perhaps)"
        )
    return start


def _copy(response: Any, file: BinaryIO, remaining: int, bar: Any) -> None:
    while remaining:
        try:
            chunk = response.read(min(_CHUNK, remaining))
        except (http.client.HTTPException, OSError) as error:
            raise _BrokenError(f"the connection broke ({error or type(error).__name__})") from error
        if not chunk:
            raise _BrokenError("the connection broke before the end of the file")
        file.write(chunk)
        remaining -= len(chunk)
        bar.update(len(chunk))


def _locked(target: Path) -> AbstractContextManager[Any]:
    """Hold the lock of a target, waiting for other processes. It is freed if the process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process downloads %s; waiting for it", target)
        return lock.acquire()
