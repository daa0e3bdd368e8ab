r"""Measures automatic masks on a GPU: segment_anything, segment-anything-fast and samfast.

    python benchmarks/automatic_gpu.py --photos DIR --rivals-path DIR --out FILE
    python benchmarks/automatic_gpu.py --photos DIR --rivals-path DIR --out FILE \
        --models vit_b vit_l vit_h --time-limit 150

All have vit_xs's packaged weights; the rivals' builders accept its sizes. For speed the photos are
enlarged to a million pixels, for parity they keep their size. Each row has a process of its own, so
that memory and caches are separate; a rival that raises is a row that says so. The file is written
after each row.

The other models have the weights of vit_xs, widened, so that their masks are those of objects.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from benchmarks.widened_weights import widened_weights  # noqa: E402
from samfast.automatic_masks import memory_plan  # noqa: E402
from samfast.bench import rivals  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.bench.peak_memory import Peak  # noqa: E402
from samfast.bench.timing import synchronize  # noqa: E402
from samfast.cli.console import write_json  # noqa: E402
from samfast.model.config import CONFIGS  # noqa: E402
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
ROWS = {
    "vit_xs": (ORIGINAL, *list(OWN)[1:], *FAST),
    "others": (ORIGINAL, "fused", "fp8", list(FAST)[-1]),
}
"""The rows of a model by default."""


@dataclass(frozen=True)
class Subject:
    """A model as all rows of it have it.

    weights     its file; None: the packaged ones
    thresholds  of the filters
    """

    model: str
    weights: str | None
    thresholds: dict[str, float]

    def load(self, recipe: str | Recipe, batch_size: int | None = None) -> samfast.SamFast:
        """It under a recipe."""
        return samfast.load(
            self.model,
            checkpoint=self.weights,
            device=DEVICE,
            recipe=recipe,
            batch_size=batch_size,
        )


def enlarged(photo: Photo) -> Photo:
    """The photo with about PIXELS pixels."""
    scale = (PIXELS / (photo.shape[0] * photo.shape[1])) ** 0.5
    size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def rival(
    subject: Subject,
    name: str,
    path: str | None,
    options: dict[str, Any],
    batch: int | None = None,
) -> Generate:
    """A rival's generator as its README has it: the second in bfloat16 with its encoder
    compiled.
    """
    if DEVICE == "cpu":  # where torchvision has no build for every PyTorch
        from tests import oracle

        oracle.load()
    plain = samfast.load(subject.model, checkpoint=subject.weights, device="cpu", recipe="fp32")
    state = plain.model.state_dict()
    loaded = rivals.load(f"rival:{name}", subject.model, state, torch.device(DEVICE), path)
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


def ours(subject: Subject, recipe: str | Recipe, options: dict[str, Any]) -> Generate:
    """samfast's `segment`."""
    sam = subject.load(recipe)
    return lambda photo: sam.segment([photo], **options)[0]


def streamed(
    subject: Subject,
    recipe: str | Recipe,
    options: dict[str, Any],
    photos: list[Photo],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Seconds a photo and the most memory where `segment_each` is given many at once, STREAM of
    them encoded together; and the time from one result to the next.
    """
    sam = subject.load(recipe, STREAM)
    many = (photos * arguments.stream)[: arguments.stream]
    sam.segment(many, **options)
    seconds, intervals = [], []
    with Peak(DEVICE) as peak:
        for _ in range(arguments.repeats):
            start = last = time.perf_counter()
            for _ in sam.segment_each(many, **options):
                now = time.perf_counter()
                intervals.append(now - last)
                last = now
            seconds.append((time.perf_counter() - start) / len(many))
    return {
        "batch_size": STREAM,
        "photos": len(many),
        "seconds_a_photo": statistics.median(seconds),
        "samples": seconds,
        "interval": percentiles(intervals),
        "peak_memory_bytes": peak.bytes,
    }


def percentiles(samples: list[float]) -> dict[str, float]:
    """The 50th and the 90th, nearest rank."""
    ordered = sorted(samples)
    return {f"p{p}": ordered[math.ceil(p / 100 * len(ordered)) - 1] for p in (50, 90)}


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
        "latency": percentiles(seconds),
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


def generator(subject: Subject, name: str, path: str | None, options: dict[str, Any]) -> Generate:
    """What a row measures."""
    if name in OWN:
        return ours(subject, OWN[name], options)
    if name in FAST:
        return rival(subject, "segment-anything-fast", path, options, FAST[name])
    return rival(subject, "segment-anything", path, options)


def photos_of(arguments: argparse.Namespace) -> tuple[list[Photo], list[Photo]]:
    """The photos for speed and for parity."""
    photos = [
        np.asarray(Image.open(file).convert("RGB"))
        for file in spread(arguments.photos, max(arguments.fast, arguments.same))
    ]
    return [enlarged(photo) for photo in photos[: arguments.fast]], photos[: arguments.same]


def measured(
    subject: Subject, name: str, arguments: argparse.Namespace, truth: Path
) -> dict[str, Any]:
    """A row; the original's masks are written to `truth` or read from it."""
    if arguments.batches_per_call is not None:
        memory_plan.MAX_BATCHES_PER_CALL = arguments.batches_per_call
    large, photos = photos_of(arguments)
    thresholds, path = subject.thresholds, arguments.rivals_path
    # The original cleans no small regions by default; samfast does with the weights of vit_xs.
    alike = {**thresholds, "min_mask_region_area": 0}
    options = {**alike, "points_per_side": arguments.points_per_side}
    fewer = {**alike, "points_per_side": arguments.same_points_per_side}
    row: dict[str, Any] = {"thresholds": thresholds, "points_per_side": arguments.points_per_side}
    row["batches_per_call"] = memory_plan.MAX_BATCHES_PER_CALL
    if large:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=not name.startswith("fp32")):
            row |= measure(generator(subject, name, path, options), large, arguments.repeats)
            if name in OWN and arguments.stream:
                row["stream"] = streamed(subject, OWN[name], options, large, arguments)
    if photos and (name == ORIGINAL or (name in OWN and truth.exists())):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            generate = generator(subject, name, path, fewer)
            results = [generate(photo) for photo in photos]
        if name == ORIGINAL:
            truth.write_text(json.dumps(results), encoding="utf-8")
        original: list[Records] = json.loads(truth.read_text(encoding="utf-8"))
        row["agreement"] = {
            "points_per_side": arguments.same_points_per_side,
            **agreement(results, original),
        }
    return row


