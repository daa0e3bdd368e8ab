"""The routes of scenes: images larger than the model's window, shown in tiles, asked in pixels."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from samfast.outputs.polygons import mask_to_polygons
from samfast.scenes.predict_scene import PromptWindow, prompts_in_window, reaches_border
from samfast.scenes.scene_objects import scene_rle
from samfast.scenes.scene_prompts import ScenePrompt
from samfast.scenes.tile_grid import TileGrid
from samfast.serve.api_models import ErrorModel, ObjectModel, RelativePath, StrictModel
from samfast.serve.http_answers import answer, client_of, json_response
from samfast.serve.messages import ObjectAnswer, ObjectPrompt
from samfast.serve.problems import ProblemError
from samfast.serve.scene_folder import SceneFolder, SceneWindow
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings
from samfast.types import Prompts

MAX_ZOOM = 1 << 16


class SceneObjectModel(ObjectModel):
    """The prompts of one object in a scene."""

    window: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="the `window` of its earlier answer; `mask` needs it"
    )


class ScenePredictModel(StrictModel):
    """Prompts in a scene below the server's root."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "path": "scenes/north.tif",
                    "objects": [{"points": [[18200, 9100]], "labels": [1]}],
                    "zoom": 2,
                }
            ]
        },
    )

    path: RelativePath
    objects: list[SceneObjectModel] = Field(description="any number of objects", max_length=256)
    multimask: bool = Field(default=True, description="three masks an object, or one")
    coordinates: Literal["pixels", "map"] = Field(
        default="pixels", description="of points and boxes: pixels of the scene, or its CRS"
    )
    zoom: Annotated[int, Field(ge=1, le=MAX_ZOOM)] = Field(
        default=1, description="the model is shown one pixel for so many of the scene, a side"
    )
    format: Literal["polygons", "rle"] = Field(
        default="polygons", description="along pixel edges, with holes; or COCO RLE of the scene"
    )


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorModel} for status in (400, 401, 403, 404, 422, 501, *statuses)}


ScenePath = Annotated[str, Query(max_length=4096, description="below the root, with slashes")]


def scene_routes(
    service: SegmentationService, settings: Settings, folder: SceneFolder
) -> APIRouter:
    """The routes below /v1/scenes."""
    api = APIRouter(prefix="/v1/scenes", tags=["scenes"])

    @api.get("", responses=_errors())
    async def scenes() -> Response:
        """The scenes below the root."""
        return json_response({"scenes": await asyncio.to_thread(folder.listed)})

    @api.get("/info", responses=_errors())
    async def info(path: ScenePath) -> Response:
        """Size, levels of tiles, CRS, and what is shown of a scene."""
        return json_response(await asyncio.to_thread(folder.describe, path))

    @api.get("/tile", response_class=Response, responses=_errors())
    async def tile(
        request: Request,
        path: ScenePath,
        level: Annotated[int, Query(ge=0, le=32)],
        column: Annotated[int, Query(ge=0)],
        row: Annotated[int, Query(ge=0)],
        format: Literal["jpeg", "png"] = "jpeg",
    ) -> Response:
        """A tile of pixels: 512 a side, level 0 at the scene's own resolution, each next half."""
        data, etag = await asyncio.to_thread(folder.tile, path, level, column, row, format)
        headers = {"ETag": f'"{etag}"', "Cache-Control": "private, max-age=60"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        headers["X-Content-Type-Options"] = "nosniff"
        return Response(data, media_type=f"image/{format}", headers=headers)

    @api.post("/predict", responses=_errors(413, 429, 503, 504))
    async def predict(body: ScenePredictModel, request: Request) -> Response:
        """The masks of each object in pixels of the scene.

        An object is answered in a window around it, whose embedding is kept: further clicks near by
        cost a decode. Hand `window` and `ref` back to go on with an object.
        """
        if len(body.objects) > settings.max_objects:
            raise ProblemError(413, "too_large", f"at most {settings.max_objects} objects")
        client = client_of(request)
        work = asyncio.gather(
            *(_answered(service, folder, body, each, client) for each in body.objects)
        )
        return json_response({"objects": await answer(request, settings.request_seconds, work)})

    return api


async def _answered(
    service: SegmentationService,
    folder: SceneFolder,
    body: ScenePredictModel,
    asked: SceneObjectModel,
    client: str,
) -> dict[str, Any]:
    """The answer to one object."""
    if len(asked.points) != len(asked.labels):
        count = f"{len(asked.points)} points and {len(asked.labels)} labels"
        raise ProblemError(422, "bad_prompt", f"an object has {count}")
    before = None if asked.window is None else _parsed_window(asked.window)
    prompts = Prompts(
        points=[asked.points] if asked.points else None,
        labels=[asked.labels] if asked.points else None,
        boxes=None if asked.box is None else [asked.box],
    )
    prompt = await asyncio.to_thread(folder.prompt, body.path, prompts, body.coordinates)
    grid = await asyncio.to_thread(folder.grid, body.path)
    place = await asyncio.to_thread(folder.window, body.path, prompt, body.zoom, before)
    mask = asked.mask if place.window == before else None
    answer = await _ask(service, place, prompt, grid, mask, body.multimask, client)
    if before is None and _cut(answer, place):
        centred = await asyncio.to_thread(
            folder.window, body.path, prompt, body.zoom, None, centred=True
        )
        if centred.window != place.window:
            place = centred
            answer = await _ask(service, place, prompt, grid, None, body.multimask, client)
    masks = await asyncio.to_thread(_rendered, answer, place, grid, body.format)
    return {"window": _window_text(place.window), "masks": masks}


async def _ask(
    service: SegmentationService,
    place: SceneWindow,
    prompt: ScenePrompt,
    grid: TileGrid,
    mask: str | None,
    multimask: bool,
    client: str,
) -> ObjectAnswer:
    inside = prompts_in_window([prompt], place.window, grid)
    points = [] if inside.points is None else np.asarray(inside.points[0]).tolist()
    box = None if inside.boxes is None else np.asarray(inside.boxes[0]).tolist()
    asked = ObjectPrompt(
        points=tuple((x, y) for x, y in points),
        labels=tuple(int(label) for label in prompt.labels),
        box=None if box is None else (box[0], box[1], box[2], box[3]),
        mask=mask,
    )
    (answer,) = await service.predict_pixels(
        place.key, place.loaded(), [asked], multimask=multimask, client=client
    )
    return answer


def _cut(answer: ObjectAnswer, place: SceneWindow) -> bool:
    return reaches_border(answer.best().array(), place.image.valid)


def _rendered(
    answer: ObjectAnswer, place: SceneWindow, grid: TileGrid, format: str
) -> list[dict[str, Any]]:
    """The masks in pixels of the scene, without what lies where no data is."""
    answers = []
    for mask in answer.masks:
        pixels = mask.array() & place.image.valid
        box, inside = _in_scene(pixels, place.window, grid)
        area = int(np.count_nonzero(inside))
        made: dict[str, Any] = {
            "predicted_iou": mask.predicted_iou,
            "area": area,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]] if area else [0, 0, 0, 0],
            "cut": reaches_border(pixels, place.image.valid),
            "ref": mask.ref,
        }
        if format == "rle":
            made["segmentation"] = scene_rle([(box, inside)] if area else [], grid.size)[0]
        else:
            made["polygons"] = _polygons(pixels, place.window, grid)
        answers.append(made)
    return answers


