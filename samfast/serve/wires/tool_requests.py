"""What the wires share: images as tools send them, one mask of a few clicks, and problems in the
form that a tool expects.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from numpy.typing import NDArray

from samfast import outputs
from samfast.serve.api_models import Number
from samfast.serve.http_answers import first_error
from samfast.serve.messages import MaskAnswer, ObjectPrompt, StoredImage
from samfast.serve.problems import ProblemError, too_large
from samfast.serve.service import SegmentationService

SMALL_PIECE = 0.2
"""Pieces of a mask with less than this part of the mean area are left out, as X-AnyLabeling-Server
has it (app/models/segment_anything_2.py)."""

Point = tuple[Number, Number]
"""XY in pixels of the upright image."""


async def add_base64(service: SegmentationService, text: str, client: str) -> StoredImage:
    """Take an image that came as base64, or as a data URI of it.

    Raises ProblemError as `SegmentationService.add_image`, and 422 for text that is neither; a URL
    is not fetched.
    """
    return await service.add_image(decode_base64(service, text), client=client)


def decode_base64(service: SegmentationService, text: str) -> bytes:
    """The bytes of base64 or of a data URI. Raises ProblemError as `add_base64`."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif "://" in text[:64]:
        raise url_not_fetched(text)
    if len(text) // 4 * 3 > service.settings.max_image_bytes + 3:
        raise too_large(f"the image has more than {service.settings.max_image_bytes} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProblemError(422, "bad_image", f"the image is not base64: {error}") from None


def url_not_fetched(url: str) -> ProblemError:
    """422: the server fetches nothing on a caller's behalf."""
    return ProblemError(
        422,
        "url_not_fetched",
        f"{url[:200]!r} is a URL, and this server fetches none; send the image itself",
    )


async def best_mask(
    service: SegmentationService, image_id: str, prompt: ObjectPrompt, client: str
) -> MaskAnswer:
    """The mask of one object, as the original's ONNX model chooses it.

    A single point may mean a part or the whole: of three masks, that of the highest predicted IoU.
    More prompts are asked with the single-mask token. Raises as `SegmentationService.predict`.
    """
    ambiguous = len(prompt.points) == 1 and prompt.box is None and prompt.mask is None
    (answer,) = await service.predict(image_id, [prompt], multimask=ambiguous, client=client)
    return answer.best()


def needs_prompt(prompt: ObjectPrompt) -> None:
    """Raise ProblemError 422 if there is neither a point nor a box."""
    if not prompt.points and prompt.box is None:
        raise ProblemError(422, "bad_prompt", "there is neither a point nor a box; send one")


async def records_of_everything(
    service: SegmentationService, image_id: str, options: dict[str, Any], client: str
) -> list[dict[str, Any]]:
    """The records of everything in an image. Raises as `SegmentationService.segment`."""
    lines = service.segment(image_id, options, client=client)
    return [line async for line in lines if "segmentation" in line]


def large_pieces(contours: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Those of a mask's outlines (K, 2) with at least `SMALL_PIECE` of their mean area.

    Tools that have a polygon for each piece would show one for each speck.
    """
    areas = [outputs.enclosed_area(each) for each in contours]
    least = SMALL_PIECE * sum(areas) / max(len(areas), 1)
    return [each for each, area in zip(contours, areas, strict=True) if area >= least]


def tool_route(form: Callable[[ProblemError], Response]) -> type[APIRoute]:
    """A class of routes that answer problems, and requests that do not fit, in a tool's form.

    APIRouter(route_class=tool_route(lambda problem: JSONResponse({"error": str(problem)}, 400)))
    """

    class ToolRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answered(request: Request) -> Response:
                try:
                    return await handle(request)
                except RequestValidationError as error:
                    problem = ProblemError(422, "bad_request", first_error(error.errors()))
                except ProblemError as error:
                    problem = error
                response = form(problem)
                if problem.retry_after is not None:
                    response.headers["Retry-After"] = str(math.ceil(problem.retry_after))
                return response

            return answered

    return ToolRoute
