"""Which requests are clicks of the usual form, what they ask for, and how they are answered.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from samfast.serve.api_models import PredictModel

_CLICK_PATH = re.compile(r"/v1/images/([0-9a-f]{64})/predict")

ROUTE = "/v1/images/{id}/predict"
"""The name of the route in the metrics, as FastAPI gives it."""


def clicked_image(scope: Scope) -> str | None:
    """The id of the image that a request of the usual form clicks on."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
        return None
    match = _CLICK_PATH.fullmatch(scope["path"])
    if match is None:
        return None
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return match[1] if kinds == [b"application/json"] else None


async def read_click(receive: Receive) -> tuple[PredictModel | None, Receive]:
    """The body of a click, or None if it is no click after all, and a `receive` that gives its
    messages again.
    """
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    return _parsed(messages), _again(messages, receive)


def _parsed(messages: Sequence[Message]) -> PredictModel | None:
    """The body, or None if it is not as its model says, or the client has left."""
    if messages[-1]["type"] != "http.request":
        return None
    try:
        return PredictModel.model_validate_json(
            b"".join(each.get("body", b"") for each in messages)
        )
    except ValidationError:
        return None


def _again(messages: Sequence[Message], receive: Receive) -> Receive:
    """A `receive` that gives these messages first."""
    rest = iter(messages)

    async def received() -> Message:
        message = next(rest, None)
        return await receive() if message is None else message

    return received


async def send_json(text: bytes, send: Send, status: int = 200, retry_after: int = 0) -> None:
    """Send an answer, with Retry-After if it has a time."""
    headers = [
        (b"content-length", str(len(text)).encode()),
        (b"content-type", b"application/json"),
    ]
    if retry_after:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
