"""Which requests are clicks of the usual form, and what they ask for. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import ValidationError
from starlette.types import Message, Receive, Scope

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


def parsed(messages: Sequence[Message]) -> PredictModel | None:
    """The body, or None if it is not as its model says, or the client has left."""
    if messages[-1]["type"] != "http.request":
        return None
    try:
        return PredictModel.model_validate_json(
            b"".join(each.get("body", b"") for each in messages)
        )
    except ValidationError:
        return None


def again(messages: Sequence[Message], receive: Receive) -> Receive:
    """A `receive` that gives these messages first."""
    rest = iter(messages)

    async def received() -> Message:
        message = next(rest, None)
        return await receive() if message is None else message

    return received
