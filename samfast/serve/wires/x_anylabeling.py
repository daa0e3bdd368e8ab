"""X-AnyLabeling's remote server.

The client (CVHub520/X-AnyLabeling, anylabeling/services/auto_labeling/remote_server.py) takes the
server's address from XANYLABELING_SERVER_URL or from its settings, and sends `Token: KEY`, which
may be empty, with every request:

    GET /v1/models              {"success": true, "data": {ID: {"display_name", "widgets", ...}}}
    GET /v1/models/ID/info      the same of one model
    POST /v1/predict            {"model": ID, "image": data URI, "params": {"marks": [...], ...}}
    GET /health                 {"status", "models_loaded", "timestamp"}

(CVHub520/X-AnyLabeling-Server, app/api/*.py, app/schemas/*.py, app/models/segment_anything_2.py.)
A mark is {"type": "point", "label": 1 or 0, "data": [x, y]} or {"type": "rectangle", "data": [x0,
y0, x1, y1]}. Several rectangles are several objects, each with all points, as there. Without marks
the answer has no shapes.

The answer is {"success": true, "data": {"shapes": [...], "description": "", "replace": false}}. A
shape is a polygon through the centres of pixels, as OpenCV's, closed, without holes, which the tool
does not know. As there, corners within `epsilon_factor` of the perimeter are left out, which the
slider "mask fineness" sets, and so are pieces of a mask smaller than a fifth of the mean piece.

Errors are {"success": false, "error": {"code", "message"}} with their HTTP status. That server
answers some of them with status 200, of which the client shows nothing.

samfast's own `POST /v1/predict` stays at the same path. A request is X-AnyLabeling's if it has the
header `Token`, or if its body is a JSON object with the key `model`, which ours has not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from samfast import outputs
from samfast.serve.api_models import Number
from samfast.serve.http_answers import answer, client_of
from samfast.serve.messages import MaskAnswer, ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.serve.wires.tool_requests import Point, add_base64, large_pieces, tool_route

LABEL = "AUTOLABEL_OBJECT"
"""X-AnyLabeling asks the user for a label in its place."""

NOT_THEIRS = "samfast.not_x_anylabeling"
"""Key of the ASGI scope of a request for samfast's own `/v1/predict`."""

WIDGETS = [
    {"name": name, "value": value}
    for name, value in (
        ("button_add_point", None),
        ("button_remove_point", None),
        ("button_add_rect", None),
        ("button_clear", None),
        ("button_finish_object", None),
        ("mask_fineness_slider", 10),
        ("mask_fineness_value_label", None),
    )
]
"""What X-AnyLabeling shows for the model."""


class PointMark(BaseModel):
    """A click, XY in pixels."""

    type: Literal["point"]
    data: Point
    label: Literal[0, 1] = 1


class RectangleMark(BaseModel):
    """A box, XYXY in pixels."""

    type: Literal["rectangle"]
    data: tuple[Number, Number, Number, Number]


class ShapesParams(BaseModel):
    """What the client may set; other keys are those of other models."""

    marks: list[Annotated[PointMark | RectangleMark, Field(discriminator="type")]] = []
    epsilon_factor: Annotated[float, Field(ge=0, le=1)] = 0.001
    show_boxes: bool = False
    show_masks: bool = True
    multimask_output: bool | None = None


class ShapesRequest(BaseModel):
    """A request for the shapes that marks mean."""

    model: str
    image: str
    params: ShapesParams = ShapesParams()


def router(service: SegmentationService) -> APIRouter:
    """The routes of X-AnyLabeling-Server."""
    routes = APIRouter(tags=["X-AnyLabeling"], route_class=tool_route(_problem))
    ours = APIRouter(tags=["X-AnyLabeling"], route_class=_TheirsOnly)
    model = service.sam.name
    models = {model: _metadata(model)}

    @routes.get("/v1/models", summary="The model served")
    async def list_models() -> dict[str, Any]:
        return _success(models)

    @routes.get("/v1/models/{model_id}/info", summary="What X-AnyLabeling shows for a model")
    async def model_info(model_id: str) -> dict[str, Any]:
        _check_model(model_id, model)
        return _success({"model_id": model_id, **models[model_id]})

    @routes.get("/health", summary="The server runs")
    async def x_anylabeling_health() -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"status": "healthy", "models_loaded": len(models), "timestamp": now}

    # Its path has samfast's own description in OpenAPI.
    @ours.post("/v1/predict", include_in_schema=False)
    async def predict(request: Request, body: ShapesRequest) -> JSONResponse:
        _check_model(body.model, model)
        work = _shapes(service, body, client_of(request))
        shapes = await answer(request, service.settings.request_seconds, work)
        return JSONResponse(_success({"shapes": shapes, "description": "", "replace": False}))

    routes.include_router(ours)
    return routes


