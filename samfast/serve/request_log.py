"""One line of JSON on stderr for each request, and its place in the metrics."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from samfast.serve.json_log import CountedSend, log_request
from samfast.serve.metrics import Metrics


class RequestLog:
    """ASGI middleware that logs and counts what was answered. It reads no body."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, sent = time.perf_counter(), CountedSend(send)

        self._metrics.open_requests.inc()
        try:
            await self._app(scope, receive, sent)
        finally:
            self._metrics.open_requests.dec()
            seconds = time.perf_counter() - start
            # The route, not the path: paths of clients would make any number of series.
            route = getattr(scope.get("route"), "path", None) or scope.get("samfast.route")
            self._metrics.answered(route or "other", sent.status, seconds)
            log_request(scope, sent.status, seconds, sent.bytes)
