"""Clicks without FastAPI: the one request of which there are more than of all others together."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from samfast.serve.api_routes import click_answer
from samfast.serve.click_requests import ROUTE, clicked_image, read_click, send_json
from samfast.serve.http_answers import answer_within, client_in, error_response
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings


class ClickEndpoint:
    """ASGI middleware that answers a click of the usual form. All else goes on to FastAPI.

    FastAPI's routing, its parameters and its dependencies take several times as long as all that is
    done for a click here. It keeps what is described and what is refused: a body that pydantic does
    not accept, or that is not plain `application/json`, is handed on as it came.
    """

    def __init__(self, app: ASGIApp, *, service: SegmentationService, settings: Settings) -> None:
        self._app, self._service, self._settings = app, service, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        image_id = clicked_image(scope)
        if image_id is None:
            await self._app(scope, receive, send)
            return
        scope["samfast.route"] = ROUTE
        try:
            body, received_again = await read_click(receive)
            if body is None:
                await self._app(scope, received_again, send)
                return
            work = click_answer(self._service, image_id, body, client_in(scope))
            text = await answer_within(receive, self._settings.request_seconds, work)
        except ProblemError as error:
            response = error_response(error.status, error.code, str(error), error.retry_after)
            await response(scope, receive, send)
            return
        await send_json(text, send)
