"""Roboflow inference's endpoints for SAM and SAM 2.

(roboflow/inference, inference/core/interfaces/http/http_api.py,
inference/core/entities/requests/sam.py and sam2.py, inference/models/sam/segment_anything.py,
inference/models/sam2/segment_anything2.py; the client: inference_sdk/http/client.py, which has a
method for SAM 2 only, `sam2_segment_image`.)

    POST /sam/embed_image      {"image", "image_id"?, "format"} -> {"embeddings", "time"}
    POST /sam/segment_image    {"image" or "image_id", "point_coords", "point_labels", "format"}
                               -> {"masks", "low_res_masks", "time"}
    POST /sam2/embed_image     {"image", "image_id"?} -> {"image_id", "time"}
    POST /sam2/segment_image   {"image", "prompts": {"prompts": [...]}, "multimask_output"}
                               -> {"predictions": [{"masks", "confidence", "format"}], "time"}

An image is {"type": "base64", "value": text}; "url" is refused, since this server fetches nothing,
and "numpy", since it is a pickle. `image_id` is the caller's name for an image; the latest
`MAX_NAMES` are remembered.

Both answer with the model that this server runs, whatever version is named: the paths of SAM 2 are
a way of asking, and what they answer are SAM's masks. Of SAM's labels 1 and 0 are points, 2 and 3
the corners of a box, and -1 is no point. A prompt of SAM 2 has "points": [{"x", "y", "positive"}]
and a "box" {"x", "y", "width", "height"} about its centre.

Formats: "json" are polygons through the centres of pixels, as OpenCV's, without holes: for SAM the
largest of each mask, for SAM 2 all of them. "rle" (SAM 2) is COCO's. "binary" is a .npz file with
`masks`, 0 or 1 in uint8 where the original has logits, and `low_res_masks`, logits; for embeddings
a .npy file. Only "rle" and "binary" give a mask with holes back.

With `has_mask_input` and `use_mask_input_cache` the mask of the last answer for `image_id` is a
prompt too. `mask_input` and `embeddings` in requests are refused.

Errors are {"message": text} with the HTTP status, of which the client shows both. The token is the
client's `api_key`, which it sends as `Authorization: Bearer` if it is configured with
`InferenceConfiguration(api_key_transport="header")`; `?api_key=` in a URL counts too. By default
the client puts the key into the body, which is not read before the token is checked.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from samfast import outputs
from samfast.outputs.embeddings import embeddings_from_bytes
from samfast.serve.api_models import Number
from samfast.serve.http_answers import answer, client_of
from samfast.serve.messages import MaskAnswer, ObjectPrompt, StoredImage
from samfast.serve.problems import ProblemError, not_found
from samfast.serve.service import SegmentationService
from samfast.serve.wires.tool_requests import (
    Point,
    add_base64,
    best_mask,
    needs_prompt,
    tool_route,
    url_not_fetched,
)

MAX_NAMES = 1000
"""Names of images that are remembered."""


Name = Annotated[str, Field(max_length=256)]
"""What a caller calls an image."""


class EncodedImage(BaseModel):
    """An image as Roboflow's clients send it."""

    type: Literal["base64", "url", "numpy"]
    value: str


class Embedding(BaseModel):
    """A request to embed an image."""

    image: EncodedImage | None = None
    image_id: Name | None = None
    format: Literal["json", "binary"] = "json"


class Segmentation(Embedding):
    """A request for the mask of one object."""

    point_coords: list[Point] = []
    point_labels: list[Literal[-1, 0, 1, 2, 3]] = []
    has_mask_input: bool = False
    use_mask_input_cache: bool = True
    mask_input: Any = None
    embeddings: Any = None


class PromptPoint(BaseModel):
    """A click in pixels."""

    x: Number
    y: Number
    positive: bool


class PromptBox(BaseModel):
    """A box about its centre, in pixels."""

    x: Number
    y: Number
    width: Number
    height: Number


class Prompt(BaseModel):
    """The prompts of one object."""

    points: list[PromptPoint] | None = None
    box: PromptBox | None = None


class PromptSet(BaseModel):
    """The prompts of some objects."""

    prompts: list[Prompt] | None = None


class Segmentation2(BaseModel):
    """A request for the masks of some objects, in SAM 2's form."""

    image: EncodedImage | None = None
    image_id: Name | None = None
    prompts: PromptSet | list[Prompt] | None = None
    multimask_output: bool = True
    format: Literal["json", "rle", "binary"] = "json"


@dataclass
class _Named:
    """An image under a caller's name; `ref` names the mask of the last answer for it."""

    image: StoredImage
    ref: str | None = None


