"""What every request passes first: host and origin, token, and the size and time of its body."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Collection

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samfast.serve.problems import ProblemError
from samfast.serve.settings import Settings, is_loopback
from samfast.serve.wires import token_of

FORM_BYTES = 65536
"""What the parts of a form and their headers may take beside the file."""


class Guard:
    """ASGI middleware that refuses requests before anything of them is used.

    - 403 for the host or origin of another site. A page that a browser shows can send requests to
      this machine, and by DNS can claim that its own name is this machine's
    - 401 without the token, compared in constant time, unless the path is public
    - 413 for a body that is larger than any that is taken, 408 for one that comes too slowly
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, public: Collection[str]) -> None:
        self._app, self._settings, self._public = app, settings, public
        # Base64 in JSON takes four bytes for three.
        self._max_body = settings.max_image_bytes * 4 // 3 + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started = False

        async def tracked(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_site(headers)
            if scope["path"] not in self._public:
                self._check_token(headers, QueryParams(scope["query_string"]))
            await self._app(scope, self._limited(headers, receive), tracked)
        except ProblemError as error:
            if started:
                raise
            await refuse(error, send)

    def _check_site(self, headers: Headers) -> None:
        """ProblemError 403 for a request that another site had a browser send."""
        host = headers.get("host", "")
        if not self._settings.token and not is_loopback(_name(host)):
            raise ProblemError(403, "wrong_host", "this server answers as localhost only")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ProblemError(403, "wrong_origin", "pages of other sites may not use this server")

    def _check_token(self, headers: Headers, query: QueryParams) -> None:
        """ProblemError 401 without the token, where there is one."""
        if not self._settings.token:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = token_of(self._settings.wires, headers, query) or ""
        if not hmac.compare_digest(given.strip().encode(), self._settings.token.encode()):
            raise ProblemError(401, "unauthorized", "send Authorization: Bearer TOKEN")

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """`receive`, until the body is whole within the limits of bytes and of time."""
        too_many = ProblemError(413, "too_large", f"the body has more than {self._max_body} bytes")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body:
            raise too_many
        deadline = asyncio.get_running_loop().time() + self._settings.upload_seconds
        received, whole = 0, False

        async def limited() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ProblemError(
                    408,
                    "too_slow",
                    f"the body did not arrive within {self._settings.upload_seconds:g} s",
                ) from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if received > self._max_body:
                    raise too_many
            return message

        return limited


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


async def refuse(error: ProblemError, send: Send) -> None:
    """Send an error as the answer; the connection is closed, since its body was not read."""
    body = json.dumps({"error": {"code": error.code, "message": str(error)}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    start = {"type": "http.response.start", "status": error.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
