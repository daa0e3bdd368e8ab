"""The log as lines of JSON on stderr, one for each request."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import Message, Scope, Send

_LOG = logging.getLogger("samfast.serve.requests")

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
"""Attributes of every log record; what a caller adds with `extra` has other names."""


class CountedSend:
    """A `send` of ASGI that counts: the answer's status, 0 before it begins, and bytes of body."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = self.bytes = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.bytes += len(message.get("body", b""))
        await self._send(message)


def log_request(scope: Scope, status: int, seconds: float, sent: int) -> None:
    """Log a request that was answered with so many bytes."""
    if not _LOG.isEnabledFor(logging.INFO):
        return
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
