"""create_app: a `SegmentationService` as a FastAPI application, with the page and the wires."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import samfast
from samfast.serve.api_page import add_api_page
from samfast.serve.api_routes import api_routes, health_routes
from samfast.serve.click_endpoint import ClickEndpoint
from samfast.serve.folder_routes import folder_routes
from samfast.serve.guard import Guard
from samfast.serve.http_answers import (
    failure_response,
    http_response,
    problem_response,
    validation_response,
)
from samfast.serve.photo_folder import PhotoFolder
from samfast.serve.problems import ProblemError
from samfast.serve.request_log import RequestLog
from samfast.serve.scene_folder import SceneFolder
from samfast.serve.scene_routes import scene_routes
from samfast.serve.service import SegmentationService
from samfast.serve.settings import Settings

PAGE = Path(__file__).parent / "page"
"""The files of the page at /."""


def create_app(
    service: SegmentationService,
    settings: Settings,
    wires: Sequence[str] = (),
    *,
    folder: PhotoFolder | None = None,
) -> FastAPI:
    """The application: the API below /v1, the page at /, and the wires that are named.

    service  it is started and drained with the application
    wires    names of files in `samfast.serve.wires`, with `-` or `_`; their routes go before ours
    folder   whose photos the page offers; None: those below the root, if there is one

    >>> app = create_app(SegmentationService(sam, settings), settings)
    >>> uvicorn.run(app, host=settings.host, port=settings.port)
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # The port answers /healthz while the model warms up; /readyz says when that is done.
        starting = asyncio.ensure_future(service.start())
        starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            yield
        finally:
            await service.drain()
            scenes.close()

    app = FastAPI(
        title="samfast",
        version=samfast.__version__,
        summary="Segment Anything for many people and their tools",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service, app.state.settings = service, settings
    for name in wires:
        wire = importlib.import_module(f"samfast.serve.wires.{name.replace('-', '_')}")
        app.include_router(wire.router(service))
    app.include_router(api_routes(service, settings))
    app.include_router(health_routes(service))
    if folder is None and settings.root is not None:
        limits = settings.max_image_bytes, settings.max_image_pixels
        folder = PhotoFolder(settings.root, max_bytes=limits[0], max_pixels=limits[1])
    app.include_router(folder_routes(service, folder))
    scenes = SceneFolder(
        settings.root,
        max_pixels=settings.max_image_pixels,
        input_side=service.sam.image_size,
        fingerprint=service.sam.fingerprint,
    )
    app.include_router(scene_routes(service, settings, scenes))
    add_api_page(app)
    app.mount("/", PageFiles(directory=PAGE, html=True), name="page")
    app.add_exception_handler(ProblemError, problem_response)
    app.add_exception_handler(RequestValidationError, validation_response)
    app.add_exception_handler(HTTPException, http_response)
    app.add_exception_handler(Exception, failure_response)
    app.add_middleware(ClickEndpoint, service=service, settings=settings)
    app.add_middleware(Guard, settings=settings, public=public_paths())
    app.add_middleware(RequestLog, metrics=service.metrics)
    return app


class PageFiles(StaticFiles):
    """The page's files. Browsers ask each time whether they have changed, as with an update."""

    def file_response(self, *args: Any, **more: Any) -> Response:
        """The file, or 304 for one that the browser has."""
        response = super().file_response(*args, **more)
        response.headers["Cache-Control"] = "no-cache"
        return response


def public_paths() -> frozenset[str]:
    """Paths that need no token: the page's files and the API's description, which hold no data and
    which a browser asks for without one, and the health checks.
    """
    files = [path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()]
    return frozenset(
        {"/", "/docs", "/openapi.json", "/healthz", "/readyz", *(f"/{name}" for name in files)}
    )
