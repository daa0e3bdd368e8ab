"""The end of the channel in an HTTP process: clicks go out, answers come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import count

from samfast.serve.api_models import PredictModel
from samfast.serve.http_processes.click_frames import (
    CLICK,
    DROP,
    REFUSED,
    Answer,
    Click,
    FrameReader,
    FrameWriter,
    answers_in,
)
from samfast.serve.problems import device_lost

COMPANY_SECONDS = 0.0004
"""A click that is sent while this process waits for answers to earlier clicks waits so long for
further clicks, and goes with them in one message. The process that has the device wakes up for each
message: that takes longer than its work for a click, and takes Python's lock from the thread that
decodes."""


class ClickClient(asyncio.Protocol):
    """Sends clicks to the process that has the device.

    on_lost  called when that process has ended
    """

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._writer, self._reader, self._numbers = FrameWriter(), FrameReader(), count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._writer.connect(transport)

    def data_received(self, data: bytes) -> None:
        for content in self._reader.feed(data):
            for answer in answers_in(content):
                future = self._waiting.get(answer.number)
                if future is not None and not future.done():
                    future.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._writer.connect(None)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(device_lost())
                future.exception()  # seen, also if the client has left
        self._on_lost()

    async def ask(self, image_id: str, client: str, body: PredictModel) -> Answer:
        """The answer to a click. The click is dropped if the caller is cancelled.

        ProblemError 503 when the other process has ended.
        """
        if not self._writer.connected:
            raise device_lost()
        number = next(self._numbers) & 0xFFFFFFFF
        objects = [[each.points, each.labels, each.box, each.mask] for each in body.objects]
        within = COMPANY_SECONDS if self._waiting else 0.0
        self._send(CLICK, *Click(number, image_id, client, body.multimask, objects), within=within)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            return await future
        except asyncio.CancelledError:
            self._send(DROP, number)
            raise
        finally:
            del self._waiting[number]

    def report(self, status: int, seconds: float) -> None:
        """Have a request counted that was refused with that status after so many seconds."""
        self._send(REFUSED, status, seconds)

    def _send(self, *message: object, within: float = 0.0) -> None:
        self._writer.write(json.dumps(message, separators=(",", ":")).encode(), within)