@dataclass
class _Names:
    """The latest names that callers gave to images."""

    _named: OrderedDict[str, _Named] = field(default_factory=OrderedDict)

    def put(self, name: str, image: StoredImage) -> None:
        known = self._named.get(name)
        if known is None or known.image.id != image.id:
            self._named[name] = _Named(image)
        self._named.move_to_end(name)
        while len(self._named) > MAX_NAMES:
            self._named.popitem(last=False)

    def get(self, name: str | None) -> _Named | None:
        return None if name is None else self._named.get(name)


def router(service: SegmentationService) -> APIRouter:
    """The routes of Roboflow inference for SAM and SAM 2."""
    routes = APIRouter(tags=["Roboflow"], route_class=tool_route(_problem))
    names = _Names()
    _add_sam(routes, service, names)
    _add_sam2(routes, service, names)
    return routes


def _add_sam(routes: APIRouter, service: SegmentationService, names: _Names) -> None:
    seconds = service.settings.request_seconds

    @routes.post("/sam/embed_image", summary="Embed an image")
    async def embed(request: Request, body: Embedding) -> Response:
        started, client = time.perf_counter(), client_of(request)

        async def work() -> NDArray[np.float32]:
            image = await _image(service, names, body.image, body.image_id, client)
            data = await service.embedding_bytes(image.id, client=client)
            return await asyncio.to_thread(_features, data)

        features = await answer(request, seconds, work())
        if body.format == "binary":
            return await asyncio.to_thread(_npy, features)
        return await asyncio.to_thread(lambda: _timed({"embeddings": features.tolist()}, started))

    @routes.post("/sam/segment_image", summary="The mask of one object")
    async def segment(request: Request, body: Segmentation) -> Response:
        started = time.perf_counter()
        work = _segment(service, names, body, client_of(request))
        mask, logits = await answer(request, seconds, work)
        if body.format == "binary":
            return await asyncio.to_thread(_npz, [mask], [logits])

        def render() -> Response:
            masks, low_res = [_largest(mask.array())], [_largest(logits[0] > 0)]
            return _timed({"masks": masks, "low_res_masks": low_res}, started)

        return await asyncio.to_thread(render)


def _add_sam2(routes: APIRouter, service: SegmentationService, names: _Names) -> None:
    seconds = service.settings.request_seconds

    @routes.post("/sam2/embed_image", summary="Embed an image under a name")
    async def embed_named(request: Request, body: Embedding) -> Response:
        started, client = time.perf_counter(), client_of(request)

        async def work() -> StoredImage:
            image = await _image(service, names, body.image, body.image_id, client)
            await service.embed(image.id, client=client)
            return image

        image = await answer(request, seconds, work())
        name = body.image_id or image.id[:12]
        names.put(name, image)
        return _timed({"image_id": name}, started)

    @routes.post("/sam2/segment_image", summary="The best mask of each object")
    async def segment_objects(request: Request, body: Segmentation2) -> Response:
        started = time.perf_counter()
        work = _segment_objects(service, names, body, client_of(request))
        masks, logits = await answer(request, seconds, work)
        if body.format == "binary":
            return await asyncio.to_thread(_npz, masks, logits)

        def render() -> Response:
            predictions = [_prediction(mask, body.format) for mask in masks]
            return _timed({"predictions": predictions}, started)

        return await asyncio.to_thread(render)


def _problem(problem: ProblemError) -> JSONResponse:
    return JSONResponse({"message": str(problem)}, problem.status)


def _timed(content: dict[str, Any], started: float) -> JSONResponse:
    return JSONResponse({**content, "time": time.perf_counter() - started})


async def _image(
    service: SegmentationService,
    names: _Names,
    given: EncodedImage | None,
    name: str | None,
    client: str,
) -> StoredImage:
    """The image of a request, or the one of that name. As there, a known name goes first."""
    known = names.get(name)
    if known is not None:
        try:
            return await service.image(known.image.id)
        except ProblemError:
            if given is None:
                raise
    if given is None and name is None:
        raise ProblemError(422, "bad_request", "there is neither image nor image_id; send one")
    if given is None:
        raise not_found(f"image_id {name!r} is not known; send the image")
    if given.type == "url":
        raise url_not_fetched(given.value)
    if given.type == "numpy":
        raise ProblemError(422, "bad_image", "image type numpy is a pickle; send base64")
    image = await add_base64(service, given.value, client)
    if name is not None:
        names.put(name, image)
    return image


