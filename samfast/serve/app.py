"""create_app: a `SegmentationService` as a FastAPI application, with the page and the wires."""

from __future__ import annotations

import asyncio
import base64
import binascii
import importlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

import samfast
from samfast.serve.api_models import (
    AnswerModel,
    ErrorModel,
    ImageModel,
    ObjectModel,
    OneCallAnswerModel,
    OneCallModel,
    PathModel,
    PredictModel,
    SegmentModel,
)
from samfast.serve.guard import Guard
from samfast.serve.mask_formats import FORMATS
from samfast.serve.messages import ObjectAnswer, ObjectPrompt, StoredImage
from samfast.serve.problems import ProblemError, bad_request
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings

PAGE = Path(__file__).parent / "page"
"""The files of the page at /."""

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

ImageId = Annotated[
    str,
    PathParameter(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the image's bytes, as uploading it gave"
    ),
]


def create_app(
    service: SegmentationService, settings: Settings, wires: Sequence[str] = ()
) -> FastAPI:
    """The application: the API below /v1, the page at /, and the wires that are named.

    service  it is started and drained with the application
    wires    names of files in `samfast.serve.wires`, with `-` or `_`; their routes go before ours

    >>> app = create_app(SegmentationService(sam, settings), settings)
    >>> uvicorn.run(app, host=settings.host, port=settings.port)
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # The port answers /healthz while the model warms up; /readyz says when that is done.
        starting = asyncio.ensure_future(service.start())
        starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        yield
        await service.drain()

    app = FastAPI(
        title="samfast",
        version=samfast.__version__,
        summary="Segment Anything for many people and their tools",
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
    )
    app.state.service, app.state.settings = service, settings
    for name in wires:
        wire = importlib.import_module(f"samfast.serve.wires.{name.replace('-', '_')}")
        app.include_router(wire.router(service))
    app.include_router(_api(service, settings))
    app.include_router(_health(service))
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_exception_handler(ProblemError, _problem_response)
    app.add_exception_handler(RequestValidationError, _validation_response)
    app.add_exception_handler(HTTPException, _http_response)
    app.add_middleware(Guard, settings=settings, public=_public_paths())
    return app


def _public_paths() -> frozenset[str]:
    """Paths that need no token: the page's files, which hold no data, and the health checks."""
    files = [path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()]
    return frozenset({"/", "/healthz", "/readyz", *(f"/{name}" for name in files)})


def client_of(request: Request) -> str:
    """Whose turn it is: a connection's address and port."""
    return f"{request.client.host}:{request.client.port}" if request.client else ""


async def answer(request: Request, seconds: float, work: Awaitable[T]) -> T:
    """The result of the work; it is cancelled if it takes too long or the client leaves.

    Call it when the request's body has been read. ProblemError 504 after so many seconds, 499 when
    the client has left, which nobody reads.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ProblemError(499, "client_left", "the client has left")
        raise ProblemError(504, "too_slow", f"not answered within {seconds:g} s", retry_after=5)
    finally:
        leaving.cancel()
        working.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ----------------------------------------------------------------------------------------- the API


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for OpenAPI."""
    return {status: {"model": ErrorModel} for status in (400, 401, 403, 413, 422, 429, *statuses)}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": model.model_json_schema(ref_template="#/components/schemas/{model}")}


BINARY = {"schema": {"type": "string", "format": "binary"}}
MULTIPART = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
}


def _api(service: SegmentationService, settings: Settings) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["images"])

    @api.post(
        "/images",
        status_code=201,
        responses={201: {"model": ImageModel}, **_errors(408, 415)},
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
            path = _parsed(PathModel, await request.body()).path
            work = service.add_path(path, client=client_of(request))
        else:
            data = await _uploaded(request, kind)
            work = service.add_image(data, client=client_of(request))
        image = await answer(request, settings.request_seconds, work)
        return _json(_image(image), 201)

    @api.get("/images/{id}", responses={200: {"content": {"image/*": BINARY}}, **_errors(404)})
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

    @api.post(
        "/images/{id}/predict",
        responses={200: {"model": AnswerModel}, **_errors(404, 503, 504)},
        tags=["masks"],
    )
    async def predict(id: ImageId, body: PredictModel, request: Request) -> Response:
        """The masks of each object."""
        work = service.predict(
            id, prompts(body.objects), multimask=body.multimask, client=client_of(request)
        )
        answers = await answer(request, settings.request_seconds, work)
        return _json({"objects": await _rendered(answers, body.format)})

    @api.post(
        "/predict",
        responses={200: {"model": OneCallAnswerModel}, **_errors(404, 503, 504)},
        tags=["masks"],
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
        return _json({"image": _image(image), "objects": rendered})

    @api.post(
        "/images/{id}/segment",
        responses={
            200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
            **_errors(404, 503),
        },
        tags=["masks"],
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

    return api


def _health(service: SegmentationService) -> APIRouter:
    health = APIRouter(tags=["server"])

    @health.get("/healthz")
    async def healthz() -> Response:
        """The process runs."""
        return _json({"status": "ok"})

    @health.get("/readyz", responses={503: {"model": ErrorModel}})
    async def readyz() -> Response:
        """The model has answered its first click, and the server is not ending."""
        if not service.ready:
            raise ProblemError(503, "not_ready", "the model is warming up, or the server ends")
        return _json({"status": "ready"})

    return health


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
        return _render(answers, format)
    return await asyncio.to_thread(_render, answers, format)


def _render(answers: Sequence[ObjectAnswer], format: str) -> list[dict[str, Any]]:
    render = FORMATS[format]
    return [
        {
            "masks": [
                {
                    "segmentation": render(mask),
                    "predicted_iou": mask.predicted_iou,
                    "area": mask.area,
                    "bbox": mask.bbox,
                    "ref": mask.ref,
                }
                for mask in each.masks
            ]
        }
        for each in answers
    ]


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


def _parsed(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise ProblemError(422, "bad_request", _first_error(error.errors())) from None


def _image(image: StoredImage) -> dict[str, Any]:
    return {"id": image.id, "width": image.width, "height": image.height}


# ----------------------------------------------------------------------------------------- answers


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, separators=(",", ":")), status, media_type="application/json")


def error_response(
    status: int, code: str, message: str, retry_after: float | None = None
) -> JSONResponse:
    """{"error": {"code", "message"}} with its status."""
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


async def _problem_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return error_response(error.status, error.code, str(error), error.retry_after)


async def _validation_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(422, "bad_request", _first_error(error.errors()))


async def _http_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes: dict[int, str] = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "bad_request")
    return error_response(error.status_code, code, str(error.detail))


def _first_error(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors in a line."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{where}: {first['msg']}" if where else str(first["msg"])
