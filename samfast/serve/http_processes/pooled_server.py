"""The server of the process that has the device, when others speak HTTP to the clients."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from samfast.serve.http_processes.handed_on import IDLE_SECONDS, HandedOn
from samfast.serve.http_processes.process_pool import ProcessPool
from samfast.serve.service import SegmentationService

_LONGEST_ADDRESS = 100
"""Linux takes 107 bytes of a socket's path."""


class PooledServer(uvicorn.Server):
    """A server whose clients connect to HTTP processes; it answers what these hand on.

    app        the application of the service
    public     paths that need no token
    log_level  of the HTTP processes
    """

    def __init__(
        self,
        app: ASGIApp,
        service: SegmentationService,
        public: Iterable[str],
        log_level: int,
    ) -> None:
        self.failed = False
        """Whether the server has ended because HTTP processes could not be kept running."""
        self._service = service
        self._public, self._log_level = tuple(public), log_level
        super().__init__(
            uvicorn.Config(
                HandedOn(app),
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=int(service.settings.drain_seconds),
                timeout_keep_alive=int(2 * IDLE_SECONDS),
                server_header=False,
                date_header=False,  # the HTTP process has one
            )
        )

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer until told to end, with an HTTP process for each socket of `shared_port`."""
        assert sockets is not None
        folder = _short_folder()
        self.config.uds = str(Path(folder) / "http")
        self.processes = ProcessPool(
            *(self._service, sockets, self.config.uds, self._public, self._log_level, self._fail)
        )
        try:
            await super().serve()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then the HTTP processes."""
        await super().startup(sockets)
        self.processes.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the HTTP processes, whose requests are answered meanwhile, then the application."""
        await self.processes.stop()
        await super().shutdown(sockets)

    def _fail(self) -> None:
        self.failed = self.should_exit = True


def _short_folder() -> str:
    """A new folder that only this user can open, with a path that is short enough."""
    folder = tempfile.mkdtemp(prefix="samfast-")
    if len(os.fsencode(folder)) > _LONGEST_ADDRESS - len("/http"):
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="samfast-", dir="/tmp")
    return folder


def shared_port(first: socket.socket, count: int) -> list[socket.socket]:
    """So many sockets that listen at the address of the first, which is closed.

    The system gives each connection to one of them. `first` was bound without sharing, which fails
    where anybody listens already: two servers must not share a port by mistake.
    """
    address, family = first.getsockname(), first.family
    first.close()
    sockets = []
    for _ in range(count):
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(1024)
        sockets.append(sock)
    return sockets
