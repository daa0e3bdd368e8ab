"""The JSON of the HTTP API, for validation and for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
ImageId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

RelativePath = Annotated[
    str, Field(max_length=4096, pattern=r"^[^/\\\x00][^\\\x00]*$", description="with slashes")
]
EXAMPLE_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
EXAMPLE_RLE: JsonDict = {"size": [4, 6], "counts": "51204020"}
EXAMPLE_MASK: JsonDict = {
    "segmentation": EXAMPLE_RLE,
    "predicted_iou": 0.93,
    "area": 5,
    "bbox": [1, 1, 3, 2],
    "ref": "0f4c2a8be1d96735.0",
}


class StrictModel(BaseModel):
    """A body in which every key is known and has its own type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ObjectModel(StrictModel):
    """The prompts of one object: points with labels, a box, an earlier mask, or any mix."""

    points: list[Annotated[list[Number], Field(min_length=2, max_length=2)]] = Field(
        default=[], description="[[x, y], ...] in pixels of the upright image"
    )
    labels: list[Literal[0, 1]] = Field(
        default=[], description="one a point: 1 foreground, 0 background"
    )
    box: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = Field(
        default=None, description="[x0, y0, x1, y1] in pixels"
    )
    mask: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="the `ref` of an earlier mask of this image"
    )


Format = Literal["rle", "polygons", "png", "packed"]


class PredictModel(StrictModel):
    """Prompts for one image."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "objects": [
                        {"points": [[320, 240]], "labels": [1]},
                        {"box": [40, 30, 200, 160]},
                    ],
                    "multimask": True,
                    "format": "rle",
                }
            ]
        },
    )

    objects: list[ObjectModel] = Field(description="any number of objects", max_length=4096)
    multimask: bool = Field(default=True, description="three masks an object, or one")
    format: Format = Field(
        default="rle",
        description="rle: COCO; polygons: along pixel edges, with holes; png: base64, one bit a "
        "pixel; packed: base64 bits, row by row, highest bit first",
    )


class ImageRefModel(StrictModel):
    """An image: one of its id, a path below the server's root, or its file in base64."""

    id: ImageId | None = None
    path: RelativePath | None = None
    data: str | None = Field(default=None, description="base64 of an image file")


class OneCallModel(PredictModel):
    """An image and its prompts."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "image": {"path": "photos/street.jpg"},
                    "objects": [{"points": [[320, 240]], "labels": [1]}],
                }
            ]
        },
    )

    image: ImageRefModel


class PathModel(StrictModel):
    """A file below the server's root."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"path": "photos/street.jpg"}]}
    )

    path: RelativePath


class SegmentModel(StrictModel):
    """Options of the search for everything; the defaults are the checkpoint's."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"points_per_side": 16}]}
    )

    points_per_side: Annotated[int, Field(ge=1, le=64)] = 32
    points_per_batch: Annotated[int, Field(ge=1, le=1024)] | None = None
    pred_iou_thresh: Number | None = None
    stability_score_thresh: Number | None = None
    stability_score_offset: Number | None = None
    box_nms_thresh: Number | None = None
    crop_n_layers: Annotated[int, Field(ge=0, le=2)] = 0
    crop_nms_thresh: Number | None = None
    min_mask_region_area: Annotated[float, Field(ge=0, le=1e9)] | None = None
    progress: bool = Field(
        default=False, description='send lines {"done", "total"} between the records too'
    )


class PrewarmModel(StrictModel):
    """Images to embed when nobody clicks."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"paths": ["a.jpg", "b/c.jpg"]}]},
    )

    paths: list[RelativePath] = Field(default=[], description="files below the server's root")
    ids: list[ImageId] = Field(default=[], description="images that were sent before")


class ImageModel(BaseModel):
    """An image that the server knows."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": EXAMPLE_ID, "width": 640, "height": 480}]}
    )

    id: ImageId
    width: int
    height: int


class MaskModel(BaseModel):
    """One mask."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_MASK]})

    segmentation: dict[str, Any]
    predicted_iou: float
    area: int
    bbox: list[int] = Field(description="[x, y, width, height] in whole pixels")
    ref: str = Field(description="names this mask in a later request for the same image")


class ObjectAnswerModel(BaseModel):
    """The masks of one object."""

    masks: list[MaskModel]


class AnswerModel(BaseModel):
    """The masks of all objects, in the order of the request."""

    objects: list[ObjectAnswerModel]


class OneCallAnswerModel(AnswerModel):
    """The masks of all objects, and the image, which is kept for later requests."""

    image: ImageModel


class ErrorDetail(BaseModel):
    """What was wrong: a word for programs, a message for people."""

    code: str
    message: str


class ErrorModel(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"error": {"code": "not_found", "message": "image 9f86... is not here"}}]
        }
    )

    error: ErrorDetail
