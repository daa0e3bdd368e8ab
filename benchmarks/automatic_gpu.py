r"""Everything in photos, by segment_anything, segment-anything-fast and samfast, with vit_xs's trained weights.

    python benchmarks/automatic_gpu.py --photos DIR --rivals-path DIR --out FILE

The rivals' builders take vit_xs's sizes. Photos are enlarged to a million pixels for the speed; for parity they are
taken as they are. A rival that raises is a row that says so. The file is written again after each row.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
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
from samfast.apps.console import write_json  # noqa: E402
from samfast.bench import rivals  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.bench.memory import Peak  # noqa: E402
from samfast.bench.timing import synchronize  # noqa: E402
from samfast.recipes import RECIPES, Recipe  # noqa: E402

Photo = NDArray[np.uint8]
Records = list[dict[str, Any]]
Generate = Callable[[Photo], Records]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIXELS = 1_000_000
STREAM = 8
"""Photos encoded at a time where many are given at once."""
THRESHOLDS = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.7, "box_nms_thresh": 0.8}
"""At which the original keeps at least 30 masks a photo on average: vit_xs rates its masks low."""


def enlarged(photo: Photo) -> Photo:
    """The photo with about PIXELS pixels."""
    scale = (PIXELS / (photo.shape[0] * photo.shape[1])) ** 0.5
    size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def rival(name: str, path: str | None, options: dict[str, Any], batch: int | None = None) -> Generate:
    """A rival's generator as its README has it: the second in bfloat16 with its encoder compiled."""
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
            found: Records = generator.generate(photo)
        return found

    return generate


def ours(recipe: str | Recipe, options: dict[str, Any]) -> Generate:
    """samfast's `segment`."""
    sam = samfast.load("vit_xs", device=DEVICE, recipe=recipe, batch_size=1)
    return lambda photo: sam.segment([photo], **options)[0]


def streamed(
    recipe: str | Recipe, options: dict[str, Any], photos: list[Photo], repeats: int
) -> dict[str, Any]:
    """Seconds a photo and the most memory where `segment` is given many at once, STREAM of them encoded together."""
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


def agreement(found: list[Records], truth: list[Records]) -> dict[str, Any]:
    """Counts, and the mean IoU of each of the truth's masks with the most similar of the found ones."""
    best: list[float] = []
    for own, their in zip(found, truth, strict=True):
        if not their:
            continue
        if not own:
            best += [0.0] * len(their)
            continue
        a, b = ([each["segmentation"] for each in records] for records in (own, their))
        best += coco.iou(b, a, [0] * len(a)).max(1).tolist()
    return {
        "photos": len(truth),
        "masks": sum(map(len, found)),
        "original_masks": sum(map(len, truth)),
        "photos_of_equal_count": sum(len(a) == len(b) for a, b in zip(found, truth, strict=True)),
        "matched_iou": statistics.mean(best) if best else None,
        "least_matched_iou": min(best) if best else None,
    }


def main(argv: list[str] | None = None) -> int:
    """0, or 1 if a row failed."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--photos", required=True, metavar="DIR", help="a folder of .jpg files")
    parser.add_argument("--rivals-path", metavar="DIR")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--fast", type=int, default=4, help="photos to time")
    parser.add_argument("--same", type=int, default=20, help="photos to compare the masks of")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--same-points-per-side", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", default=["fused", "fp8"])
    arguments = parser.parse_args(argv)
    files = sorted(Path(arguments.photos).glob("*.jpg"))
    step = max(1, len(files) // max(arguments.fast, arguments.same))
    photos = [np.asarray(Image.open(file).convert("RGB")) for file in files[::step]]
    large = [enlarged(photo) for photo in photos[: arguments.fast]]
    some = photos[: arguments.same]
    options = {**THRESHOLDS, "points_per_side": arguments.points_per_side}
    fewer = {**THRESHOLDS, "points_per_side": arguments.same_points_per_side}
    path = arguments.rivals_path
    exact = replace(RECIPES["fp32_sdpa"], prompts="packed")
    makers: dict[str, Callable[[dict[str, Any]], Generate]] = {
        "rival:segment-anything": lambda o: rival("segment-anything", path, o),
        "fp32, packed": lambda o: ours(exact, o),
        **{name: (lambda o, name=name: ours(name, o)) for name in arguments.recipes},  # type: ignore[misc]
        # Last, because compiling its encoder may take longer than there is time.
        "rival:segment-anything-fast, 1 point at a time": lambda o: rival(
            "segment-anything-fast", path, o, 1
        ),
        "rival:segment-anything-fast, 8 points at a time": lambda o: rival(
            "segment-anything-fast", path, o, 8
        ),
    }
    own: dict[str, str | Recipe] = {"fp32, packed": exact, **{name: name for name in arguments.recipes}}
    rows: list[dict[str, Any]] = []
    truth: list[Records] | None = None
    for name, make in makers.items():
        row: dict[str, Any] = {
            "what": name,
            "status": "ok",
            "thresholds": THRESHOLDS,
            "points_per_side": arguments.points_per_side,
        }
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=not name.startswith("fp32")):
                row |= measure(make(options), large, arguments.repeats)
                if name in own:
                    row["stream"] = streamed(own[name], options, large, arguments.repeats)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                if name == "rival:segment-anything" or not name.startswith("rival:"):
                    generate = make(fewer)
                    found = [generate(photo) for photo in some]
                    truth = truth or found
                    row["agreement"] = {
                        "points_per_side": arguments.same_points_per_side,
                        **agreement(found, truth),
                    }
        except Exception as error:
            row["status"] = f"failed: {type(error).__name__}: {error}".splitlines()[0][:300]
        row["environment"] = stamp(DEVICE)
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
        shown = {k: v for k, v in row.items() if k not in ("environment", "samples", "thresholds")}
        print(json.dumps(shown), file=sys.stderr, flush=True)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return 0 if all(row["status"] == "ok" or row["what"].startswith("rival:") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
