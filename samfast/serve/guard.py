"""What every request passes first: host and origin, token, and the size and time of its body."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Collection, Mapping
from functools import lru_cache

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samfast.serve.problems import ProblemError, overloaded, too_large
from samfast.serve.settings import Settings, is_loopback
from samfast.serve.wires import token_of

FORM_BYTES = 65536
"""What the parts of a form and their headers may take beside the file."""


class Guard:
    """ASGI middleware that refuses requests before anything of them is used.

    - 403 for the host or origin of another site. A page that a browser shows can send requests to
      this machine, and by DNS can claim that its own name is this machine's
    - 401 without the token, compared in constant time, unless the path is public
    - 413 for a body that is larger than any that is taken, 408 for one that comes too slowly, 429
      while there are too many requests, or the bodies of all together take too much memory
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, public: Collection[str]) -> None:
        self._app, self._settings, self._public = app, settings, public
        self._open = self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started = False
        body = _Body(receive, self._settings, headers_of(scope))

        async def tracked(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        async def held() -> Message:
            before = body.held
            try:
                message = await body.receive()
            finally:
                self._held += body.held - before
            if self._held > self._settings.body_bytes:
                raise overloaded(1)
            return message

        self._open += 1
        try:
            if self._open > self._settings.max_requests:
                raise overloaded(1)
            check_site(self._settings, body.headers)
            if scope["path"] not in self._public:
                check_token(self._settings, scope)
            body.check_length()
            await self._app(scope, held, tracked)
        except ProblemError as error:
            if started:
                raise
            await refuse(error, send)
        finally:
            self._open -= 1
            self._held -= body.held


def check_site(settings: Settings, headers: Mapping[str, str]) -> None:
    """ProblemError 403 for a request that another site had a browser send.

    headers  of the request, by names in lower case
    """
    host = headers.get("host", "")
    if not settings.token and not _is_here(host):
        raise ProblemError(403, "wrong_host", "this server answers as localhost only")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise ProblemError(403, "wrong_origin", "pages of other sites may not use this server")


def check_token(settings: Settings, scope: Scope) -> None:
    """ProblemError 401 without the token, where there is one."""
    if not settings.token:
        return
    headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = token_of(settings.wires, headers, query) or ""
    if not hmac.compare_digest(given.strip().encode(), settings.token.encode()):
        raise ProblemError(401, "unauthorized", "send Authorization: Bearer TOKEN")


def headers_of(scope: Scope) -> dict[str, str]:
    """The first header of each name, as `Headers` gives it, which takes longer for four of them."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in reversed(scope["headers"])
    }


class _Body:
    """A request's body as it arrives, within the limits of bytes and of time.

    held  bytes that have arrived
    """

    def __init__(self, receive: Receive, settings: Settings, headers: Mapping[str, str]) -> None:
        self._receive, self._settings, self.headers = receive, settings, headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # A parsed JSON text takes many times its size, and is parsed on the event loop.
        is_json = not kind or kind.endswith("json")
        image_bytes = settings.max_image_bytes + FORM_BYTES
        self._max_bytes = settings.max_json_bytes if is_json else image_bytes
        self._deadline = asyncio.get_running_loop().time() + settings.upload_seconds
        self._whole = False
        self.held = 0

    def check_length(self) -> None:
        """ProblemError 413 if the body says that it is too large; it need not say."""
        length = self.headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or int(length[:20]) > self._max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next message; ProblemError 413 or 408."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            seconds = self._settings.upload_seconds
            raise ProblemError(
                408, "too_slow", f"the body did not arrive within {seconds:g} s"
            ) from None
        if message["type"] == "http.request":
            self.held += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self.held > self._max_bytes:
                raise self._too_large()
        return message

    def _too_large(self) -> ProblemError:
        return too_large(
            f"the body has more than {self._max_bytes} bytes; send large images to /v1/images"
        )


@lru_cache(maxsize=64)
def _is_here(host: str) -> bool:
    """Whether a Host header names this machine, with whatever port."""
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name)


async def refuse(error: ProblemError, send: Send) -> None:
    """Send an error as the answer; the connection is closed, since its body was not read."""
    body = json.dumps({"error": {"code": error.code, "message": str(error)}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    start = {"type": "http.response.start", "status": error.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
