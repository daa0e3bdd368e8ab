"""Times the way from JPEG files and boxes of a COCO file to masks in host memory.

    python benchmarks/files_to_masks.py [--data DIR] [--models vit_b vit_xs] [--device cuda]
        [--recipe fused] [--rounds N] [--first SECONDS] [--rivals-path DIR] [--json FILE]

DIR holds images/ and annotations.json; without it, 165 photos of 640 x 480 pixels with 11 boxes
each are drawn. Each round runs each way in turn over all files, so that other load on the machine
affects all alike; the first round has what a process does once, and is told apart. Each model is
measured in another process, which begins with --first SECONDS of `predict_each` alone, round after
round: what a user sees in the first minute. The original has fewer rounds. The ways:

    segment-anything  the original's SamPredictor, file by file: read, set_image, predict_torch, cpu
    batches           samfast's `predict` of batch_size files, then `.cpu()`
    predict_each      `SamFast.predict_each`, masks as bool
    predict_each_rle  the same with output_mode="coco_rle"

Weights are random unless the model is vit_xs: they say speed. Files are decoded by Pillow; decoding
JPEG on the GPU was not tried.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402

import samfast  # noqa: E402
from samfast import coco_rle  # noqa: E402
from samfast.bench import rivals  # noqa: E402
from samfast.bench.coco_dataset import open_dataset  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.errors import MissingExtraError  # noqa: E402
from samfast.loading import random_weights  # noqa: E402
from samfast.model.config import CONFIGS  # noqa: E402

PHOTOS, SIZE, BOXES = 165, (480, 640), 11
"""The drawn data set: photos, their (height, width), boxes of each."""

RIVAL = "rival:segment-anything"

Answer = Iterator[list[NDArray[np.bool_]]]
"""For each file in turn, its masks (H, W), one for each box."""


@dataclass(frozen=True)
class File:
    """A JPEG file and its boxes, XYXY in pixels."""

    path: Path
    boxes: list[list[float]]


def drawn(folder: Path, count: int) -> list[File]:
    """Photos of soft blobs and fine noise, whose files are about as large as those of photos."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = soft + rng.normal(0, 8, soft.shape).astype(np.int16)
        path = folder / f"{number:03}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)
        corners = rng.uniform((0, 0), (width - 120, height - 120), (BOXES, 2))
        sides = rng.uniform(20, 120, (BOXES, 2))
        files.append(File(path, np.concatenate([corners, corners + sides], 1).round(1).tolist()))
    return files


def annotated(data: str, count: int) -> list[File]:
    """The first files of a COCO data set that have boxes."""
    files = []
    for image in open_dataset(data).images:
        boxes = [each.box for each in image.annotations if each.box is not None]
        if boxes:
            corners = [[x, y, x + width, y + height] for x, y, width, height in boxes]
            files.append(File(image.path, corners))
    return files[:count]


def prompts(files: list[File]) -> list[samfast.Prompts]:
    """The boxes of each file."""
    return [samfast.Prompts(boxes=file.boxes) for file in files]


def in_batches(sam: samfast.SamFast, files: list[File]) -> Answer:
    """A batch of files, then the next."""
    for start in range(0, len(files), sam.batch_size):
        batch = files[start : start + sam.batch_size]
        for masks in sam.predict([f.path for f in batch], prompts(batch), multimask=False):
            yield [*masks.cpu().masks[:, 0].numpy()]


def streamed(sam: samfast.SamFast, files: list[File]) -> Answer:
    """All files as one stream."""
    for masks in sam.predict_each([f.path for f in files], prompts(files), multimask=False):
        yield [*masks.masks[:, 0].numpy()]


def streamed_rle(sam: samfast.SamFast, files: list[File]) -> Iterator[list[dict[str, Any]]]:
    """All files as one stream, with masks as COCO RLE."""
    for records in sam.predict_each(
        [f.path for f in files], prompts(files), multimask=False, output_mode="coco_rle"
    ):
        yield [record["segmentation"] for record in records]


def by_the_original(predictor: Any, files: list[File]) -> Answer:
    """As the original's notebook asks for several boxes of an image."""
    for file in files:
        pixels = np.asarray(Image.open(file.path).convert("RGB"))
        predictor.set_image(pixels)
        boxes = torch.tensor(file.boxes, device=predictor.device)
        transformed = predictor.transform.apply_boxes_torch(boxes, pixels.shape[:2])
        masks, _, _ = predictor.predict_torch(None, None, transformed, multimask_output=False)
        yield [*masks[:, 0].cpu().numpy()]


def original(model: str, device: torch.device, path: str | None) -> Any:
    """The original's predictor with the same weights; None where it is not installed."""
    state = weights(model)
    try:
        if device.type == "cpu":  # where torchvision has no build for every PyTorch
            from tests import oracle

            oracle.load()
        return rivals.load(RIVAL, model, state, device, path).predictor
    except (ImportError, MissingExtraError) as error:
        print(f"the original is left out: {error}", file=sys.stderr)
        return None


def weights(model: str) -> dict[str, torch.Tensor]:
    """Those that samfast runs with, under Meta's keys."""
    if model == "vit_xs":
        return samfast.load(model, device="cpu", recipe="fp32").model.state_dict()
    return random_weights(CONFIGS[model]).state_dict()