def _in_scene(
    pixels: NDArray[np.bool_], window: PromptWindow, grid: TileGrid
) -> tuple[tuple[int, int, int, int], NDArray[np.bool_]]:
    """A window's mask in scene pixels: its box in the scene, and the pixels in the box."""
    (left, top), (height, width) = _corner(window, grid), grid.size
    y, x = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not y.size:
        return (0, 0, 0, 0), np.zeros((0, 0), dtype=np.bool_)
    zoom = window.zoom
    x0, y0 = max(0, left + int(x[0]) * zoom), max(0, top + int(y[0]) * zoom)
    x1 = min(width, left + (int(x[-1]) + 1) * zoom)
    y1 = min(height, top + (int(y[-1]) + 1) * zoom)
    rows, columns = (np.arange(y0, y1) - top) // zoom, (np.arange(x0, x1) - left) // zoom
    return (x0, y0, x1, y1), pixels[rows[:, None], columns[None, :]]


def _polygons(
    pixels: NDArray[np.bool_], window: PromptWindow, grid: TileGrid
) -> list[dict[str, Any]]:
    """Rings in pixels of the scene, of a mask in a window."""
    corner, (height, width) = np.array(_corner(window, grid)), grid.size

    def placed(ring: NDArray[np.int64]) -> list[list[int]]:
        scene: list[list[int]] = np.clip(ring * window.zoom + corner, 0, (width, height)).tolist()
        return scene

    return [
        {"exterior": placed(each.exterior), "holes": [placed(hole) for hole in each.holes]}
        for each in mask_to_polygons(pixels)
    ]


def _corner(window: PromptWindow, grid: TileGrid) -> tuple[int, int]:
    """(x, y) of a window in pixels of the scene, which are the working pixels of its grid."""
    return window.left - round(grid.offset[0]), window.top - round(grid.offset[1])


def _window_text(window: PromptWindow) -> str:
    return f"{window.left},{window.top},{window.zoom}"


def _parsed_window(text: str) -> PromptWindow:
    if re.fullmatch(r"-?\d{1,12},-?\d{1,12},\d{1,6}", text):
        left, top, zoom = (int(part) for part in text.split(","))
        if 1 <= zoom <= MAX_ZOOM:
            return PromptWindow(top, left, zoom)
    raise ProblemError(422, "bad_request", "window: give the one of an earlier answer")
