"""samapi, the server of QuPath's extension SAM.

The extension (ksugar/qupath-extension-sam, src/main/java/org/elephant/sam/tasks/*.java) has the URL
of the server as its setting, http://HOST:PORT/sam/, and sends:

    POST /sam/             {"type", "b64img", "bbox", "point_coords", "point_labels",
                           "multimask_output", "checkpoint_url"}
    POST /sam/automask/    {"type", "b64img", options of the generator, "output_type",
                           "include_image_edge", "checkpoint_url"}
    GET /sam/weights/      [{"type", "name", "url"}]; QuPath sends a `url` back as `checkpoint_url`
    GET /sam/version/      text
    GET /sam/progress/     {"message", "percent"} of a download
    GET /sam/weights/cancel/   text; POST /sam/weights/: register weights

(ksugar/samapi, src/samapi/main.py.) Answers are lists of GeoJSON features with the properties
object_idx, label, quality and sam_model.

What differs from samapi:

- Geometries run along the edges of pixels, with all pieces and holes. samapi sends the longest
  outline only, half a pixel inside.
- `object_idx` and `quality` are the feature's own. samapi's are those of the mask before it.
- QuPath can choose among SAM's models, not name others. Any `vit_...` is answered by the model that
  this server runs, which `sam_model` names; SAM 2 and 3 are refused, and so are other weights.
- `output_type`: of the generator's masks that pass its filters, "Multi-mask (all)" is all of them;
  "(largest)", "(smallest)" and "(best quality)" are what is left of them by non-maximum suppression
  in this order. "Single mask" is refused, since the generator asks for three masks a point, as
  Meta's. Over crops of the image only "(best quality)" is defined.
- Masks as prompts, videos and SAM 3's texts are refused.

Errors are {"detail": text} with the HTTP status, as of FastAPI; QuPath writes both to its log.
The extension sends no token and has no setting for one: let it reach the server through
`ssh -L 8000:localhost:8000 HOST`, on whose other end the server listens on loopback without token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from samfast import __version__, coco_rle, outputs
from samfast.masks import nms
from samfast.serve.api_models import Number
from samfast.serve.http_answers import answer, client_of
from samfast.serve.messages import MaskAnswer, ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.serve.wires.tool_requests import (
    Point,
    add_base64,
    needs_prompt,
    records_of_everything,
    tool_route,
)

EDGE_PIXELS = 20.0
"""A mask within so many pixels of all four edges is the image's own outline."""

BEST_QUALITY = "Multi-mask (best quality)"

ORDERS: dict[str, Callable[[dict[str, Any]], float] | None] = {
    "Multi-mask (all)": None,
    "Multi-mask (largest)": lambda record: record["area"],
    "Multi-mask (smallest)": lambda record: -record["area"],
    BEST_QUALITY: lambda record: record["predicted_iou"],
}
"""Which of two masks that overlap stays, by output type; None: both."""


class _Model(BaseModel):
    type: str = "vit_h"
    b64img: str
    checkpoint_url: str | None = None


class Prompted(_Model):
    """A request for the masks of one object."""

    bbox: tuple[Number, Number, Number, Number] | None = None
    point_coords: list[Point] | None = None
    point_labels: list[Literal[0, 1]] | None = None
    b64mask: str | None = None
    multimask_output: bool = False


class Automatic(_Model):
    """A request for everything in an image; the defaults are samapi's."""

    points_per_side: Annotated[int, Field(ge=1, le=64)] = 32
    points_per_batch: Annotated[int, Field(ge=1, le=1024)] = 64
    pred_iou_thresh: Number = 0.88
    stability_score_thresh: Number = 0.95
    stability_score_offset: Number = 1.0
    box_nms_thresh: Number = 0.7
    crop_n_layers: Annotated[int, Field(ge=0, le=2)] = 0
    crop_nms_thresh: Number = 0.7
    crop_overlap_ratio: Annotated[float, Field(ge=0, lt=1)] = 512 / 1500
    crop_n_points_downscale_factor: Annotated[int, Field(ge=1, le=64)] = 1
    min_mask_region_area: Annotated[int, Field(ge=0, le=10**9)] = 0
    output_type: str = BEST_QUALITY
    include_image_edge: bool = False


