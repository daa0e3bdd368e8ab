"""What the page asks of the server beside the API: a folder's photos, and their annotations."""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from samfast.errors import DatasetError, InputError, OutputError
from samfast.serve.annotations_file import MAX_KEY, AnnotationsFile, PhotoAnnotations, RevisionError
from samfast.serve.api_models import Number
from samfast.serve.photo_folder import PhotoFolder, Picture
from samfast.serve.problems import ProblemError, not_found
from samfast.serve.service import SegmentationService

Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
Id = Annotated[int, Field(ge=0, le=1 << 53)]
Point = Annotated[list[Number], Field(min_length=2, max_length=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RleModel(_Strict):
    """COCO's compressed run lengths."""

    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    counts: str


class CategoryModel(_Strict):
    """A category of the file by its id, or a new one by its name."""

    id: Id | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    color: Colour | None = None


class AnnotationModel(_Strict):
    """An object of a photo, as the page has it."""

    key: Annotated[str, Field(min_length=1, max_length=MAX_KEY)]
    id: Id | None = None
    category: CategoryModel
    segmentation: RleModel
    name: Annotated[str, Field(max_length=4000)] | None = None
    predicted_iou: Number | None = None
    points: Annotated[list[Point], Field(max_length=4096)] = []
    labels: Annotated[list[Annotated[int, Field(ge=0, le=1)]], Field(max_length=4096)] = []
    box: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = None


class ChangedCategoryModel(_Strict):
    """A category with a new name or colour."""

    id: Id
    name: Annotated[str, Field(min_length=1, max_length=200)]
    color: Colour | None = None


class SavedModel(_Strict):
    """All annotations of a photo, and the categories that were changed."""

    annotations: Annotated[list[AnnotationModel], Field(max_length=100_000)]
    categories: Annotated[list[ChangedCategoryModel], Field(max_length=10000)] = []


def folder_routes(service: SegmentationService, folder: PhotoFolder | None) -> APIRouter:
    """The routes; those of annotations answer 404 unless the folder is labelled.

    They change with the page, so that the OpenAPI document does not promise them to others.
    """
    api = APIRouter(prefix="/v1", include_in_schema=False)

    @api.get("/page")
    async def page() -> dict[str, Any]:
        """What the page is for: the model, and the folder, if there is one."""
        described = None if folder is None else await asyncio.to_thread(_described, folder)
        return {
            "model": service.sam.name,
            "device": str(service.sam.device),
            "folder": described,
        }

    # The whole file comes before the photos, whose names may be anything.
    @api.get("/folder/annotations.json")
    async def whole_file() -> Response:
        """The COCO file as it is saved."""
        text = await _safely(_labelled(folder)[1].text)
        return Response(text, media_type="application/json")

    @api.get("/folder/photos/{name:path}", response_class=Response)
    async def photo(name: str) -> Response:
        """A photo in a format that browsers show."""
        return _picture(await asyncio.to_thread(_there(folder).picture, name))

    @api.get("/folder/thumbnails/{name:path}", response_class=Response)
    async def thumbnail(name: str) -> Response:
        """A small picture of a photo."""
        return _picture(await asyncio.to_thread(_there(folder).thumbnail, name))

    @api.get("/folder/annotations/{name:path}")
    async def annotations(name: str) -> Response:
        """The annotations of a photo, and their revision as ETag."""
        photos, file = _labelled(folder)
        size = await asyncio.to_thread(photos.size, name)
        return _answer(await _safely(file.photo, name, size))

    @api.put("/folder/annotations/{name:path}")
    async def save(
        name: str, body: SavedModel, if_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Replace a photo's annotations, if they still are of the revision in If-Match.

        Otherwise 412, with those that are there now as `current`.
        """
        revision = re.fullmatch(r'"([0-9a-f]{1,64})"', if_match or "")
        if revision is None:
            raise ProblemError(428, "no_revision", 'send If-Match: "REVISION", as GET answered it')
        return await _save(folder, name, revision[1], body)

    return api


async def _save(folder: PhotoFolder | None, name: str, revision: str, body: SavedModel) -> Response:
    photos, file = _labelled(folder)
    size = await asyncio.to_thread(photos.size, name)
    sent = body.model_dump()
    try:
        saved = await _safely(
            file.save, name, size, revision, sent["annotations"], sent["categories"]
        )
    except RevisionError as error:
        problem = {"code": "changed_meanwhile", "message": str(error)}
        return JSONResponse({"error": problem, "current": error.current.as_json()}, 412)
    return _answer(saved)


def _described(folder: PhotoFolder) -> dict[str, Any]:
    file = folder.annotations
    try:
        counts = {} if file is None else file.counts()
    except DatasetError as error:
        raise ProblemError(500, "annotations_damaged", str(error)) from None
    root = folder.root.resolve()
    return {
        "name": root.name or str(root),
        # Where a browser keeps unsaved work: another folder or file must not get it.
        "key": hashlib.sha256(f"{root}\0{file and file.path}".encode()).hexdigest()[:16],
        "labelling": file is not None,
        "photos": [{"name": name, "objects": counts.get(name, 0)} for name in folder.names()],
    }


def _there(folder: PhotoFolder | None) -> PhotoFolder:
    if folder is None:
        raise not_found("this server was started without a folder of photos")
    return folder


def _labelled(folder: PhotoFolder | None) -> tuple[PhotoFolder, AnnotationsFile]:
    photos = _there(folder)
    if photos.annotations is None:
        raise not_found("this server labels no folder; samfast label PHOTOS does")
    return photos, photos.annotations


async def _safely(call: Any, *args: Any) -> Any:
    """The result of a call on a thread, its mistakes as ProblemError."""
    try:
        return await asyncio.to_thread(call, *args)
    except DatasetError as error:
        raise ProblemError(500, "annotations_damaged", str(error)) from None
    except OutputError as error:
        raise ProblemError(507, "not_written", str(error)) from None
    except InputError as error:
        raise ProblemError(422, "bad_annotation", str(error)) from None


def _answer(photo: PhotoAnnotations) -> Response:
    return JSONResponse(photo.as_json(), headers={"ETag": f'"{photo.revision}"'})


def _picture(picture: Picture) -> Response:
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-cache"}
    return Response(picture.data, media_type=picture.media_type, headers=headers)
