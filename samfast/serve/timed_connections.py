"""Connections of uvicorn that are closed if no request arrives on them."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn


def timed(config: uvicorn.Config, seconds: float) -> uvicorn.Config:
    """The configuration, under which a connection whose first request's headers are not whole after
    so many seconds is closed. uvicorn itself would hold it for ever.
    """
    config.load()
    base: Any = config.http_protocol_class

    class TimedProtocol(base):  # type: ignore[misc]
        _first: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._first = self.loop.call_later(seconds, self._close_without_request)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._first is not None:
                self._first.cancel()
            super().connection_lost(exc)

        def _close_without_request(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    config.http_protocol_class = TimedProtocol
    return config
