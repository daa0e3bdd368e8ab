"""The end of the channel in the process that has the device: clicks come, answers go back."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from samfast.serve.click_requests import ROUTE
from samfast.serve.device_queue import problem_of
from samfast.serve.http_processes.click_frames import (
    CLICK,
    DROP,
    REFUSED,
    Answer,
    Click,
    FrameReader,
    FrameWriter,
)
from samfast.serve.mask_formats import rle_json
from samfast.serve.messages import ObjectAnswer, ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService

_LOG = logging.getLogger("samfast.serve")


class ClickListener(asyncio.Protocol):
    """Answers the clicks of one HTTP process, which has checked their form and their token."""

    def __init__(self, service: SegmentationService) -> None:
        self._service = service
        self._writer, self._reader = FrameWriter(), FrameReader()
        self._open: dict[int, asyncio.Future[list[ObjectAnswer]]] = {}
        self._calls: dict[str, Callable[..., None]] = {
            CLICK: lambda *values: self._begin(Click(*values)),
            DROP: self._drop,
            REFUSED: lambda *values: service.metrics.answered("other", *values),
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._writer.connect(transport)

    def data_received(self, data: bytes) -> None:
        for content in self._reader.feed(data):
            kind, *values = json.loads(content.decode())  # of bytes it would guess the encoding
            self._calls[kind](*values)

    def connection_lost(self, error: Exception | None) -> None:
        self._writer.connect(None)
        for number in list(self._open):
            self._drop(number)

    def _begin(self, click: Click) -> None:
        metrics, start = self._service.metrics, time.perf_counter()
        metrics.open_requests.inc()
        try:
            future = self._service.begin_predict(
                click.image_id,
                [_prompt(each) for each in click.objects],
                multimask=click.multimask,
                client=click.client,
            )
        except Exception as error:
            self._finish(click.number, start, *_refused(error))
            return
        self._open[click.number] = future

        def done(future: asyncio.Future[list[ObjectAnswer]]) -> None:
            self._open.pop(click.number, None)
            if future.cancelled():
                metrics.open_requests.dec()
                metrics.answered(ROUTE, 499, time.perf_counter() - start)
                return
            try:
                answer = 200, 0, rle_json(future.result())
            except Exception as error:
                answer = _refused(error)
            self._finish(click.number, start, *answer)

        future.add_done_callback(done)

    def _drop(self, number: int) -> None:
        future = self._open.get(number)
        if future is not None:
            future.cancel()

    def _finish(
        self, number: int, start: float, status: int, retry_after: int, body: bytes
    ) -> None:
        self._service.metrics.open_requests.dec()
        self._service.metrics.answered(ROUTE, status, time.perf_counter() - start)
        self._writer.write(Answer(number, status, retry_after, body).to_bytes())


def _prompt(values: list[Any]) -> ObjectPrompt:
    points, labels, box, mask = values
    return ObjectPrompt(
        tuple(map(tuple, points)), tuple(labels), None if box is None else tuple(box), mask
    )


def _refused(error: Exception) -> tuple[int, int, bytes]:
    """Status, seconds for Retry-After or 0, and body of an error."""
    if not isinstance(error, ProblemError):
        _LOG.error("a click failed", exc_info=error)
        error = problem_of(error)
    retry_after = 0 if error.retry_after is None else max(1, round(error.retry_after))
    body = _text({"error": {"code": error.code, "message": str(error)}})
    return error.status, retry_after, body


def _text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
