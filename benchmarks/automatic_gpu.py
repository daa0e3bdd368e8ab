r"""Measures automatic masks on a GPU: segment_anything, segment-anything-fast and samfast.

    python benchmarks/automatic_gpu.py --photos DIR --rivals-path DIR --out FILE

All have vit_xs's packaged weights; the rivals' builders accept its sizes. For speed the photos are
enlarged to a million pixels, for parity they keep their size. Each row has a process of its own, so
that memory and caches are separate; a rival that raises is a row that says so. The file is written
after each row.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402
from pycocotools import mask as coco  # noqa: E402

import samfast  # noqa: E402
from samfast.bench import rivals  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.bench.peak_memory import Peak  # noqa: E402
from samfast.bench.timing import synchronize  # noqa: E402
from samfast.cli.console import write_json  # noqa: E402
from samfast.recipes import RECIPES, Recipe  # noqa: E402

Photo = NDArray[np.uint8]
Records = list[dict[str, Any]]
Generate = Callable[[Photo], Records]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIXELS = 1_000_000
STREAM = 8
"""Photos encoded at a time where many are given at once."""
THRESHOLDS = {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95, "box_nms_thresh": 0.9}
"""The original's defaults but for suppression.

Of two overlapping masks suppression keeps the one of higher predicted IoU, perhaps by a thousandth,
which half precision may reverse. At 0.9 the two masks are nearly the same.
"""

ORIGINAL = "rival:segment-anything"
FAST = {f"rival:segment-anything-fast, {n} points at a time": n for n in (1, 8)}
OWN: dict[str, str | Recipe] = {
    "fp32": "fp32",
    "fp32, packed": replace(RECIPES["fp32_sdpa"], prompts="packed"),
    **{name: name for name in ("fused", "fp16_fused", "fp8")},
}
ROWS = (ORIGINAL, *list(OWN)[1:], *FAST)


def enlarged(photo: Photo) -> Photo:
    """The photo with about PIXELS pixels."""
    scale = (PIXELS / (photo.shape[0] * photo.shape[1])) ** 0.5
    size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def rival(
    name: str, path: str | None, options: dict[str, Any], batch: int | None = None
) -> Generate:
    """A rival's generator as its README has it: the second in bfloat16 with its encoder
    compiled.
    """
    weights = samfast.load("vit_xs", device="cpu", recipe="fp32").model.state_dict()
    loaded = rivals.load(f"rival:{name}", "vit_xs", weights, torch.device(DEVICE), path)
    sam = loaded.predictor.model
    if batch is not None:
        sam.image_encoder = torch.compile(sam.image_encoder, mode="max-autotune")
    package = importlib.import_module(f"{name.replace('-', '_')}.automatic_mask_generator")
    extra = {} if batch is None else {"process_batch_size": batch}
    generator = package.SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **options, **extra)

    def generate(photo: Photo) -> Records:
        with torch.no_grad():
            records: Records = generator.generate(photo)
        return records

    return generate


def ours(recipe: str | Recipe, options: dict[str, Any]) -> Generate:
    """samfast's `segment`."""
    sam = samfast.load("vit_xs", device=DEVICE, recipe=recipe)
    return lambda photo: sam.segment([photo], **options)[0]


def streamed(
    recipe: str | Recipe, options: dict[str, Any], photos: list[Photo], repeats: int
) -> dict[str, Any]:
    """Seconds a photo and the most memory where `segment` is given many at once, STREAM of them
    encoded together.
    """
    sam = samfast.load("vit_xs", device=DEVICE, recipe=recipe, batch_size=STREAM)
    many = (photos * STREAM)[: max(len(photos), 4 * STREAM)]
    sam.segment(many, **options)
    seconds = []
    with Peak(DEVICE) as peak:
        for _ in range(repeats):
            start = time.perf_counter()
            sam.segment(many, **options)
            seconds.append((time.perf_counter() - start) / len(many))
    return {
        "batch_size": STREAM,
        "photos": len(many),
        "seconds_a_photo": statistics.median(seconds),
        "samples": seconds,
        "peak_memory_bytes": peak.bytes,
    }


def measure(generate: Generate, photos: list[Photo], repeats: int) -> dict[str, Any]:
    """Seconds a photo, after a first round that warms up, and the most memory."""
    start = time.perf_counter()
    generate(photos[0])
    first = time.perf_counter() - start
    for photo in photos:
        generate(photo)
    seconds, counts = [], []
    with Peak(DEVICE) as peak:
        for _ in range(repeats):
            for photo in photos:
                synchronize(torch.device(DEVICE))
                start = time.perf_counter()
                counts.append(len(generate(photo)))
                synchronize(torch.device(DEVICE))
                seconds.append(time.perf_counter() - start)
    return {
        "seconds_a_photo": statistics.median(seconds),
        "samples": seconds,
        "first_photo_seconds": first,
        "peak_memory_bytes": peak.bytes,
        "masks_a_photo": statistics.mean(counts),
    }


