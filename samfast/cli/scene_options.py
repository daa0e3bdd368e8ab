"""The options of `samfast segment` for scenes: images that are read tile by tile."""

from __future__ import annotations

import argparse
from typing import Any

from samfast.cli.common_options import non_negative_int, positive_int

HELP = """\
  With --tile an image is read and segmented tile by tile and never held as a whole, for satellite
  images, slides and scans; pip install 'samfast[large]'. It may be a GeoTIFF, a COG, a BigTIFF, an
  OME-TIFF, an OME-Zarr, a JPEG, a PNG, or a URL of one. Masks of one object in several tiles become
  one. --point and --box are answered in windows centred on them; --prompts FILE is a GeoPackage or
  another file of geometries: points are clicks, of anything else the bounding box is the prompt.
  Without transform coordinates are pixels. Finished tiles are kept in DIR/<stem>.tiles: after an
  interruption the same command goes on, and with the last file written they are removed.
    gpkg      DIR/<stem>.gpkg, multipolygons in the scene's CRS, areas in pixels and, where the CRS
              is projected, square metres (the default)
    geojson   DIR/<stem>.geojson, the same, a feature a line
    coco      DIR/<stem>.json, COCO instances with RLE in pixels of the scene
    labels    DIR/<stem>.labels.tif, each pixel's object id, as a tiled GeoTIFF
    zarr      DIR/<stem>.labels.zarr, the same as OME-Zarr labels"""


def add_scene_options(group: Any) -> None:
    """Add --tile and what belongs to it to a group of argparse's."""
    group.add_argument(
        "--tile",
        type=positive_int,
        metavar="N",
        help="read the images in tiles of N x N pixels, for example 1024, see below",
    )
    group.add_argument(
        "--overlap",
        type=non_negative_int,
        metavar="N",
        help="pixels that neighbouring tiles share (default: 128)",
    )
    group.add_argument(
        "--complete-cut",
        action="store_true",
        help="answer objects that a tile's border cuts again in windows around them",
    )
    add_reading_options(group)
    group.add_argument(
        "--map-coordinates",
        action="store_true",
        help="--point and --box are in the CRS of the image, not in its pixels",
    )
    group.add_argument(
        "--embedding-cache",
        metavar="DIR",
        help="keep the embeddings of prompts' windows there, for later prompts near by",
    )
    group.add_argument(
        "--store",
        metavar="URL",
        help="the same in a store of `samfast serve` and `samfast embed`",
    )


def add_reading_options(group: Any) -> None:
    """Add what says how a scene is shown to the model."""
    group.add_argument(
        "--resolution",
        type=float,
        metavar="M_PER_PX",
        help="metres per pixel of the tiles; without a CRS, pixels of the image (default: the "
        "image's own pixels)",
    )
    group.add_argument(
        "--bands",
        type=parse_bands,
        metavar="R,G,B",
        help="the bands to show, from 1: three, or one as grey (default: red, green, blue where "
        "the file names them, else the first)",
    )
    group.add_argument(
        "--percentiles",
        type=parse_pair,
        metavar="LOW,HIGH",
        help="percentiles of a band that are shown black and white (default: 2,98; 8-bit values "
        "are taken as they are)",
    )
    group.add_argument(
        "--value-range",
        type=parse_pair,
        action="append",
        metavar="LOW,HIGH",
        help="values that are shown black and white; repeat it for each band",
    )
    group.add_argument(
        "--nodata", type=float, metavar="V", help="a value that means no data, besides the file's"
    )


READING = ("resolution", "bands", "percentiles", "value_range", "nodata")
"""Options that say how a scene is shown to the model."""

SCENE_ONLY = ("overlap", "complete_cut", *READING, "map_coordinates", "embedding_cache", "store")
"""Options of `samfast segment` without effect unless --tile is given."""


def parse_bands(text: str) -> tuple[int, ...]:
    """For argparse: "4,3,2" or "1"."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not one band or three, such as 4,3,2")
    return tuple(int(part) for part in parts)


def parse_pair(text: str) -> tuple[float, float]:
    """For argparse: "2,98"."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH") from None
    if not low < high:
        raise argparse.ArgumentTypeError(f"{text!r}: the first number must be the smaller one")
    return low, high
