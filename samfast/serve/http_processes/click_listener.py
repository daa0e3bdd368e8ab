"""The end of the channel in the process that has the device: clicks come, answers go back."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from samfast.serve.click_requests import ROUTE
from samfast.serve.device_queue import problem_of
from samfast.serve.http_processes.click_frames import (
    CLICK,
    DROP,
    MASKS,
    REFUSED,
    Answer,
    Click,
    FrameReader,
    FrameWriter,
)
from samfast.serve.http_processes.clicked_masks import ClickedMasks
from samfast.serve.mask_formats import rle_json
from samfast.serve.messages import AnsweredBatch, AnsweredObjects, ObjectAnswer, ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService

_LOG = logging.getLogger("samfast.serve")


@dataclass(eq=False)
class _OpenClick:
    """A click that is not answered yet.

    start  when it came
    drop   gives it up; None while it begins
    """

    start: float
    drop: Callable[[], object] | None = None


class ClickListener(asyncio.Protocol):
    """Answers the clicks of one HTTP process, which has checked their form and their token."""

    def __init__(self, service: SegmentationService) -> None:
        self._service = service
        self._writer, self._reader = FrameWriter(), FrameReader()
        self._open: dict[int, _OpenClick] = {}  # by their numbers
        self._decoded: dict[AnsweredBatch, list[tuple[int, Sequence[int]]]] = {}
        self._calls: dict[str, Callable[..., None]] = {
            CLICK: lambda *values: self._begin(Click(*values)),
            DROP: self._drop,
            REFUSED: lambda *values: service.metrics.answered("other", *values),
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._writer.connect(transport)

    def data_received(self, data: bytes) -> None:
        # Decoded here: of bytes `json` would guess the encoding.
        messages = [json.loads(content.decode()) for content in self._reader.feed(data)]
        self._service.metrics.open_requests.inc(sum(kind == CLICK for kind, *_ in messages))
        for kind, *values in messages:
            self._calls[kind](*values)

    def connection_lost(self, error: Exception | None) -> None:
        self._writer.connect(None)
        for number in list(self._open):
            self._drop(number)

    def _begin(self, click: Click) -> None:
        number = click.number
        opened = self._open[number] = _OpenClick(time.perf_counter())
        objects = [_prompt(each) for each in click.objects]
        asked: Any = {"multimask": click.multimask, "client": click.client}

        def settle(result: AnsweredObjects | list[ObjectAnswer] | Exception) -> None:
            self._settle(number, result)

        def done(task: asyncio.Task[list[ObjectAnswer]]) -> None:
            if not task.cancelled():
                settle(cast("Exception | None", task.exception()) or task.result())

        try:
            opened.drop = self._service.begin_predict(click.image_id, objects, settle, **asked)
        except Exception as error:
            settle(error)
            return
        if opened.drop is None:
            work = self._service.predict(click.image_id, objects, **asked)
            task = asyncio.ensure_future(work)
            task.add_done_callback(done)
            opened.drop = task.cancel

    def _settle(
        self, number: int, result: AnsweredObjects | list[ObjectAnswer] | Exception
    ) -> None:
        """Send an answer; the masks of clicks that were decoded together in one frame."""
        if isinstance(result, AnsweredObjects):
            if not self._decoded:
                asyncio.get_running_loop().call_soon(self._send_decoded)
            self._decoded.setdefault(result.batch, []).append((number, result.rows))
            return
        if isinstance(result, Exception):
            answer = Answer(number, *_refused(result))
        else:
            answer = Answer(number, 200, 0, rle_json(result))
        self._count([number], answer.status)
        self._writer.write(answer.to_bytes())

    def _send_decoded(self) -> None:
        for batch, clicks in self._decoded.items():
            clicks = [each for each in clicks if each[0] in self._open]  # the client may have left
            if clicks:
                self._count([number for number, _ in clicks], 200)
                self._writer.write(_masks(batch, clicks).to_bytes(MASKS))
        self._decoded.clear()

    def _drop(self, number: int) -> None:
        opened = self._open.get(number)
        if opened is not None and opened.drop is not None:
            opened.drop()
            self._count([number], 499)

    def _count(self, numbers: Sequence[int], status: int) -> None:
        """Count clicks that are answered or dropped."""
        now, metrics = time.perf_counter(), self._service.metrics
        metrics.open_requests.dec(len(numbers))
        seconds = [now - self._open.pop(number).start for number in numbers]
        metrics.answered(ROUTE, status, *seconds)


def _masks(batch: AnsweredBatch, clicks: Sequence[tuple[int, Sequence[int]]]) -> ClickedMasks:
    """The masks of clicks, each with its number and its rows of a batch."""
    rows = [row for _, each in clicks for row in each]
    answers, each = batch.answers, batch.masks_each
    masks = (np.array(rows)[:, None] * each + np.arange(each)).ravel()
    return ClickedMasks(
        batch.name,
        each,
        [number for number, _ in clicks],
        [len(of_click) for _, of_click in clicks],
        rows,
        [pixels for row in rows for pixels in batch.sizes[row]],
        answers.ious[masks].tobytes(),
        answers.areas[masks].tobytes(),
        answers.boxes[masks].tobytes(),
        [answers.counts[mask] for mask in masks.tolist()],
    )


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
