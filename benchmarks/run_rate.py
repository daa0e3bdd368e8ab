"""Times `samfast run` on one device against the plain loop over the same photos, and its memory.

    python benchmarks/run_rate.py [--data DIR] [--images N] [--rounds N] [--work NAMES]
        [--memory-images N] [--resume-entries N] [--recipe NAME] [--device NAME] [--json FILE]

DIR holds images/ and annotations.json (default: $SAMFAST_DATA/val). In each round the plain loop
and the run do the same photos, one after the other, so that other load on the machine affects both
alike; which is first alternates. The first round, in which a process does what it does once, is not
counted. The plain loops:

    everything   `for records in sam.segment_each(paths)`
    prompts      `for records in sam.predict_each(paths, boxes, output_mode="coco_rle")`
    embeddings   `sam.embed(paths)`, one file of `samfast.save_embeddings` each

The run also hashes files, writes Parquet and lists shards. Memory: the process's resident bytes
along a run with a box in each of so many photos (the same ones again), and the slope of a line
through those of its second half. For that the model has random weights and an input of 64 pixels,
so that many photos take little time; what a run holds does not depend on it. Resume: seconds of a
new process that says of a finished run that nothing is left.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import samfast  # noqa: E402
from samfast.bench.coco_dataset import open_dataset  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.cluster.destination import Destination  # noqa: E402
from samfast.cluster.manifest import Manifest, open_manifest  # noqa: E402
from samfast.cluster.run_identity import (  # noqa: E402
    EngineIdentity,
    engine_identity,
    run_identity,
)
from samfast.cluster.run_shards import Recorder, Watch, run_shards  # noqa: E402
from samfast.cluster.shard_files import write_shard  # noqa: E402
from samfast.cluster.shards import SHARD_SIZE, shards_left  # noqa: E402
from samfast.cluster.sources import Source, open_source  # noqa: E402
from samfast.cluster.work import (  # noqa: E402
    DoneImage,
    EmbeddingWork,
    Everything,
    PromptedWork,
    ShardAnswers,
    Work,
)
from samfast.engine import SamFast  # noqa: E402
from samfast.prompted_masks.prompted_objects import PromptedObject  # noqa: E402

POINTS_PER_SIDE = 8
"""Of everything in a photo: few, so that what the run adds is a larger part of its time."""

MEMORY_STEP = 20
"""Images between two looks at the process's memory."""

Boxes = dict[str, list[list[float]]]


