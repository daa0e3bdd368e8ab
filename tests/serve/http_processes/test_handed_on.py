"""A request that is handed on arrives as it came, and its answer comes back as it was given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from samfast.serve.http_processes.handed_on import CLIENT_HEADER, HandedOn, HandOn
from samfast.serve.problems import ProblemError

CLIENT = ("192.0.2.7", 4711)


class Echo:
    """Answers with the request as it arrived, and notices when its client leaves."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body, message = b"", await receive()
        while message["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
            message = await receive()
        start = {"type": "http.response.start", "status": 207, "headers": [(b"x-a", b"1")] * 2}
        if scope["path"] == "/slow":
            await send(start)
            await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            return
        seen = {
            "method": scope["method"],
            "target": (scope["raw_path"] + b"?" + scope["query_string"]).decode("latin-1"),
            "headers": [[a.decode("latin-1"), b.decode("latin-1")] for a, b in scope["headers"]],
            "client": scope["client"],
            "body": body.decode("latin-1"),
        }
        await send(start)
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


@asynccontextmanager
async def handing_on(folder: Any, app: ASGIApp) -> AsyncIterator[HandOn]:
    """An application at a socket of the file system, and what hands requests on to it."""
    address = str(folder / "http")
    config = uvicorn.Config(HandedOn(app), uds=address, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    hand_on = HandOn(address)
    try:
        yield hand_on
    finally:
        await hand_on.close()
        server.should_exit = True
        await running


def run(folder: Any, work: Callable[[HandOn, Echo], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        echo = Echo()
        async with handing_on(folder, echo) as hand_on:
            await asyncio.wait_for(work(hand_on, echo), 30)

    asyncio.run(all_of_it())


async def asked(hand_on: HandOn, request: httpx.Request) -> httpx.Response:
    transport = httpx.ASGITransport(hand_on, client=CLIENT)
    return await transport.handle_async_request(request)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("target", ["/a%2Fb//c/../d", "/?x=%00&y=%C3%A9&y=+2", "/v1/images/?"])
def test_target_headers_and_body_arrive_to_the_letter(tmp_path, method, target):
    async def work(hand_on: HandOn, echo: Echo) -> None:
        body = bytes(range(256)) * 1000 if method == "POST" else b""
        request = httpx.Request(
            method,
            f"http://name:80{target}",
            headers=[("x-two", "1"), ("x-two", "2"), (CLIENT_HEADER.decode(), "10.0.0.1 1")],
            content=body or None,
        )
        request.url = httpx.URL(f"http://name:80{target}")
        response = await asked(hand_on, request)
        seen = json.loads(await response.aread())
        assert response.status_code == 207
        assert response.headers.get_list("x-a") == ["1", "1"]
        assert seen["method"] == method
        assert seen["target"].rstrip("?") == request.url.raw_path.decode().rstrip("?")
        assert seen["body"] == body.decode("latin-1")
        # The client's own words about who it is are not believed, and not passed on.
        assert seen["client"] == list(CLIENT)
        assert CLIENT_HEADER.decode() not in dict(seen["headers"])
        assert [value for name, value in seen["headers"] if name == "x-two"] == ["1", "2"]
        assert dict(seen["headers"])["host"] == request.headers["host"]

    run(tmp_path, work)


def test_a_body_without_a_length_arrives_whole(tmp_path):
    async def parts() -> AsyncIterator[bytes]:
        for number in range(50):
            yield bytes([number]) * 3000

    async def work(hand_on: HandOn, echo: Echo) -> None:
        response = await asked(hand_on, httpx.Request("POST", "http://a/", content=parts()))
        seen = json.loads(await response.aread())
        assert seen["body"].encode("latin-1") == b"".join([part async for part in parts()])

    run(tmp_path, work)


class Caller:
    """Both sides of a client's connection: it sends a request, and may leave."""

    def __init__(self, path: str, *, complete: bool = True) -> None:
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "client": CLIENT,
            "headers": [(b"content-length", b"4")],  # and no Host, as of HTTP/1.0
        }
        body = b"1234"[: 4 if complete else 2]
        self._first = {"type": "http.request", "body": body, "more_body": not complete}
        self._asked = False
        self.leave, self.answered = asyncio.Event(), asyncio.Event()
        self.messages: list[Any] = []

    async def receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return self._first
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        if message.get("body"):
            self.answered.set()


def test_answers_come_in_parts_and_the_other_side_sees_that_the_client_has_left(tmp_path):
    async def work(hand_on: HandOn, echo: Echo) -> None:
        caller = Caller("/slow")
        handing = asyncio.ensure_future(hand_on(caller.scope, caller.receive, caller.send))
        await caller.answered.wait()
        assert caller.messages[1]["body"] == b"first\n"
        assert not echo.left.is_set()
        caller.leave.set()
        await handing
        await echo.left.wait()

    run(tmp_path, work)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_left(tmp_path):
    async def work(hand_on: HandOn, echo: Echo) -> None:
        caller = Caller("/", complete=False)
        handing = asyncio.ensure_future(hand_on(caller.scope, caller.receive, caller.send))
        await asyncio.sleep(0.05)
        caller.leave.set()
        await handing
        assert caller.messages == []

    run(tmp_path, work)


def test_without_the_other_process_the_answer_is_503(tmp_path):
    async def work() -> None:
        hand_on, caller = HandOn(str(tmp_path / "nobody")), Caller("/")
        with pytest.raises(ProblemError, match="has ended") as caught:
            await hand_on(caller.scope, caller.receive, caller.send)
        assert caught.value.status == 503
        await hand_on.close()

    asyncio.run(work())