def subject_of(model: str, arguments: argparse.Namespace, folder: Path) -> Subject:
    """The model's weights, which are written to a folder unless packaged, and thresholds."""
    thresholds = dict(zip(THRESHOLDS, arguments.thresholds, strict=True))
    if model == "vit_xs":
        return Subject(model, None, thresholds)
    file = folder / f"{model}.pth"
    torch.save(widened_weights(model), file)
    return Subject(model, str(file), thresholds)


def spread(folder: str, count: int) -> list[Path]:
    """`count` photos of a folder, or all, evenly spread."""
    files = sorted(Path(folder).glob("*.jpg"))
    return files[:: max(1, len(files) // max(1, count))][:count]


def attempt(
    subject: Subject, name: str, arguments: argparse.Namespace, truth: Path
) -> dict[str, Any]:
    """The row, or what went wrong."""
    try:
        row = {"status": "ok", **measured(subject, name, arguments, truth)}
    except Exception as error:
        row = failed(f"{type(error).__name__}: {error}")
    return row


def failed(reason: str) -> dict[str, Any]:
    """The status of a row that was not measured."""
    return {"status": f"failed: {reason}".splitlines()[0][:300]}


def in_a_process(limit: float, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do the work in another process, and return its result; it is ended after `limit` seconds.

    Raises RuntimeError, with the reason, for a process that is ended or dies.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(None if math.isinf(limit) else limit):
            raise RuntimeError(f"not done within the {limit:.0f} s that were left")
        result = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(result, Exception):
        raise RuntimeError(f"{type(result).__name__}: {result}")
    return result


def _send(sender: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(work(*arguments))
    except Exception as error:  # the parent names it in the row
        sender.send(error)


def row_of(
    subject: Subject | str, name: str, arguments: argparse.Namespace, truth: Path, until: float
) -> dict[str, Any]:
    """The row of a model; a subject that could not be made is the reason for having none."""
    row: dict[str, Any]
    if isinstance(subject, str):
        row = failed(subject)
    else:
        try:
            left = max(1.0, until - time.monotonic())
            row = in_a_process(left, attempt, subject, name, arguments, truth)
        except RuntimeError as error:
            row = failed(str(error))
    return {"what": name, **row}


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
    made.add_argument("--stream", type=int, default=4 * STREAM, help="photos of a stream; 0: none")
    made.add_argument(
        "--batches-per-call",
        type=int,
        metavar="N",
        help="decode so many batches of points together, instead of "
        f"{memory_plan.MAX_BATCHES_PER_CALL}",
    )
    made.add_argument("--models", nargs="+", choices=tuple(CONFIGS), default=["vit_xs"])
    made.add_argument(
        "--rows", nargs="+", choices=(ORIGINAL, *OWN, *FAST), default=None, metavar="ROW"
    )
    made.add_argument(
        "--time-limit", type=float, default=math.inf, metavar="SECONDS", help="for each model"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """0, or 1 if a row failed."""
    arguments = parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    for model in arguments.models:
        until = time.monotonic() + arguments.time_limit
        of_model: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            subject: Subject | str
            try:
                subject = in_a_process(arguments.time_limit, subject_of, model, arguments, folder)
            except RuntimeError as error:
                subject = f"the model was not made: {error}"
            chosen = arguments.rows or ROWS.get(model, ROWS["others"])
            for name in chosen:
                row = row_of(subject, name, arguments, folder / "original.json", until)
                of_model.append({"model": model, **row, "environment": stamp(DEVICE)})
                rows.append(of_model[-1])
                compare(of_model)
                write_json(rows, arguments.out)
                left_out = ("environment", "samples", "thresholds")
                shown = {key: value for key, value in rows[-1].items() if key not in left_out}
                print(json.dumps(shown), file=sys.stderr, flush=True)
    return (
        0 if all(row["status"] == "ok" or row["what"].startswith("rival:") for row in rows) else 1
    )


def compare(rows: list[dict[str, Any]]) -> None:
    """Note in each row of a model how many times as long a rival takes."""
    for each in rows:
        each["ratio_to"] = {
            other["what"]: other["seconds_a_photo"] / each["seconds_a_photo"]
            for other in rows
            if other["what"].startswith("rival:")
            and "seconds_a_photo" in other
            and "seconds_a_photo" in each
        }


if __name__ == "__main__":
    sys.exit(main())
