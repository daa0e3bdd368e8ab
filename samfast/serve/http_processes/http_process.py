"""A process that speaks HTTP for the one that has the device. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from samfast.device.loaded_objects import keep_loaded_objects
from samfast.serve.click_requests import clicked_image, read_click, send_json
from samfast.serve.guard import Guard
from samfast.serve.http_answers import answer_within, client_in
from samfast.serve.http_processes.click_client import ClickClient
from samfast.serve.http_processes.click_frames import FrameReader, Setup
from samfast.serve.http_processes.handed_on import HandOn
from samfast.serve.json_log import CountedSend, log_request, logs_on_stderr
from samfast.serve.problems import device_lost
from samfast.serve.settings import Settings
from samfast.serve.timed_connections import timed


class HttpProcessApp:
    """ASGI application: clicks of the usual form over the channel, all else handed on."""

    def __init__(self, settings: Settings, clicks: ClickClient, hand_on: ASGIApp) -> None:
        self._settings, self._clicks, self._hand_on = settings, clicks, hand_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        image_id = clicked_image(scope)
        if image_id is None:
            await self._hand_on(scope, receive, send)
            return
        body, received_again = await read_click(receive)
        if body is None or body.format != "rle":
            await self._hand_on(scope, received_again, send)
            return
        scope["samfast.click"] = True
        work = self._clicks.ask(image_id, client_in(scope), body)
        answer = await answer_within(receive, self._settings.request_seconds, work)
        await send_json(answer.body, send, answer.status, answer.retry_after)


class RefusalLog:
    """ASGI middleware that logs what the other process does not: clicks, and what is refused here,
    which is reported to its metrics too.
    """

    def __init__(self, app: ASGIApp, clicks: ClickClient) -> None:
        self._app, self._clicks = app, clicks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, sent = time.perf_counter(), CountedSend(send)

        try:
            await self._app(scope, receive, sent)
        finally:
            if "samfast.handed_on" not in scope:
                seconds = time.perf_counter() - start
                log_request(scope, sent.status, seconds, sent.bytes)
                if "samfast.click" not in scope:
                    self._clicks.report(sent.status, seconds)


class HttpProcess:
    """The whole application of a process, which connects to the other one when it starts."""

    def __init__(self, setup: Setup, channel: socket.socket) -> None:
        self._channel = channel
        self._clicks = ClickClient(lambda: signal.raise_signal(signal.SIGTERM))
        self._hand_on = HandOn(setup.address)
        app = HttpProcessApp(setup.settings, self._clicks, self._hand_on)
        guarded = Guard(app, settings=setup.settings, public=frozenset(setup.public))
        self._app = RefusalLog(guarded, self._clicks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._clicks, sock=self._channel)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._hand_on.close()
        await send({"type": "lifespan.shutdown.complete"})


def run(channel_number: int, listening_number: int) -> None:
    """Speak HTTP until told to end, or until the other process has ended; what is begun is
    answered.

    Both are numbers of sockets that the process inherits: the channel for clicks, whose first frame
    is a `Setup`, and the socket at which clients connect.
    """
    channel = socket.socket(fileno=channel_number)
    listening = socket.socket(fileno=listening_number)
    setup = _read_setup(channel)
    config = uvicorn.Config(
        HttpProcess(setup, channel),
        lifespan="on",
        log_config=None,
        access_log=False,
        limit_concurrency=4 * setup.settings.max_requests,
        timeout_graceful_shutdown=int(setup.settings.drain_seconds),
        server_header=False,
    )
    server = uvicorn.Server(timed(config, setup.settings.upload_seconds))
    keep_loaded_objects()
    with logs_on_stderr(setup.log_level):
        # Of starting and ending, the other process tells.
        logging.getLogger("uvicorn").setLevel(max(setup.log_level, logging.WARNING))
        server.run([listening])


def _read_setup(channel: socket.socket) -> Setup:
    """The first frame; the process ends if the other one has ended already."""
    reader = FrameReader()
    while data := channel.recv(1 << 16):
        for content in reader.feed(data):
            return Setup.from_json(content)
    raise SystemExit(str(device_lost()))
