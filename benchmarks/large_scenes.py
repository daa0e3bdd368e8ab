"""Measures scenes: objects across tiles, crops, rate and memory.

    python benchmarks/large_scenes.py PART... --json FILE [--data DIR] [--points N] [--side N]

    joining   annotated objects of a mosaic, cut by an exact segmenter and by one that errs at
              borders, against the annotations: the joining alone, without a model
    accuracy  the model on tiles against the model in one window at the same resolution: shared
              rasters and mosaics that fit into one; larger mosaics, against a window in whose
              middle tiles meet; and, as the limit of that, one window against a shifted one
    crop      the model on a scene and on shifted crops of it, by where in the crop objects lie
    rate      segment_large against segment_each on as many 1024-pixel images, in turns
    memory    resident memory of a scene of --side pixels a side, and seconds
    samgeo, micro_sam
              their tiles (SamGeo.generate with batch=True, TiledAutomaticMaskGenerator) of the
              scene of `rate`, where they are installed, beside samfast's, with the same model:
              samfast stands in for segment_anything

Scenes are mosaics of the photos in --data (default: SAMFAST_DATA), which has val/ with
annotations.json. The file has a row for each part; those that are not named are kept.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402
from scipy import ndimage  # noqa: E402

from samfast import coco_rle  # noqa: E402
from samfast.images import LoadedImage  # noqa: E402
from samfast.outputs.records import bounding_box  # noqa: E402
from samfast.scenes.segment_scene import SceneOptions, segment_scene  # noqa: E402
from samfast.scenes.tile_grid import Box  # noqa: E402
from samfast.scenes.tile_masks import shared  # noqa: E402
from samfast.scenes.tile_reader import FILL  # noqa: E402
from samfast.types import FilterCounts, MaskRecords  # noqa: E402

Labels = NDArray[np.int64]
Masks = list[NDArray[np.bool_]]
Shown = tuple[Box, NDArray[np.bool_]]
"""A box in pixels of the scene, and a mask's pixels in it."""

LEAST_AREA = 400
"""Pixels of the objects that are counted."""

MATCHED = 0.5
"""Least IoU of two masks that are called the same object."""

SCENE = 4096
"""Side of the scene of `crop`."""

CROPS = (((333, 217), 3530), ((600, 700), 2816), ((896, 896), 2816))
"""(x, y) and side of each crop of it. The last has the borders of tiles of 1024 pixels, so that all
of its windows are whole."""

GROUPS = (
    "all_inside_the_crop",
    "in_cells_whose_windows_the_crop_has_whole",
    "beside_these",
    "cut_by_the_edge_and_clipped",
)
"""Where objects lie in a crop. Those that its edge cuts are not the same by definition, and are no
part of the others; the second and the third make up the first."""

LENIENT = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.85}
"""The packaged model finds few objects in mosaics with the default thresholds."""


def photos(data: Path) -> list[Path]:
    """The annotated photos, in the order of their names."""
    return sorted((data / "val" / "images").iterdir())


