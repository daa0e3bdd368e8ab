"""Requests that an HTTP process hands on to the one that has the device, as HTTP over a socket of
the file system: `HandOn` there, `HandedOn` here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpcore
from starlette.types import ASGIApp, Receive, Scope, Send

from samfast.serve.problems import bad_request, device_lost

CLIENT_HEADER = b"x-samfast-client"
"""Names the client to the other process, which trusts it: nobody else reaches that socket."""

OF_ONE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"expect"}
)
"""Headers that are about a connection and not about the request on it (RFC 9110, 7.6.1)."""

IDLE_SECONDS = 60.0
"""A connection between the processes is kept so long. The other process closes none before that."""


class _ClientLeftError(Exception):
    """Raised where the body of a request is read whose client has left."""


class HandOn:
    """ASGI application that has another process answer, and passes its answer back.

    address  path of the socket at which that process answers HTTP
    """

    def __init__(self, address: str) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            uds=address,
            max_connections=None,
            max_keepalive_connections=64,
            keepalive_expiry=IDLE_SECONDS,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["samfast.handed_on"] = True
        sent = asyncio.Event()
        request = _request_of(scope, _body(receive, sent))
        answering = asyncio.ensure_future(self._answer(request, send))
        watching = asyncio.ensure_future(_left(receive, sent))
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, watching):
                task.cancel()
            results = await asyncio.gather(answering, watching, return_exceptions=True)
        error = results[0]
        if error is None or isinstance(error, asyncio.CancelledError | _ClientLeftError):
            return
        if isinstance(error, httpcore.LocalProtocolError):
            raise bad_request(f"the request cannot be read: {error}") from error
        if isinstance(error, httpcore.NetworkError | httpcore.RemoteProtocolError):
            raise device_lost() from error
        raise error

    async def _answer(self, request: httpcore.Request, send: Send) -> None:
        response = await self._pool.handle_async_request(request)
        try:
            headers = [
                (name.lower(), value)
                for name, value in response.headers
                # A connection that must close, as its body was not read, closes for the client too.
                if name.lower() not in (b"transfer-encoding", b"keep-alive")
            ]
            status = response.status
            await send({"type": "http.response.start", "status": status, "headers": headers})
            async for part in response.aiter_stream():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


def _request_of(scope: Scope, body: AsyncIterator[bytes]) -> httpcore.Request:
    """The request as it came, with its client's name."""
    names = {name for name, _ in scope["headers"]}
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    client = scope.get("client")
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name not in OF_ONE_CONNECTION and name != CLIENT_HEADER
    ]
    if b"host" not in names:  # of HTTP/1.0, which this is not any more
        headers.append((b"host", b""))
    if client is not None:
        headers.append((CLIENT_HEADER, f"{client[0]} {client[1]}".encode()))
    return httpcore.Request(
        scope["method"].encode(),
        httpcore.URL(scheme=b"http", host=b"samfast", port=None, target=target),
        headers=headers,
        content=body if names & {b"content-length", b"transfer-encoding"} else _no_body(body),
    )


async def _body(receive: Receive, sent: asyncio.Event) -> AsyncIterator[bytes]:
    """The body of a request as it arrives. `sent` is set at its end."""
    there_is_more = True
    while there_is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeftError
        there_is_more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]
    sent.set()


async def _no_body(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Nothing, when the end of an empty body has arrived."""
    async for _ in body:
        pass
    return
    yield b""


async def _left(receive: Receive, sent: asyncio.Event) -> None:
    """Return when the client has left. It is asked once all of the body is handed on."""
    await sent.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


class HandedOn:
    """ASGI middleware that gives requests of HTTP processes their client back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            names = [value for name, value in scope["headers"] if name == CLIENT_HEADER]
            host, _, port = names[0].decode().rpartition(" ") if names else ("", "", "")
            headers = [each for each in scope["headers"] if each[0] != CLIENT_HEADER]
            client = (host, int(port)) if port else None
            scope = {**scope, "headers": headers, "client": client}
        await self._app(scope, receive, send)
