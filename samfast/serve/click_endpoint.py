"""Clicks without FastAPI: the one request of which there are more than of all others together."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samfast.serve.api_models import PredictModel
from samfast.serve.api_routes import click_answer
from samfast.serve.http_answers import answer_within, error_response
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings

_CLICK_PATH = re.compile(r"/v1/images/([0-9a-f]{64})/predict")

ROUTE = "/v1/images/{id}/predict"
"""The name of the route in the metrics, as FastAPI gives it."""


class ClickEndpoint:
    """ASGI middleware that answers a click of the usual form. All else goes on to FastAPI.

    FastAPI's routing, its parameters and its dependencies take several times as long as all that is
    done for a click here. It keeps what is described and what is refused: a body that pydantic does
    not accept, or that is not plain `application/json`, is handed on as it came.
    """

    def __init__(self, app: ASGIApp, *, service: SegmentationService, settings: Settings) -> None:
        self._app, self._service, self._settings = app, service, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        image_id = _clicked_image(scope)
        if image_id is None:
            await self._app(scope, receive, send)
            return
        scope["samfast.route"] = ROUTE
        try:
            messages = [await receive()]
            while messages[-1].get("more_body", False):
                messages.append(await receive())
            body = _parsed(messages)
            if body is None:
                await self._app(scope, _again(messages, receive), send)
                return
            client = scope.get("client")
            work = click_answer(
                self._service, image_id, body, f"{client[0]}:{client[1]}" if client else ""
            )
            value = await answer_within(receive, self._settings.request_seconds, work)
        except ProblemError as error:
            response = error_response(error.status, error.code, str(error), error.retry_after)
            await response(scope, receive, send)
            return
        await _send_json(value, send)


def _clicked_image(scope: Scope) -> str | None:
    """The id of the image that a request of the usual form clicks on."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
        return None
    match = _CLICK_PATH.fullmatch(scope["path"])
    if match is None:
        return None
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return match[1] if kinds == [b"application/json"] else None


def _parsed(messages: list[Message]) -> PredictModel | None:
    """The body, or None if it is not as its model says, or the client has left."""
    if messages[-1]["type"] != "http.request":
        return None
    try:
        return PredictModel.model_validate_json(
            b"".join(each.get("body", b"") for each in messages)
        )
    except ValidationError:
        return None


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Gives these messages first."""
    rest = iter(messages)

    async def received() -> Message:
        message = next(rest, None)
        return await receive() if message is None else message

    return received


async def _send_json(value: Any, send: Send) -> None:
    body = json.dumps(value, separators=(",", ":")).encode()
    headers = [
        (b"content-length", str(len(body)).encode()),
        (b"content-type", b"application/json"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