def mosaic(data: Path, side: int, seed: int, cell: int) -> NDArray[np.uint8]:
    """(side, side, 3): photos of cell x cell pixels, whose seams lie beside the tiles' borders."""
    names = photos(data)
    draw, offset = np.random.default_rng(seed), cell // 3
    count = -(-(side + offset) // cell)
    picture = Image.new("RGB", (count * cell, count * cell))
    for place, index in enumerate(draw.choice(len(names), count * count)):
        with Image.open(names[index]) as photo:
            least = min(photo.size)
            square = photo.convert("RGB").crop((0, 0, least, least)).resize((cell, cell))
        picture.paste(square, (place % count * cell, place // count * cell))
    return np.asarray(picture.crop((offset, offset, offset + side, offset + side)))


def annotated_labels(data: Path, side: int, seed: int) -> Labels:
    """(side, side): the annotated objects of photos side by side, each connected part by itself."""
    annotations = json.loads((data / "val" / "annotations.json").read_text(encoding="utf-8"))
    by_image: dict[int, list[Any]] = {}
    for each in annotations["annotations"]:
        by_image.setdefault(each["image_id"], []).append(each["segmentation"])
    images = [image for image in annotations["images"] if image["id"] in by_image]
    draw = np.random.default_rng(seed)
    labels, count, y = np.zeros((side, side), dtype=np.int64), 0, 0
    while y < side:
        x, tallest = 0, 0
        while x < side:
            image = images[draw.integers(len(images))]
            part = np.zeros((image["height"], image["width"]), dtype=np.int64)
            for rle in by_image[image["id"]]:
                connected, pieces = ndimage.label(coco_rle.decode(rle))
                part = np.where(connected > 0, connected + count, part)
                count += pieces
            height, width = min(part.shape[0], side - y), min(part.shape[1], side - x)
            labels[y : y + height, x : x + width] = part[:height, :width]
            x, tallest = x + width, max(tallest, height)
        y += tallest
    parts = np.zeros_like(labels)
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        if place is not None:  # one annotation may part another
            connected, _ = ndimage.label(labels[place] == number)
            parts[place] = np.where(connected > 0, connected + parts.max(), parts[place])
    return parts


def colours_of(labels: Labels) -> NDArray[np.uint8]:
    """(H, W, 3): each label's colour, from which `label_of` tells it."""
    return np.stack([labels & 255, labels >> 8 & 255, labels >> 16], 2).astype(np.uint8)


class Annotations:
    """Segments a tile of `colours_of` by its colours, as a model without error would.

    error  pixels by which each mask of a tile may be too large or too small, at random
    lost   share of the masks of a tile that are not found
    """

    image_size, batch_size, fingerprint = 1024, 1, "annotations"

    def __init__(self, error: int = 0, lost: float = 0.0) -> None:
        self._error, self._lost = error, lost
        self._draw = np.random.default_rng(0)

    def segment_each(
        self, images: Iterator[LoadedImage], **options: Any
    ) -> Generator[MaskRecords, None, None]:
        """A record for each label of each tile."""
        for image in images:
            pixels = image.pixels.astype(np.int64)
            labels = pixels[..., 0] + (pixels[..., 1] << 8) + (pixels[..., 2] << 16)
            labels[(image.pixels == FILL).all(2)] = 0
            records = []
            for number in np.unique(labels):
                if number and self._draw.random() >= self._lost:
                    records += self._record(labels == number)
            yield MaskRecords(records, image.size, FilterCounts(0, 0, 0, 0, 0))

    def _record(self, mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
        shift = int(self._draw.integers(-self._error, self._error + 1)) if self._error else 0
        if shift > 0:
            mask = ndimage.binary_dilation(mask, iterations=shift)
        elif shift < 0:
            # Beyond the tile the object continues, so that its border there is none.
            mask = ndimage.binary_erosion(mask, iterations=-shift, border_value=1)
        rows, columns = np.nonzero(mask)
        if not len(rows):
            return []
        middle = len(rows) // 2
        return [
            {
                "segmentation": coco_rle.encode(mask),
                "area": len(rows),
                "bbox": bounding_box(mask),
                "predicted_iou": float(self._draw.uniform(0.8, 1.0)),
                "stability_score": 0.95,
                "point_coords": [[float(columns[middle]), float(rows[middle])]],
            }
        ]

    def embed(self, images: Any) -> Any:
        """Of annotations there is no embedding, and the benchmark asks for none."""
        raise AssertionError("annotations are segmented only")

    def predict(self, embeddings: Any, prompts: Any, *, multimask: bool = True) -> Any:
        """Nor are they prompted."""
        raise AssertionError("annotations are segmented only")


def ious(a: Masks, b: Masks) -> NDArray[np.float64]:
    """(len(a), len(b))."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    x, y = (np.stack([mask.ravel() for mask in each]).astype(np.float32) for each in (a, b))
    common = (x @ y.T).astype(np.float64)
    union = x.sum(1, dtype=np.float64)[:, None] + y.sum(1, dtype=np.float64) - common
    matrix: NDArray[np.float64] = common / np.maximum(union, 1)
    return matrix


def paired(matrix: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The places of one-to-one pairs of masks in a matrix of their IoUs, best first."""
    pairs, rest = [], matrix.copy()
    while rest.size and rest.max() >= MATCHED:
        i, j = np.unravel_index(rest.argmax(), rest.shape)
        pairs.append((int(i), int(j)))
        rest[i, :] = rest[:, j] = 0
    return pairs


def compare(a: Masks, b: Masks) -> dict[str, Any]:
    """How far two lists of masks are the same objects."""
    matrix = ious(a, b)
    return _agreement(len(a), len(b), [float(matrix[pair]) for pair in paired(matrix)])


def _agreement(objects: int, reference: int, pairs: list[float]) -> dict[str, Any]:
    return {
        "objects": objects,
        "reference_objects": reference,
        "matched": len(pairs),
        "mean_iou_of_matched": statistics.fmean(pairs) if pairs else None,
    }


def masks_in(objects: Any, box: Box | None = None) -> Masks:
    """The masks of objects; of a box, those that lie inside it and do not touch its border."""
    masks = []
    for record in objects:
        if record["area"] < LEAST_AREA:
            continue
        mask = coco_rle.decode(record["segmentation"])
        if box is not None:
            x0, y0, x1, y1 = box
            inside = mask[y0:y1, x0:x1]
            if inside.sum() < mask.sum() or _touches_border(inside):
                continue
            mask = inside
        masks.append(mask)
    return masks


def shown(objects: Any, origin: tuple[int, int] = (0, 0)) -> list[Shown]:
    """The masks of objects in their boxes, which takes little memory.

    origin  of the objects' scene in a larger one, in whose pixels the boxes are told
    """
    masks = []
    for record in objects:
        if record["area"] >= LEAST_AREA:
            x, y, width, height = record["bbox"]
            mask = coco_rle.decode(record["segmentation"])[y : y + height, x : x + width]
            left, top = x + origin[0], y + origin[1]
            masks.append(((left, top, left + width, top + height), mask.copy()))
    return masks


def _touches_border(mask: NDArray[np.bool_]) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def joining(args: argparse.Namespace) -> dict[str, Any]:
    """Annotated objects of a scene of many tiles, joined again."""
    side = 4096
    labels = annotated_labels(args.data, side, seed=0)
    scene = colours_of(labels)
    places = ndimage.find_objects(labels)
    result: dict[str, Any] = {"side": side, "tile": 1024, "overlap": 128}
    for name, engine in (
        ("exact", Annotations()),
        ("borders_off_by_up_to_2_pixels", Annotations(error=2)),
        ("and_2_percent_lost", Annotations(error=2, lost=0.02)),
    ):
        with segment_scene(engine, scene, SceneOptions(), {}) as objects:
            result[name] = _against_annotations(objects, labels, places)
            print(name, result[name], file=sys.stderr, flush=True)
    return result


def _against_annotations(objects: Any, labels: Labels, places: list[Any]) -> dict[str, Any]:
    """How well annotated objects are found, those that several tiles' cells share by themselves."""
    grid, masks = objects.grid, shown(objects)
    across: list[float] = []
    inside: list[float] = []
    for number, (rows, columns) in enumerate(places, 1):
        truth = labels[rows, columns] == number
        if truth.sum() < LEAST_AREA:
            continue
        box = (columns.start, rows.start, columns.stop, rows.stop)
        best = max((_iou(box, truth, *each) for each in masks), default=0.0)
        (across if len(grid.cells_of(box)) > 1 else inside).append(best)
    objects_across = sum(len(grid.cells_of(box)) > 1 for box, _ in masks)
    return {
        "across_borders": {
            "annotated": len(across),
            "found": objects_across,
            "mean_iou": statistics.fmean(across),
            "share_above_0.9": sum(iou > 0.9 for iou in across) / len(across),
        },
        "inside": {"annotated": len(inside), "mean_iou": statistics.fmean(inside)},
        "annotated": len(across) + len(inside),
        "found": len(masks),
    }


def _iou(box: Box, truth: NDArray[np.bool_], other: Box, mask: NDArray[np.bool_]) -> float:
    part = shared(box, other)
    if part is None:
        return 0.0
    x0, y0, x1, y1 = part
    a = truth[y0 - box[1] : y1 - box[1], x0 - box[0] : x1 - box[0]]
    b = mask[y0 - other[1] : y1 - other[1], x0 - other[0] : x1 - other[0]]
    common = int((a & b).sum())
    return common / int(truth.sum() + mask.sum() - common)


def accuracy(args: argparse.Namespace) -> dict[str, Any]:
    """Tiles against one window at the same resolution: where the scene fits into one, and of larger
    scenes in a window in whose middle four tiles meet.
    """
    sam, options = _model(), {"points_per_side": args.points}
    small = [*_rasters(args.data), *_annotated_mosaics(args.data, args.scenes)]
    fitting: dict[str, Any] = {}
    for name, pixels in small:
        one = masks_in(_one_window(sam, pixels, options))
        for tile in (256, 512):
            with sam.segment_large(pixels, tile=tile, overlap=tile // 4, **options) as objects:
                fitting[f"{name}, tiles of {tile}"] = {
                    "windows": len(objects.grid),
                    **compare(masks_in(objects), one),
                }
        print(name, fitting[f"{name}, tiles of 256"], file=sys.stderr, flush=True)
    larger = [_meeting_tiles(sam, args.data, seed, options) for seed in range(args.scenes)]
    return {
        "points_per_side": args.points,
        "scenes_that_fit_into_a_window": {"sum": _sum(list(fitting.values())), "each": fitting},
        "larger_scenes": {
            "scenes": args.scenes,
            "tiles_against_one_window": _sum([row[0] for row in larger]),
            "with_complete_cut_against_one_window": _sum([row[1] for row in larger]),
            "across_cells_against_one_window": _sum([row[2] for row in larger]),
            # What tiles can be measured against no better than: the model's own answers depend on
            # where the window lies.
            "one_window_against_one_shifted_by_64": _sum([row[3] for row in larger]),
        },
    }


def _rasters(data: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The shared rasters in three bands."""
    import rasterio

    for path in sorted((data / "geo").glob("*.tif")):
        with rasterio.open(path) as file:
            if file.count == 3:
                yield path.name, file.read().transpose(1, 2, 0)


def _annotated_mosaics(data: Path, count: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for seed in range(count):
        yield f"mosaic {seed}", mosaic(data, 1024, seed, 512)


def _one_window(
    sam: Any, pixels: NDArray[np.uint8], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Everything in an image at its own resolution, by `SamFast.segment` alone: the same clicks, of
    which those beyond the image are left out.
    """
    height, width = pixels.shape[:2]
    window = np.full((1024, 1024, 3), FILL, dtype=np.uint8)
    window[:height, :width] = pixels
    side = options["points_per_side"]
    line = (np.arange(side) + 0.5) / side
    points = np.stack(np.meshgrid(line, line), 2).reshape(-1, 2)
    inside = points[(points * 1024 < (width, height)).all(1)]
    asked = {**options, "points_per_side": None, "point_grids": [inside]}
    records = []
    for record in sam.segment([window], **asked)[0]:
        mask = coco_rle.decode(record["segmentation"])[:height, :width]
        if 2 * mask.sum() >= record["area"]:
            area = int(mask.sum())
            records.append({**record, "segmentation": coco_rle.encode(mask), "area": area})
    return records


def _meeting_tiles(
    sam: Any, data: Path, seed: int, options: dict[str, Any]
) -> tuple[dict[str, Any], ...]:
    """Four tiles of a scene of 1920 pixels, and the window of 1024 in whose middle they meet."""
    scene, corner, shift = mosaic(data, 1920, seed, 640), 448, 64
    box = (corner, corner, corner + 1024, corner + 1024)
    with tempfile.TemporaryDirectory() as folder:
        options = {**options, "workspace": Path(folder) / "tiles"}
        with sam.segment_large(scene, **options) as objects:
            across = [len(objects.store.pieces_of(each.id)) > 1 for each in objects.store.objects()]
            records = list(objects)
        with sam.segment_large(scene, complete_cut=True, **options) as objects:
            completed = masks_in(objects, box)
    del options["workspace"]
    tiled = masks_in(records, box)
    tiled_across = masks_in([r for r, several in zip(records, across, strict=True) if several], box)
    one = _one_window(sam, scene[corner : corner + 1024, corner : corner + 1024], options)
    # The lines along which cells part, in pixels of the window.
    middle = 960 - corner
    one_across = [
        mask
        for mask in masks_in(one, (0, 0, 1024, 1024))
        if any(_both_sides(np.asarray(mask.any(axis)), middle) for axis in (0, 1))
    ]
    low = corner + shift
    moved = _one_window(sam, scene[low : low + 1024, low : low + 1024], options)
    end = 1024 - shift
    result = (
        compare(tiled, masks_in(one, (0, 0, 1024, 1024))),
        compare(completed, masks_in(one, (0, 0, 1024, 1024))),
        compare(tiled_across, one_across),
        compare(masks_in(moved, (0, 0, end, end)), masks_in(one, (shift, shift, 1024, 1024))),
    )
    print(seed, result, file=sys.stderr, flush=True)
    return result


def _both_sides(line: NDArray[Any], middle: int) -> bool:
    return bool(line[:middle].any() and line[middle:].any())


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("objects", "reference_objects", "matched")
    counts = {key: sum(row[key] for row in rows) for key in keys}
    weighted = sum(row["matched"] * (row["mean_iou_of_matched"] or 0) for row in rows)
    return {**counts, "mean_iou_of_matched": weighted / max(1, counts["matched"])}


def crop(args: argparse.Namespace) -> dict[str, Any]:
    """A scene and crops of it, with their places in the scene."""
    sam, options = _model(), {"points_per_side": args.points}
    scene = mosaic(args.data, SCENE, 9, 512)
    with sam.segment_large(scene, **options, **_kept(args, "scene")) as objects:
        grid, of_scene = objects.grid, shown(objects)
    rows = []
    for (x, y), side in CROPS:
        part = scene[y : y + side, x : x + side]
        keep = _kept(args, f"crop-{x}-{y}-{side}")
        with sam.segment_large(part, origin=(x, y), **options, **keep) as objects:
            tiles, cropped = len(objects.grid), shown(objects, (x, y))
        box = (x, y, x + side, y + side)
        shared_tiles = [tile for tile in range(len(grid)) if _within(grid.window(tile), box)]
        low_x, low_y, high_x, high_y = zip(*map(grid.cell, shared_tiles), strict=True)
        inner = (min(low_x), min(low_y), max(high_x), max(high_y))
        row = {
            "crop": side,
            "offset": [x, y],
            "tiles": tiles,
            "of_these_with_whole_windows": len(shared_tiles),
            **_same_objects(cropped, of_scene, box, inner),
        }
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    # A crop along the tiles' borders, which cuts no window, would flatter the sum.
    shifted = [row for row in rows if row["of_these_with_whole_windows"] < row["tiles"]]
    return {
        "scene": SCENE,
        "points_per_side": args.points,
        "sum_of_crops_with_cut_windows": {
            name: _sum([row[name] for row in shifted]) for name in GROUPS
        },
        "crops": rows,
    }


def _kept(args: argparse.Namespace, name: str) -> dict[str, Path]:
    """The file of a scene's tiles, if the arguments name a folder for them."""
    return {} if args.workspace is None else {"workspace": args.workspace / f"{name}.sqlite"}


def _same_objects(
    cropped: list[Shown], of_scene: list[Shown], box: Box, inner: Box
) -> dict[str, Any]:
    """How far the objects of a crop are those of the scene, by where they lie.

    box    the crop
    inner  the cells of the tiles whose windows the crop has whole
    """
    within = [[each for each in masks if _apart(each[0], box)] for masks in (cropped, of_scene)]
    matrix = np.array([[_iou(*a, *b) for b in within[1]] for a in within[0]])
    # Pairs are made once, among all, and belong where the scene's object lies.
    pairs = [(within[1][j][0], float(matrix[i, j])) for i, j in paired(matrix)]
    cut = [
        [each for each in _clipped(masks, box) if not _apart(each[0], box)]
        for masks in (cropped, of_scene)
    ]
    cut_matrix = np.array([[_iou(*a, *b) for b in cut[1]] for a in cut[0]])
    rows = []
    for groups in ((True, False), (True,), (False,)):
        ours, theirs = (
            sum(_within(each[0], inner) in groups for each in masks) for masks in within
        )
        matched = [iou for place, iou in pairs if _within(place, inner) in groups]
        rows.append(_agreement(ours, theirs, matched))
    ious_of_cut = [float(cut_matrix[pair]) for pair in paired(cut_matrix)]
    rows.append(_agreement(len(cut[0]), len(cut[1]), ious_of_cut))
    return dict(zip(GROUPS, rows, strict=True))


def _clipped(masks: list[Shown], box: Box) -> list[Shown]:
    """The parts of masks in a box, those left out that are too small there to be counted."""
    parts = []
    for place, mask in masks:
        part = shared(place, box)
        if part is not None:
            x0, y0, x1, y1 = part
            pixels = mask[y0 - place[1] : y1 - place[1], x0 - place[0] : x1 - place[0]]
            if pixels.sum() >= LEAST_AREA:
                parts.append((part, pixels))
    return parts


def _within(place: Box, box: Box) -> bool:
    return shared(place, box) == place


def _apart(place: Box, box: Box) -> bool:
    """Whether a place lies in a box and does not touch its border."""
    x0, y0, x1, y1 = box
    return _within(place, (x0 + 1, y0 + 1, x1 - 1, y1 - 1))


def rate(args: argparse.Namespace) -> dict[str, Any]:
    """Four tiles of a GeoTIFF against four images of 1024 pixels, in turns."""
    import rasterio

    sam, options = _model(), {"points_per_side": args.points, **LENIENT}
    scene = mosaic(args.data, 1024 + 896, 5, 640)
    corners = [(x, y) for y in (0, 896) for x in (0, 896)]
    images = [np.ascontiguousarray(scene[y : y + 1024, x : x + 1024]) for x, y in corners]
    times: dict[str, list[float]] = {"segment_each": [], "segment_large": [], "geopackage": []}
    cpu: dict[str, list[float]] = {"segment_each": [], "segment_large": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        profile = {"driver": "GTiff", "height": 1920, "width": 1920, "count": 3, "dtype": "uint8"}
        place = rasterio.Affine(1, 0, 0, 0, -1, 0)
        tiled = {"tiled": True, "compress": "deflate", "transform": place}
        with rasterio.open(path, "w", **profile, **tiled) as file:
            file.write(scene.transpose(2, 0, 1))
        sam.segment([images[0]], **options)
        for _ in range(args.rounds):
            start, busy = time.perf_counter(), time.process_time()
            for _ in sam.segment_each(iter(images), **options):
                pass
            times["segment_each"].append(time.perf_counter() - start)
            cpu["segment_each"].append(time.process_time() - busy)
            start, busy = time.perf_counter(), time.process_time()
            with sam.segment_large(path, **options) as objects:
                times["segment_large"].append(time.perf_counter() - start)
                cpu["segment_large"].append(time.process_time() - busy)
                assert len(objects.grid) == len(images)
                start = time.perf_counter()
                objects.write_geopackage(Path(folder) / "scene.gpkg")
                times["geopackage"].append(time.perf_counter() - start)
            print(times, cpu, file=sys.stderr, flush=True)
    return {
        "images": len(images),
        "points_per_side": args.points,
        "seconds": times,
        "cpu_seconds": cpu,
        "rate_of_segment_large": _ratio(times),
        # On a busy machine the better measure: it leaves out what other processes take.
        "rate_of_segment_large_in_cpu_seconds": _ratio(cpu),
    }


def _ratio(seconds: dict[str, list[float]]) -> float:
    pairs = zip(seconds["segment_each"], seconds["segment_large"], strict=True)
    return statistics.median(each / large for each, large in pairs)


def samgeo(args: argparse.Namespace) -> dict[str, Any]:
    """samgeo's tiles, as its notebook of satellite images asks for them, and samfast's."""
    import samfast

    samfast.install_as_segment_anything()
    from samgeo import SamGeo, __version__

    options = {"points_per_side": args.points, **LENIENT}
    theirs = SamGeo("vit_xs", checkpoint=str(_weights()), device="cpu", sam_kwargs=options)
    tiles: list[list[int]] = []
    generate = theirs.mask_generator.generate

    def counted(image: NDArray[np.uint8]) -> Any:
        tiles.append([*image.shape[:2]])
        return generate(image)

    def segment(scene: Path) -> Labels:
        out = str(scene.with_name("out.tif"))
        chosen = {"batch_sample_size": (1024, 1024), "erosion_kernel": (3, 3)}
        theirs.generate(str(scene), out, batch=True, **chosen)
        return _connected(out)

    generate(mosaic(args.data, 1024, 0, 512))
    theirs.mask_generator.generate = counted
    # Its tiles of 1024 pixels are shown with 128 pixels around them, and do not overlap.
    row, ours = _beside(args, segment, lines=[1024])
    return {
        "points_per_side": args.points,
        "recipe_of_both": _stand_in_recipe(),
        "samgeo": {"version": __version__, **row, "tiles": tiles},
        "samfast": ours,
    }


def _connected(path: str) -> Labels:
    """The shapes of a binary raster."""
    import rasterio

    with rasterio.open(path) as file:
        labels: Labels = ndimage.label(file.read(1) > 0)[0]
    return labels


def micro_sam(args: argparse.Namespace) -> dict[str, Any]:
    """micro-sam's automatic masks in tiles, and samfast's."""
    import samfast

    samfast.install_as_segment_anything()
    import rasterio
    from micro_sam import __version__
    from micro_sam.automatic_segmentation import automatic_instance_segmentation
    from micro_sam.instance_segmentation import TiledAutomaticMaskGenerator
    from segment_anything import SamPredictor, sam_model_registry

    predictor = SamPredictor(sam_model_registry["vit_xs"](checkpoint=str(_weights())))
    # What micro-sam writes on the predictors that it loads itself, only vit_b, vit_l and vit_h.
    predictor.model_type = predictor.model_name = "vit_xs"
    predictor._hash = "vit_xs"

    def instances(pixels: NDArray[np.uint8]) -> Labels:
        generator = TiledAutomaticMaskGenerator(predictor, points_per_side=args.points)
        # Inner tiles of 960 with 64 pixels around them: the same four windows as samfast's.
        tiles = {"tile_shape": (960, 960), "halo": (64, 64)}
        thresholds = {**LENIENT, "box_nms_thresh": 0.7}
        labels: Labels = automatic_instance_segmentation(
            predictor, generator, pixels, ndim=2, verbose=False, **tiles, **thresholds
        )
        return labels

    def segment(scene: Path) -> Labels:
        with rasterio.open(scene) as file:
            return instances(np.ascontiguousarray(file.read().transpose(1, 2, 0)))

    instances(mosaic(args.data, 1024, 0, 512))
    row, ours = _beside(args, segment, lines=[960])
    return {
        "points_per_side": args.points,
        "recipe_of_both": _stand_in_recipe(),
        "micro_sam": {"version": __version__, **row},
        "samfast": ours,
    }


def _weights() -> Path:
    import samfast

    return Path(samfast.__file__).parent / "checkpoints" / "weights" / "vit_xs.safetensors"


def _stand_in_recipe() -> str:
    """The recipe that runs for other tools when samfast stands in for segment_anything."""
    import torch

    from samfast.segment_anything.recipe_runner import fastest_fp32

    return fastest_fp32(torch.device("cpu"))


LINES = (896, 960, 1024)
"""Where tiles and their inner parts begin and end in the scene of `_beside`."""

ELSEWHERE = tuple(line - 200 for line in LINES)
"""Lines on which nothing ends but by chance."""


def _beside(
    args: argparse.Namespace, segment: Callable[[Path], Labels], lines: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Another tool's tiles, and samfast's, on the scene of `rate`: both have segmented before.

    lines  along which the tool's inner tiles meet
    """
    import rasterio

    import samfast

    options = {"points_per_side": args.points, **LENIENT}
    scene = mosaic(args.data, 1024 + 896, 5, 640)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        profile = {"driver": "GTiff", "height": 1920, "width": 1920, "count": 3, "dtype": "uint8"}
        # In a corner of the grid of tiles, so that samfast, too, has four; elsewhere it has nine.
        corner = 896 * 0.3 * 1860, 896 * 0.3 * 17113
        place = rasterio.Affine(0.3, 0, corner[0], 0, -0.3, corner[1])
        with rasterio.open(path, "w", **profile, crs="EPSG:32618", transform=place) as file:
            file.write(scene.transpose(2, 0, 1))
        base = forget_peak()
        start, busy = time.perf_counter(), time.process_time()
        labels = segment(path)
        theirs = _costs(start, busy, base)
        theirs |= _ends([labels == each for each in np.unique(labels) if each], lines)
        print(theirs, file=sys.stderr, flush=True)
        del labels
        sam = samfast.load("vit_xs", device="cpu", recipe=_stand_in_recipe())
        sam.segment([mosaic(args.data, 1024, 0, 512)], **options)
        base = forget_peak()
        start, busy = time.perf_counter(), time.process_time()
        with sam.segment_large(path, **options) as objects:
            ours = _costs(start, busy, base)
            decoded = [coco_rle.decode(record["segmentation"]) for record in objects]
            ours |= _ends([mask.astype(np.bool_) for mask in decoded], [960])
            assert len(objects.grid) == 4
            ours["marked_cut"] = sum(each.cut for each in objects.store.objects())
    return theirs, ours


def _costs(start: float, busy: float, base: float) -> dict[str, float]:
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - busy,
        "most_mib_beyond_the_model": resident("VmHWM") - base,
    }


def _ends(masks: Masks, lines: Sequence[int]) -> dict[str, int]:
    """Objects, those that lie across the lines, and those that end along one of LINES."""
    masks = [mask for mask in masks if mask.sum() >= LEAST_AREA]
    return {
        "objects": len(masks),
        "across_tiles": sum(
            any(_both_sides(np.asarray(mask.any(axis)), line) for axis in (0, 1) for line in lines)
            for mask in masks
        ),
        "ending_along_a_border": sum(_ends_along(mask, LINES) for mask in masks),
        "ending_along_lines_elsewhere": sum(_ends_along(mask, ELSEWHERE) for mask in masks),
    }


def _ends_along(mask: NDArray[np.bool_], lines: Sequence[int], least: int = 24) -> bool:
    """Whether a straight part of the outline, as long as `least` pixels, lies within four of a
    line.
    """
    for image in (mask, mask.T):
        for line in lines:
            part = image[line - 5 : line + 5].astype(np.int8)
            steps = np.diff(part, axis=0)
            if max((steps > 0).sum(1).max(), (steps < 0).sum(1).max()) >= least:
                return True
    return False


def resident(key: str = "VmRSS") -> float:
    """MiB of this process, on Linux; VmHWM is the most there ever were."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {key}")


def forget_peak() -> float:
    """MiB of this process now, from which VmHWM counts again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident()


def write_scene(path: Path, data: Path, side: int) -> None:
    """A tiled GeoTIFF, JPEG-compressed, in UTM at 0.3 m, of photos of 512 x 512 pixels."""
    import rasterio

    names, draw, cell = photos(data), np.random.default_rng(0), 512
    profile: dict[str, Any] = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True}
    profile |= {"compress": "jpeg", "photometric": "ycbcr", "BIGTIFF": "YES", "crs": "EPSG:32618"}
    place = rasterio.Affine(0.3, 0, 500_000, 0, -0.3, 4_600_000)
    blocks = {"blockxsize": cell, "blockysize": cell}
    with (
        rasterio.Env(GDAL_CACHEMAX=128 << 20),
        rasterio.open(
            path, "w", height=side, width=side, transform=place, **profile, **blocks
        ) as file,
    ):
        for y in range(0, side, cell):
            row = np.zeros((min(cell, side - y), side, 3), dtype=np.uint8)
            for x in range(0, side, cell):
                with Image.open(names[draw.integers(len(names))]) as photo:
                    square = np.asarray(photo.convert("RGB").resize((cell, cell)))
                width = min(cell, side - x)
                row[:, x : x + width] = square[: len(row), :width]
            file.write(row.transpose(2, 0, 1), window=((y, y + len(row)), (0, side)))


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """A large scene with few clicks a tile: what is held beyond the model, and every output."""
    sam = _model()
    options = {"points_per_side": args.points, **LENIENT}
    tiles = {"tile": args.tile, "overlap": args.tile // 8}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scene(folder / "scene.tif", args.data, args.side)
        sam.segment([mosaic(args.data, 1024, 0, 512)], **options)
        base, most, every = resident(), 0.0, []

        def watch(done: int, total: int | None) -> None:
            nonlocal most
            most = max(most, resident())
            if done % 25 == 0 or done == total:
                every.append([done, round(resident() - base)])
            print(done, total, round(resident() - base), file=sys.stderr, flush=True)

        start = time.perf_counter()
        scene = folder / "scene.tif"
        with sam.segment_large(scene, progress=watch, **tiles, **options) as objects:
            seconds: dict[str, float] = {"segment_large": time.perf_counter() - start}
            after = resident("VmHWM") - base
            for ending, write in (
                ("gpkg", objects.write_geopackage),
                ("geojson", objects.write_geojson),
                ("labels.tif", objects.write_labels),
                ("labels.zarr", objects.write_labels),
                ("json", objects.write_coco),
            ):
                start = time.perf_counter()
                write(folder / f"scene.{ending}")
                seconds[ending] = time.perf_counter() - start
            return {
                "side": args.side,
                "tile": args.tile,
                "tiles": len(objects.grid),
                "points_per_side": args.points,
                "objects": len(objects),
                "joined": sum(each.tiles > 1 for each in objects.store.objects()),
                "mib_of_the_model": base,
                "most_mib_beyond_it": after,
                "most_mib_beyond_it_with_all_outputs": resident("VmHWM") - base,
                "mib_beyond_it_by_tiles_done": every,
                "seconds": seconds,
            }


def _model() -> Any:
    import samfast

    return samfast.load("vit_xs", device="cpu")


PARTS = {
    "joining": joining,
    "accuracy": accuracy,
    "crop": crop,
    "rate": rate,
    "memory": memory,
    "samgeo": samgeo,
    "micro_sam": micro_sam,
}


def main() -> int:
    """Measure the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("SAMFAST_DATA"))
    parser.add_argument("--points", type=int, default=16, help="clicks along a side of a window")
    parser.add_argument(
        "--workspace",
        type=Path,
        help="an existing folder, in which `crop` keeps its tiles, so that it can be interrupted",
    )
    parser.add_argument("--scenes", type=int, default=6, help="of `accuracy`")
    parser.add_argument("--rounds", type=int, default=3, help="of `rate`")
    parser.add_argument("--side", type=int, default=20_000, help="of `memory`, in pixels")
    parser.add_argument("--tile", type=int, default=1024, help="of `memory`")
    args = parser.parse_args()
    if args.data is None:
        parser.error("name --data, or set SAMFAST_DATA")

    from samfast.bench.environment import stamp

    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
    for part in args.parts:
        row = {"part": part, **PARTS[part](args), "environment": stamp()}
        rows = [*(each for each in rows if each["part"] != part), row]
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