def _problem(problem: ProblemError) -> JSONResponse:
    error = {"code": problem.code.upper(), "message": str(problem)}
    return JSONResponse({"success": False, "error": error}, problem.status)


class _TheirsOnly(tool_route(_problem)):  # type: ignore[misc]
    """A route that passes samfast's own requests for its path on to the next route."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if NOT_THEIRS in scope:
            return Match.NONE, {}
        result: tuple[Match, Scope] = super().matches(scope)
        return result

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        if "token" in request.headers or await asyncio.to_thread(_names_a_model, body):
            await super().handle(scope, replayed, send)
        else:
            scope[NOT_THEIRS] = True
            await scope["app"].router(scope, replayed, send)


def _names_a_model(body: bytes) -> bool:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "model" in value


def _success(data: Any) -> dict[str, Any]:
    return {"success": True, "data": data}


def _metadata(model: str) -> dict[str, Any]:
    return {
        "display_name": f"Segment Anything ({model})",
        "widgets": WIDGETS,
        "params": {"epsilon_factor": 0.001, "show_boxes": False, "show_masks": True},
        "capabilities": {},
        # A batch over all images has no marks, and would find nothing.
        "batch_processing_mode": None,
    }


def _check_model(given: str, served: str) -> None:
    if given != served:
        raise ProblemError(404, "model_not_found", f"model {given!r} is not served; {served!r} is")


async def _shapes(
    service: SegmentationService, body: ShapesRequest, client: str
) -> list[dict[str, Any]]:
    objects = _objects(body.params.marks)
    if not objects:
        return []
    multimask = body.params.multimask_output
    if multimask is None:
        # A single point may mean a part or the whole.
        multimask = len(objects) == 1 and objects[0].box is None and len(objects[0].points) == 1
    image = await add_base64(service, body.image, client)
    answers = await service.predict(image.id, objects, multimask=multimask, client=client)
    masks = [each.best() for each in answers]
    return await asyncio.to_thread(
        lambda: [shape for mask in masks for shape in _mask_shapes(mask, body.params)]
    )


def _objects(marks: Sequence[PointMark | RectangleMark]) -> list[ObjectPrompt]:
    """One object for each rectangle, or one of all points."""
    clicks = [mark for mark in marks if isinstance(mark, PointMark)]
    points = tuple(mark.data for mark in clicks)
    labels = tuple(mark.label for mark in clicks)
    boxes = [_sorted_box(mark.data) for mark in marks if isinstance(mark, RectangleMark)]
    if boxes:
        return [ObjectPrompt(points, labels, box) for box in boxes]
    return [ObjectPrompt(points, labels)] if points else []


def _sorted_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """A box may be drawn from any of its corners."""
    x0, y0, x1, y1 = box
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _mask_shapes(mask: MaskAnswer, params: ShapesParams) -> list[dict[str, Any]]:
    contours = large_pieces(outputs.mask_to_contours(mask.rle()))
    score = min(max(mask.predicted_iou, 0.0), 1.0)
    shapes = []
    if params.show_masks:
        simple = [
            outputs.simplify_ring(each, params.epsilon_factor * outputs.perimeter(each))
            for each in contours
        ]
        shapes += [
            _shape("polygon", [*ring.tolist(), ring[0].tolist()], score)
            for ring in simple
            if len(ring) > 2
        ]
    if params.show_boxes and contours:
        corners = np.concatenate(contours)
        (x0, y0), (x1, y1) = corners.min(0).tolist(), corners.max(0).tolist()
        shapes.append(_shape("rectangle", [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], score))
    return shapes


def _shape(kind: str, points: list[list[float]], score: float) -> dict[str, Any]:
    return {
        "label": LABEL,
        "shape_type": kind,
        "points": [[float(x), float(y)] for x, y in points],
        "score": score,
        "attributes": {},
        "description": None,
        "difficult": False,
        "direction": 0,
        "flags": None,
        "group_id": None,
        "kie_linking": [],
    }
