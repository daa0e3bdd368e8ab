"""The formats of `samfast segment`: the files of an image, and who writes them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfast.automatic_masks.segment_stream import Records
from samfast.cli.image_files import ImageFile
from samfast.prompted_masks.prompted_objects import Objects, prompts_of

if TYPE_CHECKING:
    from samfast.images import LoadedImage


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What files are made of.

    image_id  of the image in COCO and SA-1B files
    classes   the YOLO class of each category id
    objects   that it was prompted with
    """

    file: ImageFile
    image: LoadedImage
    records: Records
    image_id: Any
    classes: Mapping[Any, int]
    objects: Objects

    @property
    def masks(self) -> list[Any]:
        """The masks of the records."""
        return [record["segmentation"] for record in self.records]


def _records(path: Path, result: ImageResult) -> None:
    from samfast.outputs import write_records

    write_records(path, result.records, check_texts=False)


def _labels(path: Path, result: ImageResult) -> None:
    from samfast.outputs import write_labels

    write_labels(path, result.masks, result.image.size)


def _npz(path: Path, result: ImageResult) -> None:
    from samfast.outputs import write_records_npz

    write_records_npz(path, result.records, result.image.size)


def _polygons(path: Path, result: ImageResult) -> None:
    from samfast.outputs import write_polygons

    write_polygons(path, result.records)


def _yolo(path: Path, result: ImageResult) -> None:
    from samfast.outputs import write_yolo

    write_yolo(path, result.records, result.classes)


def _geojson(path: Path, result: ImageResult) -> None:
    from samfast.outputs import write_geojson

    write_geojson(path, result.records)


def _cutouts(path: Path, result: ImageResult) -> None:
    from samfast.outputs import write_cutouts

    write_cutouts(path, result.image.pixels, result.records)


def _sa1b(path: Path, result: ImageResult) -> None:
    from samfast.outputs import write_sa1b

    name = result.file.name
    write_sa1b(path, result.records, result.image.size, name, image_id=result.image_id)


def _overlay(path: Path, result: ImageResult) -> None:
    from samfast.outputs import legend_of, write_overlay

    legend, prompts = legend_of(result.records), prompts_of(result.objects)
    write_overlay(path, result.image.pixels, result.masks, prompts, legend)


@dataclass(frozen=True)
class Format:
    """A file, or a folder, that is written for each image.

    target  its name, with {} for the image's stem
    write   called with its path and what to write
    marker  the file whose presence says that all is written, where target is a folder
    packs   most of its time goes into compression, during which other threads run
    """

    target: str
    write: Callable[[Path, ImageResult], None]
    marker: str | None = None
    packs: bool = False

    def is_written(self, out: Path, stem: str) -> bool:
        """Whether an earlier run has written it."""
        return (out / (self.marker or self.target).format(stem)).is_file()


RECORDS, YOLO = "coco", "yolo"

FORMATS = {
    RECORDS: Format("{}.json", _records),
    "png": Format("{}.png", _labels, packs=True),
    "npz": Format("{}.npz", _npz, packs=True),
    "polygons": Format("{}.polygons.json", _polygons),
    YOLO: Format("labels/{}.txt", _yolo),
    "geojson": Format("{}.geojson", _geojson),
    "cutout": Format("{}.cutouts", _cutouts, marker="{}.cutouts/1.png", packs=True),
    "sa1b": Format("{}.sa1b.json", _sa1b),
}

OVERLAY = Format("{}.overlay.png", _overlay, packs=True)

SCENE_FORMATS = ("gpkg", "geojson", "coco", "labels", "zarr")
"""The formats of scenes, which `samfast.cli.segment_scenes` writes."""

FILES = """\
  coco      DIR/<stem>.json, a list of records with segment_anything's keys: segmentation (COCO
            RLE), area, bbox (XYWH, W and H from first to last pixel), predicted_iou,
            point_coords, stability_score, crop_box; with prompts also point_labels, input_box and,
            from a file of --prompts, category_id and annotation_id
  png       DIR/<stem>.png, a label map: 0 is background, i the i-th record; where masks overlap,
            the smaller one is on top
  npz       DIR/<stem>.npz, the masks and the other keys as arrays
  polygons  DIR/<stem>.polygons.json, the records with polygons along pixel edges, holes kept
  yolo      DIR/labels/<stem>.txt and DIR/data.yaml, for training by Ultralytics
  geojson   DIR/<stem>.geojson, features with (multi)polygons in pixels
  cutout    DIR/<stem>.cutouts/<i>.png, the photo inside the i-th mask, transparent outside
  sa1b      DIR/<stem>.sa1b.json, the layout of the SA-1B data set"""
"""The formats, for --help."""


class TakeFormats(argparse.Action):
    """Takes the names of formats after --format; what follows them are images."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the names, each once, and the images."""
        names = dict.fromkeys((*FORMATS, *SCENE_FORMATS))
        count = next((i for i, value in enumerate(values) if value not in names), len(values))
        if count == 0:
            raise argparse.ArgumentError(
                self, f"{values[0]!r} is no format (choose from {', '.join(names)})"
            )
        earlier = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, list(dict.fromkeys([*earlier, *values[:count]])))
        namespace.images_after_format = [*namespace.images_after_format, *values[count:]]
