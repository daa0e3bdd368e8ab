"""The routes of the HTTP API."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from fastapi.responses import Response, StreamingResponse

from samfast.serve.api_models import (
    AnswerModel,
    ErrorModel,
    ImageModel,
    ObjectModel,
    OneCallAnswerModel,
    OneCallModel,
    PathModel,
    PredictModel,
    PrewarmModel,
    SegmentModel,
)
from samfast.serve.http_answers import answer, client_of, json_response, parsed
from samfast.serve.mask_formats import rendered, rle_json
from samfast.serve.messages import ObjectAnswer, ObjectPrompt, StoredImage
from samfast.serve.metrics import CONTENT_TYPE
from samfast.serve.problems import ProblemError, bad_request
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings

IMAGE_ID = re.compile("[0-9a-f]{64}")

ImageId = Annotated[
    str,
    PathParameter(
        pattern=f"^{IMAGE_ID.pattern}$",
        description="SHA-256 of the image's bytes, as uploading it gave",
    ),
]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for OpenAPI."""
    return {status: {"model": ErrorModel} for status in (400, 401, 403, 413, 422, 429, *statuses)}


BINARY = {"schema": {"type": "string", "format": "binary"}}
MULTIPART = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
}


def api_routes(service: SegmentationService, settings: Settings) -> APIRouter:
    """The routes below /v1."""
    api = APIRouter(prefix="/v1")
    _add_image_routes(api, service, settings)
    _add_mask_routes(api, service, settings)
    _add_embedding_routes(api, service, settings)
    return api


def _add_image_routes(api: APIRouter, service: SegmentationService, settings: Settings) -> None:

    @api.post(
        "/images",
        status_code=201,
        responses={201: {"model": ImageModel}, **_errors(404, 408)},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "image/*": BINARY,
                    "application/octet-stream": BINARY,
                    "multipart/form-data": MULTIPART,
                    "application/json": {
                        "schema": PathModel.model_json_schema(),
                        "example": {"path": "photos/street.jpg"},
                    },
                },
            }
        },
    )
    async def add_image(request: Request) -> Response:
        """Take an image: the file as the body or as `file` of a form, or a path below the root.

        It is embedded at once, before anybody clicks. The same bytes have the same id.
        """
        kind = _content_type(request)
        if kind == "application/json":
            path = parsed(PathModel, await request.body()).path
            work = service.add_path(path, client=client_of(request))
        else:
            data = await _uploaded(request, kind)
            work = service.add_image(data, client=client_of(request))
        image = await answer(request, settings.request_seconds, work)
        return json_response(_image(image), 201)

    @api.get(
        "/images/{id}",
        responses={200: {"content": {"application/octet-stream": BINARY}}, **_errors(404)},
    )
    async def get_image(id: ImageId) -> Response:
        """The image's file as it came."""
        data = await service.image_bytes(id)
        # Never a type that a browser would run.
        headers = {"Content-Disposition": "attachment", "Cache-Control": "private"}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @api.delete("/images/{id}", status_code=204, responses=_errors(404))
    async def delete_image(id: ImageId) -> Response:
        """Forget an image, its embedding and its masks."""
        await service.remove(id)
        return Response(status_code=204)


def _add_mask_routes(api: APIRouter, service: SegmentationService, settings: Settings) -> None:
    @api.post(
        "/images/{id}/predict",
        responses={200: {"model": AnswerModel}, **_errors(404, 503, 504)},
    )
    async def predict(id: ImageId, body: PredictModel, request: Request) -> Response:
        """The masks of each object."""
        work = click_answer(service, id, body, client_of(request))
        text = await answer(request, settings.request_seconds, work)
        return Response(text, media_type="application/json")

    @api.post(
        "/predict",
        responses={200: {"model": OneCallAnswerModel}, **_errors(404, 503, 504)},
    )
    async def one_call(body: OneCallModel, request: Request) -> Response:
        """An image and its prompts in one call; the image is kept for later ones."""
        client = client_of(request)

        async def work() -> tuple[StoredImage, list[ObjectAnswer]]:
            image = await _referred(service, body, client)
            answers = await service.predict(
                image.id, prompts(body.objects), multimask=body.multimask, client=client
            )
            return image, answers

        image, answers = await answer(request, settings.request_seconds, work())
        rendered = await _rendered(answers, body.format)
        return json_response({"image": _image(image), "objects": rendered})

    @api.post(
        "/images/{id}/segment",
        responses={
            200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
            **_errors(404, 503),
        },
    )
    async def segment(id: ImageId, request: Request, body: SegmentModel | None = None) -> Response:
        """Everything in the image: one record a line, with the original generator's keys."""
        options = {} if body is None else body.model_dump(exclude_none=True)
        progress = options.pop("progress", False)
        records = service.segment(id, options, client=client_of(request))
        # The first line is waited for: an error before it has a status of its own.
        first = await anext(records, None)
        return StreamingResponse(
            _lines(first, records, progress), media_type="application/x-ndjson"
        )


