"""Processes that speak HTTP, beside the one that has the device: started, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from samfast.errors import InputError
from samfast.serve.guard import FORM_BYTES
from samfast.serve.http_processes.click_frames import Setup, frame
from samfast.serve.http_processes.click_listener import ClickListener
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings

_LOG = logging.getLogger("samfast.serve")

START = """
import sys
channel, listening, *sys.path = sys.argv[1:]
from samfast.serve.http_processes.http_process import run
run(int(channel), int(listening))
"""
"""What a process runs: with the paths of this one, where it may have been started from a folder
that the other would not look into, or would and must not.
"""

MOST_PROCESSES = 8
CORES_A_PROCESS = 2
"""Of a GPU's machine, unless told otherwise. The others decode images and feed the GPU."""

SHORT_SECONDS = 10.0
SHORT_LIVES = 3
"""When so many processes in a row have ended within so many seconds, the server ends too."""

END_SECONDS = 5.0
"""How long a process may take to end when its requests are answered."""


def process_count(asked: int | None, device: str) -> int:
    """How many HTTP processes there are. None: on a GPU under Linux one for every two cores; else
    none, since on a CPU they would take time from the model.

    InputError if they are asked for under another system, which cannot share a port among them.
    """
    linux = sys.platform == "linux"
    if asked and not linux:
        raise InputError("HTTP processes need Linux; leave http_processes at 0")
    if asked is not None:
        return asked
    if device != "cuda" or not linux:
        return 0
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)) // CORES_A_PROCESS)


class ProcessPool:
    """The HTTP processes of a server.

    listening  the socket of each, all at one address
    address    path of the socket at which this process answers HTTP
    public     paths that need no token
    log_level  of their logs
    on_failed  called when they cannot be kept running
    """

    def __init__(
        self,
        service: SegmentationService,
        listening: Sequence[socket.socket],
        address: str,
        public: Iterable[str],
        log_level: int,
        on_failed: Callable[[], None],
    ) -> None:
        self._service, self._listening, self._on_failed = service, listening, on_failed
        settings = share_of(service.settings, len(listening))
        self._setup = Setup(address, tuple(public), log_level, settings)
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._ending = False

    @property
    def pids(self) -> list[int]:
        """The process ids of those that run."""
        return [each.pid for each in self._processes.values()]

    def start(self) -> None:
        """Start them. Clients that connect before they run wait."""
        for place in range(len(self._listening)):
            self._watches.append(asyncio.ensure_future(self._keep_running(place)))

    async def stop(self) -> None:
        """End them; returns when they have answered what they had begun."""
        self._ending = True
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for sock in self._listening:
            sock.close()
        if not self._watches:
            return
        seconds = self._service.settings.drain_seconds + END_SECONDS
        _, late = await asyncio.wait(self._watches, timeout=seconds)
        if late:
            _LOG.warning("%d HTTP processes did not end within %g s", len(late), seconds)
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.wait(self._watches)

    async def _keep_running(self, place: int) -> None:
        short_lives = 0
        while True:
            start = time.monotonic()
            code = await self._run(place)
            if self._ending:
                return
            lasted = time.monotonic() - start
            short_lives = short_lives + 1 if lasted < SHORT_SECONDS else 0
            if short_lives == SHORT_LIVES:
                _LOG.error("HTTP processes cannot be kept running: exit code %d", code)
                self._on_failed()
                return
            _LOG.error("an HTTP process has ended with exit code %d; another one is started", code)

    async def _run(self, place: int) -> int:
        """Run a process until it ends; its exit code."""
        here, there = socket.socketpair()
        listening = self._listening[place]
        with there:
            sockets = there.fileno(), listening.fileno()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", START),
                *map(str, sockets),
                *sys.path,
                pass_fds=sockets,
                stdin=asyncio.subprocess.DEVNULL,
                # A terminal's Ctrl-C goes to all of its group. This process ends the others itself,
                # when they have answered.
                start_new_session=True,
            )
        self._processes[place] = process
        try:
            loop = asyncio.get_running_loop()
            channel, _ = await loop.create_unix_connection(
                lambda: ClickListener(self._service), sock=here
            )
            channel.write(frame(self._setup.to_json()))
            if self._ending:
                process.terminate()
            code = await process.wait()
            channel.close()
            return code
        finally:
            del self._processes[place]


def share_of(settings: Settings, count: int) -> Settings:
    """The limits of one of so many processes."""
    upload = settings.max_image_bytes + FORM_BYTES
    return replace(
        settings,
        max_requests=-(-settings.max_requests // count),
        body_bytes=min(settings.body_bytes, max(settings.body_bytes // count, upload)),
    )