def agreement(results: list[Records], truth: list[Records]) -> dict[str, Any]:
    """Counts, and the mean IoU of each of the truth's masks with the most similar
    result.
    """
    best: list[float] = []
    for ours, theirs in zip(results, truth, strict=True):
        if not theirs:
            continue
        if not ours:
            best += [0.0] * len(theirs)
            continue
        a, b = ([each["segmentation"] for each in records] for records in (ours, theirs))
        best += coco.iou(b, a, [0] * len(a)).max(1).tolist()
    return {
        "photos": len(truth),
        "masks": sum(map(len, results)),
        "original_masks": sum(map(len, truth)),
        "photos_of_equal_count": sum(len(a) == len(b) for a, b in zip(results, truth, strict=True)),
        "matched_iou": statistics.mean(best) if best else None,
        "least_matched_iou": min(best) if best else None,
    }


def generator(name: str, path: str | None, options: dict[str, Any]) -> Generate:
    """What a row measures."""
    if name in OWN:
        return ours(OWN[name], options)
    if name in FAST:
        return rival("segment-anything-fast", path, options, FAST[name])
    return rival("segment-anything", path, options)


def measured(name: str, arguments: argparse.Namespace, truth: Path) -> dict[str, Any]:
    """A row; the original's masks are written to `truth` or read from it."""
    photos = [
        np.asarray(Image.open(file).convert("RGB"))
        for file in spread(arguments.photos, max(arguments.fast, arguments.same))
    ]
    large = [enlarged(photo) for photo in photos[: arguments.fast]]
    thresholds = dict(zip(THRESHOLDS, arguments.thresholds, strict=True))
    options = {**thresholds, "points_per_side": arguments.points_per_side}
    fewer = {**thresholds, "points_per_side": arguments.same_points_per_side}
    row: dict[str, Any] = {"thresholds": thresholds, "points_per_side": arguments.points_per_side}
    if large:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=not name.startswith("fp32")):
            row |= measure(
                generator(name, arguments.rivals_path, options), large, arguments.repeats
            )
            if name in OWN:
                row["stream"] = streamed(OWN[name], options, large, arguments.repeats)
    if name == ORIGINAL or (name in OWN and truth.exists()):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            generate = generator(name, arguments.rivals_path, fewer)
            results = [generate(photo) for photo in photos[: arguments.same]]
        if name == ORIGINAL:
            truth.write_text(json.dumps(results), encoding="utf-8")
        original: list[Records] = json.loads(truth.read_text(encoding="utf-8"))
        row["agreement"] = {
            "points_per_side": arguments.same_points_per_side,
            **agreement(results, original),
        }
    return row


def spread(folder: str, count: int) -> list[Path]:
    """`count` photos of a folder, or all, evenly spread."""
    files = sorted(Path(folder).glob("*.jpg"))
    return files[:: max(1, len(files) // max(1, count))][:count]


def attempt(name: str, arguments: argparse.Namespace, truth: Path) -> dict[str, Any]:
    """The row, or what went wrong."""
    try:
        row = {"status": "ok", **measured(name, arguments, truth)}
    except Exception as error:
        row = failed(error)
    return {"what": name, **row, "environment": stamp(DEVICE)}


def failed(error: Exception) -> dict[str, Any]:
    """The status of a row that was not measured."""
    return {"status": f"failed: {type(error).__name__}: {error}".splitlines()[0][:300]}


def in_a_process(name: str, arguments: argparse.Namespace, truth: Path) -> dict[str, Any]:
    """The row from a process of its own; a process that dies is a failed row."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(attempt, name, arguments, truth).result()
        except BrokenProcessPool as error:
            return {"what": name, **failed(error), "environment": stamp(DEVICE)}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__ is not None
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--photos", required=True, metavar="DIR", help="a folder of .jpg files")
    made.add_argument("--rivals-path", metavar="DIR")
    made.add_argument("--out", required=True, metavar="FILE")
    made.add_argument("--fast", type=int, default=4, help="photos to time")
    made.add_argument("--same", type=int, default=20, help="photos to compare the masks of")
    made.add_argument("--points-per-side", type=int, default=32)
    made.add_argument("--same-points-per-side", type=int, default=16)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument(
        "--thresholds",
        type=float,
        nargs=3,
        default=list(THRESHOLDS.values()),
        metavar=tuple(THRESHOLDS),
    )
    made.add_argument(
        "--rows", nargs="+", choices=(ORIGINAL, *OWN, *FAST), default=ROWS, metavar="ROW"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """0, or 1 if a row failed."""
    arguments = parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.rows:
            row = in_a_process(name, arguments, Path(folder) / "original.json")
            rows.append(row)
            for each in rows:
                each["ratio_to"] = {
                    other["what"]: other["seconds_a_photo"] / each["seconds_a_photo"]
                    for other in rows
                    if other["what"].startswith("rival:")
                    and "seconds_a_photo" in other
                    and "seconds_a_photo" in each
                }
            write_json(rows, arguments.out)
            left_out = ("environment", "samples", "thresholds")
            shown = {key: value for key, value in row.items() if key not in left_out}
            print(json.dumps(shown), file=sys.stderr, flush=True)
    return (
        0 if all(row["status"] == "ok" or row["what"].startswith("rival:") for row in rows) else 1
    )


if __name__ == "__main__":
    sys.exit(main())
