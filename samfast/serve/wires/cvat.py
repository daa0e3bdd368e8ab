"""CVAT's AI tools: this server in the place of the nuclio dashboard.

CVAT asks a nuclio dashboard which functions there are, and calls them through it
(cvat-ai/cvat, cvat/apps/lambda_manager/views.py, `LambdaGateway`). Its settings are
CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT, with CVAT_NUCLIO_INVOKE_METHOD=dashboard.

    GET /api/functions                  {id: function, ...}
    GET /api/functions/ID               function
    POST /api/function_invocations      header x-nuclio-function-name: ID, body as below

A function is {"metadata": {"name", "annotations": {"type", "spec", ...}}, "spec": {"description"},
"status": {"state", "httpPort"}}. Here are two.

The interactor gets {"image": base64, "pos_points": [[x, y], ...], "neg_points": [...], "obj_bbox"},
where a box is [[x0, y0], [x1, y1]], and [] or null is none. Which answer CVAT takes depends on its
release (`runInteractionRequest` of tools-control.tsx, in
cvat-ui/src/components/annotation-page/standard-workspace/controls-side-bar/). Both are sent:

- {"mask": rows of 0 and 1, "bounds": [left, top, right, bottom]}, where the mask may be what lies
  in the bounds, as CVAT's own plugin for SAM has it (cvat-ui/plugins/sam/src/ts/index.tsx);
- newer ones: {"shapes": [{"type": "mask", "points": run lengths and bounds, "attributes": []}]}.

Nothing in a request tells the release. The first form takes two bytes for a pixel of the bounds.

That plugin takes answers of the function `pth-facebookresearch-sam-vit-h` only, {"blob": base64 of
the embedding}, and runs the decoder of ViT-H in the browser. Our functions have other names, and
CVAT passes their answers through. `"blob"` is not served: the browser would decode the embedding of
any model with the weights of that one.

The detector gets {"image", "threshold"?} and answers a list of {"type": "mask", "label", "mask",
"points", "confidence"} (`DetectionResultConverter`): 0 or 1 for each pixel in the box, then the
box, and a polygon for those who want polygons.

Of an error CVAT shows the HTTP status; the body is {"error": text}, as of CVAT's own functions.
CVAT sends no token, but its requests library makes `Authorization: Basic` of a user in the host:
CVAT_NUCLIO_HOST=cvat:TOKEN@host.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel

from samfast import outputs
from samfast.serve.api_models import Number
from samfast.serve.http_answers import answer, client_of
from samfast.serve.messages import MaskAnswer, ObjectPrompt
from samfast.serve.problems import ProblemError, bad_request, not_found
from samfast.serve.service import SegmentationService
from samfast.serve.wires.tool_requests import (
    Point,
    add_base64,
    best_mask,
    needs_prompt,
    records_of_everything,
    tool_route,
)

INTERACTOR = "samfast-interactor"
DETECTOR = "samfast-everything"

LABEL = "object"
"""What the detector calls all it finds; a user maps it to a label of the task."""

EMPTY = {"mask": [[0]], "bounds": [0, 0, 0, 0], "shapes": []}
"""The answer for a mask without pixels: one pixel outside."""


class Invocation(BaseModel):
    """What CVAT sends to a function; the detector gets no prompts."""

    image: str
    pos_points: list[Point] = []
    neg_points: list[Point] = []
    obj_bbox: list[Point] | tuple[Number, Number, Number, Number] | None = None
    threshold: Number | None = None


def router(service: SegmentationService) -> APIRouter:
    """The routes of a nuclio dashboard that CVAT calls."""
    routes = APIRouter(tags=["CVAT"], route_class=tool_route(_problem))
    functions = _functions(service.sam.name)

    @routes.get("/api/functions", summary="Functions that CVAT can call")
    async def list_functions() -> dict[str, Any]:
        return functions

    @routes.get("/api/functions/{name}", summary="One of the functions")
    async def get_function(name: str) -> dict[str, Any]:
        return _known(functions, name)

    @routes.post("/api/function_invocations", summary="Call a function")
    async def invoke(
        request: Request, body: Invocation, x_nuclio_function_name: Annotated[str, Header()]
    ) -> Response:
        _known(functions, x_nuclio_function_name)
        call = _detect if x_nuclio_function_name == DETECTOR else _interact
        work = call(service, body, client_of(request))
        return await answer(request, service.settings.request_seconds, work)

    return routes


def _problem(problem: ProblemError) -> JSONResponse:
    return JSONResponse({"error": str(problem)}, problem.status)


def _functions(model: str) -> dict[str, Any]:
    interactor = {
        "name": f"Segment Anything ({model})",
        "type": "interactor",
        "version": "2",
        "spec": "",
        "framework": "pytorch",
        "min_pos_points": "1",
        "min_neg_points": "0",
        "startswith_box_optional": "true",
        "help_message": "Click on an object, or draw a box around it; more clicks correct the mask",
    }
    label = {"id": 0, "name": LABEL, "type": "mask", "attributes": []}
    detector = {
        "name": f"Everything ({model})",
        "type": "detector",
        "version": "2",
        "spec": json.dumps([label]),
        "framework": "pytorch",
    }
    return {
        name: {
            "metadata": {"name": name, "namespace": "nuclio", "annotations": annotations},
            "spec": {"description": "samfast: Segment Anything, many times faster"},
            "status": {"state": "ready", "httpPort": 0},
        }
        for name, annotations in ((INTERACTOR, interactor), (DETECTOR, detector))
    }


def _known(functions: dict[str, Any], name: str) -> dict[str, Any]:
    function: dict[str, Any] | None = functions.get(name)
    if function is None:
        raise not_found(f"there is no function {name!r}; there are {', '.join(functions)}")
    return function


def _prompt(body: Invocation) -> ObjectPrompt:
    box: tuple[float, float, float, float] | None = None
    if body.obj_bbox:
        corners = [
            coordinate
            for each in body.obj_bbox
            for coordinate in (each if isinstance(each, tuple) else (each,))
        ]
        if len(corners) != 4:
            raise bad_request("obj_bbox: a box is [[x0, y0], [x1, y1]]")
        (x0, x1), (y0, y1) = sorted(corners[0::2]), sorted(corners[1::2])
        box = x0, y0, x1, y1
    return ObjectPrompt(
        points=(*body.pos_points, *body.neg_points),
        labels=(1,) * len(body.pos_points) + (0,) * len(body.neg_points),
        box=box,
    )


async def _interact(service: SegmentationService, body: Invocation, client: str) -> Response:
    prompt = _prompt(body)
    needs_prompt(prompt)
    image = await add_base64(service, body.image, client)
    mask = await best_mask(service, image.id, prompt, client)
    return await asyncio.to_thread(_interaction, mask)


def _interaction(mask: MaskAnswer) -> Response:
    if not mask.area:
        return JSONResponse(EMPTY)
    crop, bounds = outputs.cvat_crop(mask.rle())
    shape = {
        "type": "mask",
        "points": outputs.cvat_runs(mask.rle()),
        "attributes": [],
        "group": 0,
        "occluded": False,
        "rotation": 0,
        "source": "semi-auto",
    }
    rest = json.dumps({"bounds": bounds, "shapes": [shape]})
    return _json(f'{{"mask": [{rows_of_digits(crop)}], {rest[1:]}')


async def _detect(service: SegmentationService, body: Invocation, client: str) -> Response:
    image = await add_base64(service, body.image, client)
    records = await records_of_everything(service, image.id, {}, client)
    floor = body.threshold or 0.0
    chosen = [record for record in records if record["area"] and record["predicted_iou"] >= floor]
    return await asyncio.to_thread(
        lambda: _json(f"[{', '.join(_detection(record) for record in chosen)}]")
    )


def _detection(record: dict[str, Any]) -> str:
    """What CVAT's detectors answer for an object, as JSON."""
    mask = outputs.decode(record["segmentation"])
    largest = max(outputs.mask_to_polygons(mask), key=lambda each: len(each.exterior))
    crop, box = outputs.cvat_crop(mask)
    rest = {
        "type": "mask",
        "label": LABEL,
        "confidence": str(round(record["predicted_iou"], 4)),
        "points": largest.exterior.ravel().tolist(),
        "attributes": [],
    }
    pixels = rows_of_digits(crop.reshape(1, -1))[:-1]
    return f'{{"mask": {pixels}, {json.dumps(box)[1:]}, {json.dumps(rest)[1:]}'


def rows_of_digits(mask: NDArray[np.bool_]) -> str:
    """The rows of a mask as JSON lists of 0 and 1, with commas between.

    A Python number for each pixel would hold the interpreter, and with it the server's other
    requests, several times as long.

        rows_of_digits(np.eye(2, dtype=bool))  # "[1,0],[0,1]"
    """
    height, width = mask.shape
    text = np.full((height, 2 * width + 2), ord(","), np.uint8)
    text[:, 0], text[:, 2 * width] = ord("["), ord("]")
    text[:, 1 : 2 * width : 2] = ord("0") + mask
    return text.tobytes()[:-1].decode()


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