def router(service: SegmentationService) -> APIRouter:
    """The routes of samapi."""
    routes = APIRouter(prefix="/sam", tags=["samapi"], route_class=tool_route(_problem))
    model = service.sam.name
    weights = {"type": model, "name": "default", "url": f"samfast:{model}"}
    seconds = service.settings.request_seconds

    @routes.post("/", summary="The masks of one object")
    async def predict(request: Request, body: Prompted) -> JSONResponse:
        _check_model(body, weights["url"])
        return await answer(request, seconds, _predict(service, body, client_of(request)))

    @routes.post("/automask/", summary="Everything in an image")
    async def automask(request: Request, body: Automatic) -> JSONResponse:
        _check_model(body, weights["url"])
        return await answer(request, seconds, _automask(service, body, client_of(request)))

    @routes.get("/version/", summary="The version of the server")
    async def version() -> PlainTextResponse:
        return PlainTextResponse(__version__)

    @routes.get("/weights/", summary="The weights of the model served, of whatever type is asked")
    async def list_weights(type: str | None = None) -> list[dict[str, str]]:
        return [weights]

    @routes.post("/weights/", summary="Refused: weights are chosen when the server starts")
    async def register_weights() -> JSONResponse:
        raise ProblemError(
            403, "refused", "weights are chosen with `samfast serve --checkpoint`, not by requests"
        )

    @routes.get("/weights/cancel/", summary="Nothing is being downloaded")
    async def cancel() -> PlainTextResponse:
        return PlainTextResponse("nothing is being downloaded")

    @routes.get("/progress/", summary="Nothing is being downloaded")
    async def progress() -> dict[str, Any]:
        return {"message": None, "percent": -1}

    return routes


def _problem(problem: ProblemError) -> JSONResponse:
    return JSONResponse({"detail": str(problem)}, problem.status)


def _check_model(body: _Model, url: str) -> None:
    if not body.type.startswith("vit_"):
        raise ProblemError(
            422, "bad_request", f"type {body.type!r} is not served; choose one of SAM's, vit_..."
        )
    if body.checkpoint_url not in (None, "", url):
        raise ProblemError(
            422, "bad_request", f"checkpoint_url: only {url} is served, of GET /sam/weights/"
        )


async def _predict(service: SegmentationService, body: Prompted, client: str) -> JSONResponse:
    if body.b64mask is not None:
        raise ProblemError(422, "bad_request", "b64mask: masks are not taken as prompts here")
    prompt = ObjectPrompt(tuple(body.point_coords or ()), tuple(body.point_labels or ()), body.bbox)
    needs_prompt(prompt)
    image = await add_base64(service, body.b64img, client)
    (answer,) = await service.predict(
        image.id, [prompt], multimask=body.multimask_output, client=client
    )
    return await _answered([_plain(mask) for mask in answer.masks], service.sam.name)


def _plain(mask: MaskAnswer) -> dict[str, Any]:
    return {"segmentation": mask.rle(), "predicted_iou": mask.predicted_iou}


async def _automask(service: SegmentationService, body: Automatic, client: str) -> JSONResponse:
    image = await add_base64(service, body.b64img, client)
    engine = body.output_type == BEST_QUALITY and body.include_image_edge
    if not engine:
        _check_suppression(body)
    options = body.model_dump(
        exclude={"type", "b64img", "checkpoint_url", "output_type", "include_image_edge"}
    )
    if not engine:
        options["box_nms_thresh"] = 1.0  # No box has an IoU above it: all masks come.
    records = await records_of_everything(service, image.id, options, client)
    if not engine:
        records = await asyncio.to_thread(_suppressed, records, body, image.width, image.height)
    return await _answered(records, service.sam.name)


def _check_suppression(body: Automatic) -> None:
    """Refuse what is not defined where masks are suppressed here, after the generator."""
    if body.output_type not in ORDERS:
        raise ProblemError(
            422, "bad_request", f"output_type {body.output_type!r}; there are {', '.join(ORDERS)}"
        )
    if body.crop_n_layers or body.min_mask_region_area:
        raise ProblemError(
            422,
            "bad_request",
            f"crop_n_layers and min_mask_region_area need the output type {BEST_QUALITY!r} and "
            "include_image_edge",
        )


def _suppressed(
    records: Sequence[dict[str, Any]], body: Automatic, width: int, height: int
) -> list[dict[str, Any]]:
    """Of all masks those that the output type keeps, in samapi's order."""
    boxes = np.array([_corners(record["bbox"]) for record in records]).reshape(-1, 4)
    if not body.include_image_edge:
        inside = (np.abs(boxes - [0, 0, width, height]) > EDGE_PIXELS).any(1)
        records = [record for record, kept in zip(records, inside, strict=True) if kept]
        boxes = boxes[inside]
    order = ORDERS[body.output_type]
    if order is None:
        return list(records)
    scores = np.array([order(record) for record in records], np.float32)
    return [records[index] for index in nms.keep(boxes, scores, body.box_nms_thresh)]


def _corners(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = bbox
    return x, y, x + width, y + height


async def _answered(records: Sequence[dict[str, Any]], model: str) -> JSONResponse:
    """The answer with those masks, made on another thread: outlines may be long."""
    return await asyncio.to_thread(lambda: JSONResponse(_features(records, model)))


def _features(records: Sequence[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """Masks as GeoJSON features; QuPath cannot read one without a geometry."""
    features = []
    for index, record in enumerate(records):
        if not coco_rle.area_of(record["segmentation"]):
            continue
        features.append(
            {
                "type": "Feature",
                "geometry": outputs.geojson_geometry(record["segmentation"]),
                "properties": {
                    "object_idx": index,
                    "label": "object",
                    "quality": record["predicted_iou"],
                    "sam_model": model,
                },
            }
        )
    return features