def photos_of(data: Path, count: int, folder: Path) -> tuple[Source, Boxes]:
    """A list of photos, spread over the data set, and the boxes (XYXY) of each."""
    images = [each for each in open_dataset(data) if each.annotations]
    chosen = images[:: max(1, len(images) // count)][:count]
    listed = folder / "photos.txt"
    listed.write_text("\n".join(str(each.path.absolute()) for each in chosen))
    boxes = {
        str(image.path.absolute()): [
            [x, y, x + w, y + h]
            for x, y, w, h in (each.box for each in image.annotations if each.box is not None)
        ]
        for image in chosen
    }
    return open_source(str(listed)), boxes


def work_of(name: str, boxes: Boxes, store: Path) -> Work:
    """The work of that name."""
    if name == "everything":
        return Everything({"points_per_side": POINTS_PER_SIDE})
    if name == "embeddings":
        return EmbeddingWork(str(store))
    return PromptedWork(
        {
            key: tuple(PromptedObject(box=(x, y, u, v)) for x, y, u, v in each)
            for key, each in boxes.items()
        }
    )


def plain(name: str, sam: SamFast, source: Source, boxes: Boxes, folder: Path) -> None:
    """The loop that a user would write."""
    paths = [entry.key for entry in source.entries]
    if name == "everything":
        for records in sam.segment_each(paths, points_per_side=POINTS_PER_SIDE):
            assert isinstance(records, list)
    elif name == "prompts":
        asked = [samfast.Prompts(boxes=boxes[path]) for path in paths]
        for masks in sam.predict_each(paths, asked, multimask=False, output_mode="coco_rle"):
            assert isinstance(masks, list)
    else:
        folder.mkdir()
        embeddings = sam.embed(paths).cpu()
        for number in range(len(paths)):
            samfast.save_embeddings(embeddings[number], folder / f"{number}.safetensors")


def run_once(
    sam: SamFast, engine: EngineIdentity, work: Work, source: Source, out: Path, watch: Watch
) -> Manifest:
    """A run from an empty folder to its manifest."""
    destination = Destination(str(out))
    identity = run_identity(engine, work, source, SHARD_SIZE)
    manifest = open_manifest(destination, identity, {}, print)
    assert run_shards(sam, work, source, manifest, watch=watch)
    assert manifest.finished and manifest.failed == 0
    return manifest


def measure(name: str, sam: SamFast, source: Source, boxes: Boxes, rounds: int) -> dict[str, Any]:
    """Images a second of the loop and of the run in each round, and their seconds of CPU."""
    engine = engine_identity(sam)
    seconds: dict[str, list[float]] = {"plain": [], "run": []}
    busy: dict[str, list[float]] = {"plain": [], "run": []}
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            work = work_of(name, boxes, folder / "store")

            def plainly(folder: Path = folder) -> None:
                plain(name, sam, source, boxes, folder / "plain")

            def running(folder: Path = folder, work: Work = work) -> None:
                run_once(sam, engine, work, source, folder / "out", Watch())

            ways: list[tuple[str, Callable[[], None]]] = [("plain", plainly), ("run", running)]
            for way, call in ways if number % 2 else ways[::-1]:
                start, start_busy = time.perf_counter(), time.process_time()
                call()
                if number:
                    seconds[way].append(time.perf_counter() - start)
                    busy[way].append(time.process_time() - start_busy)
    rates = {
        way: [round(len(source.entries) / each, 4) for each in values]
        for way, values in seconds.items()
    }
    ratios = [run / loop for run, loop in zip(rates["run"], rates["plain"], strict=True)]
    return {
        "work": name,
        "images": len(source.entries),
        "images_per_second": {way: statistics.median(each) for way, each in rates.items()},
        "rounds": rates,
        "run_to_plain": round(statistics.median(ratios), 4),
        "run_to_plain_rounds": [round(each, 4) for each in ratios],
        # Other processes on the same cores change these little.
        "cpu_seconds_per_image": {
            way: round(statistics.median(each) / len(source.entries), 4)
            for way, each in busy.items()
        },
        "load_average": os.getloadavg()[0],
    }


def resident() -> int:
    """The process's bytes in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_memory(device: str, source: Source, boxes: Boxes, count: int) -> dict[str, Any]:
    """Resident bytes over a run of so many photos with prompts: the same ones under other names."""
    sam = samfast.load(
        "vit_xs", checkpoint="random", device=device, recipe="fp32_sdpa", image_size=64
    )
    kept: list[tuple[int, int]] = []
    done = 0

    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        photos.mkdir()
        asked: Boxes = {}
        for number in range(count):
            path = source.entries[number % len(source.entries)].key
            name = f"{number:06}{Path(path).suffix}"
            (photos / name).symlink_to(path)
            asked[name] = boxes[path][:1]

        def on_image(image: Any) -> None:
            nonlocal done
            done += 1
            if done % MEMORY_STEP == 0:
                kept.append((done, resident()))

        work = work_of("prompts", asked, Path(place))
        many = open_source(str(photos))
        run_once(
            sam, engine_identity(sam), work, many, Path(place) / "out", Watch(on_image=on_image)
        )
    half = kept[len(kept) // 2 :]
    images, held = np.array(half, float).T
    slope = float(np.polyfit(images, held, 1)[0])
    return {
        "images": count,
        "model": "vit_xs, random weights, input 64 px, fp32_sdpa",
        "resident_bytes": kept,
        "slope_bytes_per_image_of_second_half": round(slope, 1),
    }


def measure_resume(count: int) -> dict[str, Any]:
    """Seconds until a finished run of `count` images without masks says that nothing is left."""
    asked: dict[str, Any] = {
        "model": None,
        "checkpoint": None,
        "recipe": "auto",
        "device": None,
        "options": {},
    }
    with tempfile.TemporaryDirectory() as place:
        photos, out = Path(place) / "photos", Path(place) / "out"
        for number in range(count):
            folder = photos / f"{number % 100:02}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:08}.jpg").touch()
        source = open_source(str(photos))
        engine = EngineIdentity("vit_xs", "none", "fp32", "fp32", "cpu", {})
        identity = run_identity(engine, Everything(), source, SHARD_SIZE)
        destination = Destination(str(out))
        with Recorder(Manifest(destination, identity, asked)) as recorder:
            for shard in shards_left(source.entries, SHARD_SIZE, {}):
                images = [DoneImage(entry.key, 640, 480) for entry in shard.entries]
                answers = ShardAnswers(shard.number, images, [])
                recorder.add(write_shard(destination, identity, answers), [])
        seconds = []
        command = [sys.executable, "-m", "samfast", "run", str(photos), "--out", str(out)]
        for _ in range(5):
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
            seconds.append(round(time.perf_counter() - start, 3))
            assert "nothing is left" in done.stderr
    return {"entries": count, "seconds": statistics.median(seconds), "rounds": seconds}


def main() -> None:
    """Measure what the options name, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("SAMFAST_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data) / "val")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs="*", default=["everything", "prompts", "embeddings"])
    parser.add_argument("--memory-images", type=int, default=0)
    parser.add_argument("--resume-entries", type=int, default=0)
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sam = samfast.load("vit_xs", device=arguments.device, recipe=arguments.recipe)
    report: dict[str, Any] = {
        "model": sam.name,
        "recipe": sam.recipe_name,
        "batch_size": sam.batch_size,
        "points_per_side": POINTS_PER_SIDE,
        "shard_size": SHARD_SIZE,
        "environment": stamp(arguments.device),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as place:
        source, boxes = photos_of(arguments.data, arguments.images, Path(place))
        for name in arguments.work:
            report["rows"].append(measure(name, sam, source, boxes, arguments.rounds))
            write(report, arguments.json)
        if arguments.memory_images:
            report["memory"] = measure_memory(
                arguments.device, source, boxes, arguments.memory_images
            )
    if arguments.resume_entries:
        report["resume"] = measure_resume(arguments.resume_entries)
    write(report, arguments.json)
    print(json.dumps(report, indent=1))


def write(report: dict[str, Any], path: Path | None) -> None:
    """Write what is measured so far."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
