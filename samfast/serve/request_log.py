"""One line of JSON on stderr for each request, and its place in the metrics."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samfast.serve.metrics import Metrics

_LOG = logging.getLogger("samfast.serve.requests")

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
"""Attributes of every log record; what a caller adds with `extra` has other names."""


class RequestLog:
    """ASGI middleware that logs and counts what was answered. It reads no body."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 0, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        self._metrics.open_requests.inc()
        try:
            await self._app(scope, receive, counted)
        finally:
            self._metrics.open_requests.dec()
            seconds = time.perf_counter() - start
            # The route, not the path: paths of clients would make any number of series.
            route = getattr(scope.get("route"), "path", None) or scope.get("samfast.route")
            self._metrics.answered(route or "other", status, seconds)
            if _LOG.isEnabledFor(logging.INFO):
                client = scope.get("client")
                line = {
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(seconds, 4),
                    "bytes": sent,
                    "client": client[0] if client else None,
                }
                _LOG.info("request", extra=line)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time, level, event, and what `extra` holds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}"
            f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in _OWN})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@contextmanager
def logs_on_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Within it, the logs of samfast and uvicorn go to stderr as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in ("samfast", "uvicorn")]
    before = [(list(each.handlers), each.level, each.propagate) for each in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (handlers, old_level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.setLevel(old_level)
            logger.propagate = propagate