async def _segment(
    service: SegmentationService, names: _Names, body: Segmentation, client: str
) -> tuple[MaskAnswer, NDArray[np.float32]]:
    """The mask, and its low-resolution logits (1, 256, 256)."""
    if body.embeddings is not None or body.mask_input is not None:
        raise ProblemError(
            422, "bad_request", "embeddings and mask_input are not taken; send image or image_id"
        )
    image = await _image(service, names, body.image, body.image_id, client)
    named = names.get(body.image_id)
    prompt = _prompt(body, named.ref if named and body.use_mask_input_cache else None)
    needs_prompt(prompt)
    mask = await best_mask(service, image.id, prompt, client)
    if named is not None:
        named.ref = mask.ref
    return mask, await _logits(service, image, mask, client)


def _prompt(body: Segmentation, ref: str | None) -> ObjectPrompt:
    if len(body.point_coords) != len(body.point_labels):
        raise ProblemError(
            422,
            "bad_prompt",
            f"{len(body.point_coords)} point_coords and {len(body.point_labels)} point_labels",
        )
    labelled = list(zip(body.point_coords, body.point_labels, strict=True))
    clicks = [(point, label) for point, label in labelled if label in (0, 1)]
    first = [point for point, label in labelled if label == 2]
    last = [point for point, label in labelled if label == 3]
    if len(first) != len(last) or len(first) > 1:
        raise ProblemError(422, "bad_prompt", "a box has one point of label 2 and one of label 3")
    if body.has_mask_input and ref is None:
        raise ProblemError(422, "bad_prompt", "there is no earlier mask of this image_id")
    return ObjectPrompt(
        tuple(point for point, _ in clicks),
        tuple(label for _, label in clicks),
        (*first[0], *last[0]) if first else None,
        ref if body.has_mask_input else None,
    )


async def _segment_objects(
    service: SegmentationService, names: _Names, body: Segmentation2, client: str
) -> tuple[list[MaskAnswer], list[NDArray[np.float32]]]:
    """The masks, and for the format "binary" their low-resolution logits (1, 256, 256)."""
    given = body.prompts.prompts if isinstance(body.prompts, PromptSet) else body.prompts
    objects = [_object(each) for each in given or []]
    if not objects:
        raise ProblemError(422, "bad_prompt", "there are no prompts; send points or boxes")
    for each in objects:
        needs_prompt(each)
    image = await _image(service, names, body.image, body.image_id, client)
    answers = await service.predict(
        image.id, objects, multimask=body.multimask_output, client=client
    )
    masks = [each.best() for each in answers]
    if body.format != "binary":
        return masks, []
    return masks, [await _logits(service, image, mask, client) for mask in masks]


def _object(prompt: Prompt) -> ObjectPrompt:
    points = prompt.points or []
    box = prompt.box
    return ObjectPrompt(
        tuple((each.x, each.y) for each in points),
        tuple(int(each.positive) for each in points),
        None
        if box is None
        else (
            box.x - box.width / 2,
            box.y - box.height / 2,
            box.x + box.width / 2,
            box.y + box.height / 2,
        ),
    )


async def _logits(
    service: SegmentationService, image: StoredImage, mask: MaskAnswer, client: str
) -> NDArray[np.float32]:
    """The low-resolution logits (1, 256, 256) of a mask."""
    logits = await service.low_res(mask.ref, image.id, client=client)
    array: NDArray[np.float32] = logits.float().numpy()
    return array


def _features(data: bytes) -> NDArray[np.float32]:
    """(1, 256, 64, 64) of the file of an embedding."""
    features = embeddings_from_bytes(data, "the embedding").features
    array: NDArray[np.float32] = features.float().numpy()
    return array


def _largest(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The outline of a mask's largest piece; an empty one for an empty mask."""
    contours = outputs.mask_to_contours(mask)
    if not contours:
        return []
    points: list[list[int]] = max(contours, key=outputs.enclosed_area).tolist()
    return points


def _prediction(mask: MaskAnswer, format: str) -> dict[str, Any]:
    if format == "rle":
        return {"masks": mask.rle(), "confidence": mask.predicted_iou, "format": "rle"}
    polygons = [each.tolist() for each in outputs.mask_to_contours(mask.rle())]
    return {"masks": polygons, "confidence": mask.predicted_iou, "format": "polygon"}


def _npy(array: NDArray[Any]) -> Response:
    file = io.BytesIO()
    np.save(file, array)
    return Response(file.getvalue(), media_type="application/octet-stream")


def _npz(masks: Sequence[MaskAnswer], logits: Sequence[NDArray[np.float32]]) -> Response:
    file = io.BytesIO()
    dense = np.stack([mask.array() for mask in masks]).astype(np.uint8)
    np.savez_compressed(file, masks=dense, low_res_masks=np.concatenate(logits))
    return Response(file.getvalue(), media_type="application/octet-stream")