def overlap(first: Any, second: Any) -> float:
    """The IoU of two masks; 1 where both are empty."""
    a, b = coco_rle.decode(first), coco_rle.decode(second)
    either = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / either) if either else 1.0


def agreement(one: Any, other: Any) -> float:
    """The mean IoU of two ways' masks, box by box."""
    pairs = zip(one, other, strict=True)
    return statistics.fmean(
        overlap(a, b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True)
    )


def run_once(way: Callable[[], Any]) -> tuple[float, float]:
    """Seconds to the first file's masks, and to the last one's."""
    start = time.perf_counter()
    first = 0.0
    for number, _ in enumerate(way()):
        if number == 0:
            first = time.perf_counter() - start
    return first, time.perf_counter() - start


def first_seconds(way: Callable[[], Any], files: int, seconds: float) -> dict[str, Any] | None:
    """The rate of a way in the first seconds of a process, over whole rounds; None for none."""
    if seconds <= 0:
        return None
    rounds = [run_once(way)]
    while sum(last for _, last in rounds) < seconds:
        rounds.append(run_once(way))
    total = sum(last for _, last in rounds)
    return {
        "seconds": total,
        "images_per_second": len(rounds) * files / total,
        "rounds": [files / last for _, last in rounds],
    }


def measure(arguments: argparse.Namespace, files: list[File]) -> list[dict[str, Any]]:
    """A row for each way."""
    device = torch.device(arguments.device)
    model = arguments.models[0]
    checkpoint = None if model == "vit_xs" else "random"
    started = time.perf_counter()
    sam = samfast.load(
        model,
        checkpoint=checkpoint,
        device=device,
        recipe=arguments.recipe,
        batch_size=arguments.batch_size,
    )
    load_seconds = time.perf_counter() - started
    ways: dict[str, Callable[[], Any]] = {
        "predict_each": lambda: streamed(sam, files),
        "predict_each_rle": lambda: streamed_rle(sam, files),
        "batches": lambda: in_batches(sam, files),
    }
    early = first_seconds(ways["predict_each"], len(files), arguments.first)
    predictor = original(model, device, arguments.rivals_path)
    if predictor is not None:
        ways[RIVAL] = lambda: by_the_original(predictor, files)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(1 + arguments.rounds):
        for name, way in ways.items():
            if name != RIVAL or number <= arguments.rival_rounds:
                times[name].append(run_once(way))
    few = files[: arguments.compared]
    ours = [*streamed(sam, few)]
    same = agreement(ours, streamed_rle(sam, few)), agreement(ours, in_batches(sam, few))
    theirs = None if predictor is None else agreement(ours, by_the_original(predictor, few))
    environment = stamp(device)
    return [
        {
            "way": name,
            "model": model,
            "weights": "packaged" if checkpoint is None else checkpoint,
            "recipe": "fp32" if name == RIVAL else sam.recipe_name,
            "batch_size": 1 if name == RIVAL else sam.batch_size,
            "files": len(files),
            "boxes": sum(len(file.boxes) for file in files),
            "cores": os.cpu_count(),
            "images_per_second": len(files) / statistics.median(last for _, last in rounds[1:]),
            "first_round": {
                "images_per_second": len(files) / rounds[0][1],
                "seconds_to_first_masks": rounds[0][0],
            },
            "first_seconds": early if name == "predict_each" else None,
            "load_seconds": None if name == RIVAL else load_seconds,
            "spread": [
                len(files) / max(last for _, last in rounds[1:]),
                len(files) / min(last for _, last in rounds[1:]),
            ],
            "rounds": len(rounds) - 1,
            "miou_of_ways": min(same),
            "miou_to_original": theirs,
            "environment": environment,
        }
        for name, rounds in times.items()
    ]


def main() -> int:
    """0; 1 if samfast's ways give different masks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--models", nargs="+", choices=tuple(CONFIGS), default=["vit_b"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rival-rounds", type=int, default=2)
    parser.add_argument(
        "--first", type=float, default=60.0 if torch.cuda.is_available() else 0.0, metavar="SECONDS"
    )
    parser.add_argument("--files", type=int, default=PHOTOS)
    parser.add_argument("--compared", type=int, default=8, help="files whose masks are compared")
    parser.add_argument("--rivals-path", metavar="DIR")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if len(arguments.models) > 1:
        rows = of_each_model(arguments.models)
    else:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.data:
                files = annotated(arguments.data, arguments.files)
            else:
                files = drawn(Path(folder), arguments.files)
            rows = measure(arguments, files)
    text = json.dumps(rows, indent=2) + "\n"
    print(text)
    if arguments.json:
        arguments.json.write_text(text, encoding="utf-8")
    return 0 if rows and all(row["miou_of_ways"] > 0.999 for row in rows) else 1


def of_each_model(models: list[str]) -> list[dict[str, Any]]:
    """The rows of this command line for one model after another, each in a new process."""
    rows: list[dict[str, Any]] = []
    given = sys.argv[1:]
    place = given.index("--models")
    for model in models:
        one = [*given[: place + 1], model, *given[place + 1 + len(models) :]]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            command = [sys.executable, __file__, *one, "--json", str(file)]
            done = subprocess.run(command, stdout=subprocess.DEVNULL)
            if not file.exists():
                print(f"{model}: ended with exit code {done.returncode}", file=sys.stderr)
                continue
            rows += json.loads(file.read_text(encoding="utf-8"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