def _add_embedding_routes(api: APIRouter, service: SegmentationService, settings: Settings) -> None:
    @api.get(
        "/images/{id}/embedding",
        responses={
            200: {"content": {"application/octet-stream": BINARY}},
            **_errors(404, 503, 504),
        },
    )
    async def get_embedding(id: ImageId, request: Request) -> Response:
        """The image's embedding, for the client to hold: a file of `samfast.load_embeddings`."""
        work = service.embedding_bytes(id, client=client_of(request))
        data = await answer(request, settings.request_seconds, work)
        return Response(
            data, media_type="application/octet-stream", headers={"Cache-Control": "private"}
        )

    @api.put(
        "/images/{id}/embedding",
        responses={200: {"model": ImageModel}, **_errors(408)},
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/octet-stream": BINARY}}
        },
    )
    async def put_embedding(id: ImageId, request: Request) -> Response:
        """Give back an embedding, so that the image need not be sent again.

        It must be of the server's own weights and dtype. One that the server has already stays.
        """
        image = await service.put_embedding(id, await request.body())
        return json_response(_image(image))

    @api.post("/prewarm", status_code=202, responses=_errors())
    async def prewarm(body: PrewarmModel, request: Request) -> Response:
        """Embed images when nobody clicks: files below the root, and images sent before."""
        await service.prewarm(ids=body.ids, paths=body.paths, client=client_of(request))
        return json_response({"accepted": len(body.ids) + len(body.paths)}, 202)


def health_routes(service: SegmentationService) -> APIRouter:
    """/healthz, /readyz and /metrics."""
    health = APIRouter(tags=["server"])

    @health.get("/healthz", responses={503: {"model": ErrorModel}})
    async def healthz() -> Response:
        """The process runs, and its model has not failed."""
        if service.failed:
            raise ProblemError(503, "model_failed", "the model does not run; see the log")
        return json_response({"status": "ok"})

    @health.get("/readyz", responses={503: {"model": ErrorModel}})
    async def readyz() -> Response:
        """The model has answered its first click, and the server is not ending."""
        if not service.ready:
            raise ProblemError(503, "not_ready", "the model is warming up, or the server ends")
        return json_response({"status": "ready"})

    @health.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Queue depth, batch sizes, latency by stage, hits by tier, memory, for Prometheus."""
        return Response(await service.metrics_text(), media_type=CONTENT_TYPE)

    return health


async def click_answer(
    service: SegmentationService, image_id: str, body: PredictModel, client: str
) -> bytes:
    """The JSON that answers a click."""
    answers = await service.predict(
        image_id, prompts(body.objects), multimask=body.multimask, client=client
    )
    if body.format == "rle":
        return rle_json(answers)
    value = {"objects": await _rendered(answers, body.format)}
    return json.dumps(value, separators=(",", ":")).encode()


def prompts(objects: Sequence[ObjectModel]) -> list[ObjectPrompt]:
    """The objects of a request as the service takes them."""
    return [
        ObjectPrompt(
            points=tuple((x, y) for x, y in each.points),
            labels=tuple(each.labels),
            box=None if each.box is None else (each.box[0], each.box[1], each.box[2], each.box[3]),
            mask=each.mask,
        )
        for each in objects
    ]


async def _rendered(answers: Sequence[ObjectAnswer], format: str) -> list[dict[str, Any]]:
    """The answers as JSON values; what takes longer than RLE, on a thread."""
    if format == "rle":
        return rendered(answers, format)
    return await asyncio.to_thread(rendered, answers, format)


async def _lines(
    first: dict[str, Any] | None, rest: AsyncGenerator[dict[str, Any], None], progress: bool
) -> AsyncGenerator[str, None]:
    """NDJSON; an error after the first line is the last line."""
    try:
        line = first
        while line is not None:
            if progress or "segmentation" in line:
                yield json.dumps(line) + "\n"
            line = await anext(rest, None)
    except ProblemError as error:
        yield json.dumps({"error": {"code": error.code, "message": str(error)}}) + "\n"
    finally:
        await rest.aclose()


async def _referred(service: SegmentationService, body: OneCallModel, client: str) -> StoredImage:
    """The image that a request of one call names or holds."""
    given = body.image
    if sum(value is not None for value in (given.id, given.path, given.data)) != 1:
        raise ProblemError(422, "bad_request", "image: give one of id, path and data")
    if given.id is not None:
        return await service.image(given.id)
    if given.path is not None:
        return await service.add_path(given.path, client=client)
    try:
        data = base64.b64decode(given.data or "", validate=True)
    except (binascii.Error, ValueError):
        raise ProblemError(422, "bad_request", "image.data is not base64") from None
    return await service.add_image(data, client=client)


async def _uploaded(request: Request, kind: str) -> bytes:
    """The file of an upload."""
    if kind != "multipart/form-data":
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise bad_request("the form has no file called `file`")
        return await file.read()


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _image(image: StoredImage) -> dict[str, Any]:
    return {"id": image.id, "width": image.width, "height": image.height}
