"""What routes share: whose request it is, its answer as JSON, and every error in one form."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from samfast.serve.problems import ProblemError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""Gives the next message of a request, as ASGI says."""

UNWATCHED_SECONDS = 0.05
"""Whether a client has left is not asked before this. The task that waits for it takes as long as
all of the HTTP, and most clicks on a GPU are answered by then.
"""


def client_of(request: Request) -> str:
    """As `client_in`, of a request of FastAPI."""
    return client_in(request.scope)


def client_in(scope: Mapping[str, Any]) -> str:
    """Whose turn it is: a connection's address and port."""
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""


async def answer(request: Request, seconds: float, work: Awaitable[T]) -> T:
    """As `answer_within`, of a request of FastAPI."""
    return await answer_within(request.receive, seconds, work)


async def answer_within(receive: Receive, seconds: float, work: Awaitable[T]) -> T:
    """The result of the work; it is cancelled if it takes too long or the client leaves.

    Call it when the request's body has been received. ProblemError 504 after so many seconds, 499
    when the client has left, which nobody reads.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    watcher: asyncio.Task[None] | None = None
    left = False

    def watch() -> None:
        nonlocal watcher
        limit.reschedule(end)
        watcher = loop.create_task(_left(receive))
        watcher.add_done_callback(leave)

    def leave(done: asyncio.Task[None]) -> None:
        nonlocal left
        if not done.cancelled():
            left = True
            limit.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as limit:
            timer = loop.call_later(min(UNWATCHED_SECONDS, seconds), watch)
            try:
                return await work
            finally:
                timer.cancel()
                if watcher is not None:
                    watcher.remove_done_callback(leave)
                    watcher.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
    if left:
        raise ProblemError(499, "client_left", "the client has left")
    raise ProblemError(504, "too_slow", f"not answered within {seconds:g} s", retry_after=5)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(value: Any, status: int = 200) -> Response:
    """The value as JSON."""
    return Response(json.dumps(value, separators=(",", ":")), status, media_type="application/json")


def error_response(
    status: int,
    code: str,
    message: str,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """{"error": {"code", "message"}} with its status."""
    headers = dict(headers or {})
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, round(retry_after)))
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


async def problem_response(request: Request, error: Exception) -> Response:
    """For FastAPI: the answer to a ProblemError."""
    assert isinstance(error, ProblemError)
    return error_response(error.status, error.code, str(error), error.retry_after)


async def validation_response(request: Request, error: Exception) -> Response:
    """For FastAPI: the answer to a request that is not as its model says."""
    assert isinstance(error, RequestValidationError)
    return error_response(422, "bad_request", first_error(error.errors()))


async def http_response(request: Request, error: Exception) -> Response:
    """For FastAPI: the answer where there is no route, or none of that method."""
    assert isinstance(error, HTTPException)
    status, message, headers = error.status_code, str(error.detail), dict(error.headers or {})
    allowed = _methods(request) if status in (404, 405) else set()
    if allowed and request.method not in allowed:
        status, message = 405, f"this path takes {', '.join(sorted(allowed))}"
        headers["Allow"] = ", ".join(sorted(allowed))
    codes: dict[int, str] = {404: "not_found", 405: "method_not_allowed"}
    return error_response(status, codes.get(status, "bad_request"), message, headers=headers)


def _methods(request: Request) -> set[str]:
    """The methods of a path of the API. The router itself names those of one route, or of the page,
    which lies below all paths.
    """
    methods: set[str] = set()
    for template, operations in request.app.openapi()["paths"].items():
        pattern = re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, request.url.path):
            methods |= {name.upper() for name in operations}
    return methods


async def failure_response(request: Request, error: Exception) -> Response:
    """For FastAPI: the answer to a bug of ours, which is logged."""
    return error_response(500, "internal_error", "the server failed; its log says why")


def first_error(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors in a line."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def parsed(model: type[M], body: bytes) -> M:
    """The model in a body of JSON; ProblemError 422 for anything else."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise ProblemError(422, "bad_request", first_error(error.errors())) from None
