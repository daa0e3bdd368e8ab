"""One line of JSON on stderr for each request, and its place in the metrics."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samfast.serve.json_log import log_request
from samfast.serve.metrics import Metrics


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
            log_request(scope, status, seconds, sent)
