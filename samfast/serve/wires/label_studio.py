"""An ML backend of Label Studio, for its smart tools.

Label Studio (HumanSignal/label-studio, label_studio/ml/api_connector.py, `MLApi`) calls, below the
URL that the user gives for the model:

    GET /health      any answer of status 200
    POST /setup      {"project", "schema", ...} -> {"model_version"}
    GET /versions    {"versions": [...]}
    POST /predict    {"tasks": [{"id", "data": {...}}], "label_config": XML, "params": {"context"}}
    POST /webhook    events of the project, of which this server needs none

(the server's side: HumanSignal/label-studio-ml-backend, label_studio_ml/api.py, and for SAM
label_studio_ml/examples/segment_anything_model/model.py.)

`context.result` are the user's smart clicks and boxes: {"type": "keypointlabels", "value": {"x",
"y", "keypointlabels": [label]}, "is_positive", ...} or {"type": "rectanglelabels", "value": {"x",
"y", "width", "height", "rectanglelabels"}}, in percent of the image. The answer is {"results":
[{"result": [region], "score", "model_version"}]}: a brush region, whose run lengths
`samfast.outputs.brush_rle` writes, or, for a project that has PolygonLabels and no BrushLabels, a
polygon for each piece of the mask. Without context nothing was clicked: the images of the tasks are
embedded ahead, and the answer is {"results": []}.

Label Studio sends where an image is, not the image. This server fetches nothing, so that images
must lie below its `--root`:

- `/data/local-files/?d=PATH`, of local storage: PATH below `--root`, which is Label Studio's
  LOCAL_FILES_DOCUMENT_ROOT;
- `/data/upload/PROJECT/FILE`, of uploads: upload/PROJECT/FILE below `--root`, which is the folder
  `media` of Label Studio's data;
- a data URI holds its image. Other URLs are refused.

Errors are {"status", "detail"} with the HTTP status, which Label Studio logs. A token is the
password of its "basic authentication"; the user may be any.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from samfast import __version__, outputs
from samfast.serve.api_models import Number
from samfast.serve.batch_policy import Urgency
from samfast.serve.http_answers import answer, client_of
from samfast.serve.messages import MaskAnswer, ObjectPrompt, StoredImage
from samfast.serve.problems import ProblemError
from samfast.serve.service import SegmentationService
from samfast.serve.wires.tool_requests import (
    best_mask,
    decode_base64,
    large_pieces,
    needs_prompt,
    tool_route,
    url_not_fetched,
)

_LOG = logging.getLogger("samfast.serve")

SMOOTHNESS = 0.001
"""Corners of a polygon within this part of its perimeter are left out, so that people can edit it.
"""

CONTROLS = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}
"""Tags of a labeling configuration that masks can answer, the first choice first."""


class Value(BaseModel):
    """A click or a box in percent of the image; its labels are under the name of its type."""

    model_config = {"extra": "allow"}

    x: Number
    y: Number
    width: Number = 0
    height: Number = 0


class Interaction(BaseModel):
    """What the user did with a smart tool."""

    type: str
    value: Value
    is_positive: bool = True


class Context(BaseModel):
    """The user's clicks and boxes for one object."""

    result: list[Interaction] = []


class RegionsParams(BaseModel):
    """What comes beside the tasks."""

    context: Context | None = None


class Task(BaseModel):
    """A task of Label Studio."""

    data: dict[str, Any] = {}


class RegionsRequest(BaseModel):
    """A request for the regions of tasks."""

    tasks: list[Task]
    label_config: str = ""
    params: RegionsParams = RegionsParams()


class Setup(BaseModel):
    """What Label Studio tells when the model is connected to a project."""

    project: str = ""


@dataclass(frozen=True)
class Control:
    """The tag of a labeling configuration that a region belongs to.

    kind  "brushlabels" or "polygonlabels";  key  of a task's data, where the image is named
    """

    from_name: str
    to_name: str
    kind: str
    key: str


def router(service: SegmentationService) -> APIRouter:
    """The routes of an ML backend."""
    routes = APIRouter(tags=["Label Studio"], route_class=tool_route(_problem))
    version = f"samfast-{service.sam.name}-{__version__}"
    ahead: set[asyncio.Task[None]] = set()

    @routes.get("/health", summary="The server runs")
    async def label_studio_health() -> dict[str, Any]:
        return {"status": "UP", "model_class": "samfast"}

    @routes.post("/setup", summary="A project is connected")
    async def setup(body: Setup) -> dict[str, Any]:
        return {"model_version": version}

    @routes.get("/versions", summary="Versions of the model")
    async def versions() -> dict[str, Any]:
        return {"versions": [version]}

    @routes.post("/webhook", summary="An event of a project")
    async def webhook() -> dict[str, Any]:
        return {"status": "ok", "result": {}}

    @routes.post("/predict", summary="The region that clicks mean")
    async def predict(request: Request, body: RegionsRequest) -> JSONResponse:
        control = control_of(body.label_config)
        client = client_of(request)
        context = body.params.context
        if context is None or not context.result:
            embedding = asyncio.create_task(_embed_ahead(service, body.tasks, control, client))
            ahead.add(embedding)
            embedding.add_done_callback(ahead.discard)
            return JSONResponse({"results": []})
        if len(body.tasks) != 1:
            raise ProblemError(422, "bad_request", "tasks: clicks belong to one task")
        work = _region(service, body.tasks[0], context.result, control, client)
        regions, score = await answer(request, service.settings.request_seconds, work)
        prediction = {"result": regions, "score": score, "model_version": version}
        content = {"results": [prediction], "model_version": version}
        return await asyncio.to_thread(JSONResponse, content)

    return routes


def _problem(problem: ProblemError) -> JSONResponse:
    body = {"status": problem.status, "detail": str(problem), "error": problem.code}
    return JSONResponse(body, problem.status)


def control_of(label_config: str) -> Control:
    """The tag that masks answer, and the image that it belongs to.

    Raises ProblemError 422 for a configuration without BrushLabels or PolygonLabels on an Image.

        control_of(
            '<View><Image name="i" value="$photo"/><BrushLabels name="b" toName="i"/></View>'
        )  # Control(from_name="b", to_name="i", kind="brushlabels", key="photo")
    """
    if "<!" in label_config.replace("<!--", ""):
        raise ProblemError(422, "bad_request", "label_config: declarations are not taken")
    try:
        root = ElementTree.fromstring(label_config)
    except ElementTree.ParseError as error:
        raise ProblemError(422, "bad_request", f"label_config is not XML: {error}") from None
    images = {each.get("name"): each.get("value", "") for each in root.iter("Image")}
    for tag, kind in CONTROLS.items():
        for each in root.iter(tag):
            image = images.get(each.get("toName"))
            if image:
                return Control(
                    each.get("name", ""), each.get("toName", ""), kind, image.removeprefix("$")
                )
    raise ProblemError(
        422, "bad_request", f"label_config has none of {', '.join(CONTROLS)} for an Image"
    )


async def _embed_ahead(
    service: SegmentationService, tasks: Sequence[Task], control: Control, client: str
) -> None:
    """Embed the images of tasks that will be clicked soon. Nobody waits: errors are logged."""
    for task in tasks:
        try:
            await _image(service, task, control, client, Urgency.BULK)
        except ProblemError as error:
            _LOG.warning("Label Studio's task is not embedded ahead: %s", error)
            if error.status in (429, 503):
                return


async def _image(
    service: SegmentationService, task: Task, control: Control, client: str, urgency: Urgency
) -> StoredImage:
    source = task.data.get(control.key)
    if not isinstance(source, str) or not source:
        raise ProblemError(422, "bad_request", f"the task's data has no image {control.key!r}")
    if source.startswith("data:"):
        return await service.add_image(
            decode_base64(service, source), client=client, urgency=urgency
        )
    return await service.add_path(path_of(source), client=client, urgency=urgency)


def path_of(source: str) -> str:
    """The path below `--root` of an image as Label Studio names it.

    Raises ProblemError 422 for a URL that is none of its local files.

        path_of("/data/local-files/?d=trip/a%20b.jpg")  # "trip/a b.jpg"
    """
    try:
        parts = urlsplit(source)
    except ValueError:
        raise url_not_fetched(source) from None
    if parts.path.rstrip("/").endswith("/data/local-files"):
        named = parse_qs(parts.query).get("d", [])
        if len(named) == 1:
            return named[0].lstrip("/")
    _, marker, uploaded = parts.path.partition("/data/upload/")
    if marker:
        return "upload/" + unquote(uploaded)
    raise url_not_fetched(source)


async def _region(
    service: SegmentationService,
    task: Task,
    interactions: Sequence[Interaction],
    control: Control,
    client: str,
) -> tuple[list[dict[str, Any]], float]:
    """The regions of the object that was clicked, and the predicted IoU."""
    image = await _image(service, task, control, client, Urgency.CLICK)
    prompt = _prompt(interactions, image)
    needs_prompt(prompt)
    mask = await best_mask(service, image.id, prompt, client)
    labels = _labels(interactions)
    return await asyncio.to_thread(_regions, mask, image, control, labels), mask.predicted_iou


def _prompt(interactions: Sequence[Interaction], image: StoredImage) -> ObjectPrompt:
    points, labels, box = [], [], None
    for each in interactions:
        x, y = each.value.x * image.width / 100, each.value.y * image.height / 100
        if each.type.startswith("keypoint"):
            points.append((x, y))
            labels.append(int(each.is_positive))
        elif each.type.startswith("rectangle"):
            width = each.value.width * image.width / 100
            height = each.value.height * image.height / 100
            box = (x, y, x + width, y + height)
    return ObjectPrompt(tuple(points), tuple(labels), box)


def _labels(interactions: Sequence[Interaction]) -> list[str]:
    """The label that the user chose for the tool, told last."""
    for each in reversed(interactions):
        extra: Mapping[str, Any] = each.value.model_extra or {}
        for key in (each.type, "labels"):
            given = extra.get(key)
            if isinstance(given, list) and given:
                return [str(label) for label in given]
    return []


def _regions(
    mask: MaskAnswer, image: StoredImage, control: Control, labels: list[str]
) -> list[dict[str, Any]]:
    if not mask.area:
        return []
    if control.kind == "brushlabels":
        values: list[dict[str, Any]] = [{"format": "rle", "rle": outputs.brush_rle(mask.rle())}]
    else:
        rings = [polygon.exterior for polygon in outputs.mask_to_polygons(mask.array())]
        scale = 100 / np.array([image.width, image.height])
        values = [
            {"points": (ring * scale).tolist(), "closed": True}
            for ring in (
                outputs.simplify_ring(each, SMOOTHNESS * outputs.perimeter(each))
                for each in large_pieces(rings)
            )
            if len(ring) > 2
        ]
    return [
        {
            "id": secrets.token_hex(5),
            "from_name": control.from_name,
            "to_name": control.to_name,
            "type": control.kind,
            "original_width": image.width,
            "original_height": image.height,
            "image_rotation": 0,
            "value": {**value, control.kind: labels},
            "score": mask.predicted_iou,
            "readonly": False,
        }
        for value in values
    ]
