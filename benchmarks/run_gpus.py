"""Times `samfast run` on 1, 2, 4, ... devices by Ray against the engine's own way to masks.

    python benchmarks/run_gpus.py [--devices 1 2 4] [--device cuda] [--photos 2000] [--model vit_b]
        [--recipe auto] [--shard-size 64] [--data DIR ...] [--json FILE]

The photos are those of DIR (default: train, val and unlabelled of $SAMFAST_DATA), repeated at other
sizes until there are so many, with ten boxes each. Weights are random unless the model is vit_xs.

    engine    one process: `predict_each` over the files, masks as COCO RLE, after a warm-up
    process   one process: `run_shards`, what `samfast run` does without Ray
    ray       N workers of a local Ray: rate, seconds to the first shard, memory, CPUs

Rates are of images a second: of all images over the time of the call, its warm-up excluded for
`engine` and `process`, and for `ray` of those after the first shard of each worker. Memory is what
all processes hold together, sampled each second, and the slope of a line through the second half of
the run. `profile` has the functions on top of a worker's stack, by py-spy (which Ray Serve brings),
as shares of its busy samples; where it may not trace the process, it says so.

On CPUs each worker has its share of the cores, and `engine` and `process` have all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import samfast  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.cluster.destination import Destination  # noqa: E402
from samfast.cluster.manifest import Manifest, open_manifest  # noqa: E402
from samfast.cluster.read_ahead import READERS, READERS_BESIDE_A_CPU  # noqa: E402
from samfast.cluster.run_identity import engine_identity, run_identity  # noqa: E402
from samfast.cluster.run_on_ray import Workers, remote_identity, run_on_ray  # noqa: E402
from samfast.cluster.run_shards import Watch, run_shards  # noqa: E402
from samfast.cluster.shard_files import ShardRecord  # noqa: E402
from samfast.cluster.sources import Source, open_source  # noqa: E402
from samfast.cluster.work import PromptedWork  # noqa: E402
from samfast.prompted_masks.prompted_objects import PromptedObject  # noqa: E402
from samfast.ray_cluster import LOCAL, ray_cluster  # noqa: E402
from tests.ray_processes import ray_processes  # noqa: E402

SCALES = (1.0, 0.8, 1.25, 0.64, 1.6)
"""Of the photos' sides: the first time they are used, the second, and so on."""

BOXES = 10
WARM_UP = 64
"""Photos of the warm-up at most."""

PROFILE_SECONDS = 20


def make_photos(folders: list[Path], count: int, into: Path) -> None:
    """JPEG files in a folder, each of another photo or of another size."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*.jpg"))]
    if not paths:
        sys.exit(f"no .jpg files below {', '.join(map(str, folders))}")
    for number in range(count):
        path = paths[number % len(paths)]
        scale = SCALES[(number // len(paths)) % len(SCALES)]
        target = into / f"{number:06}.jpg"
        if scale == 1.0:
            shutil.copyfile(path, target)
            continue
        with Image.open(path) as photo:
            size = tuple(max(32, round(side * scale)) for side in photo.size)
            photo.convert("RGB").resize(size).save(target, quality=90)  # type: ignore[arg-type]


def boxes_of(source: Source) -> dict[str, np.ndarray[Any, Any]]:
    """Ten boxes XYXY for each photo, the same in every run."""
    boxes = {}
    for number, entry in enumerate(source.entries):
        with Image.open(source.reader.place(entry)) as photo:
            size = np.array(photo.size)
        draw = np.random.default_rng(number)
        corners = draw.uniform(0, 0.6, (BOXES, 2)) * size
        boxes[entry.key] = np.hstack([corners, corners + draw.uniform(0.1, 0.4, (BOXES, 2)) * size])
    return boxes


def prompted(boxes: dict[str, np.ndarray[Any, Any]]) -> PromptedWork:
    """The boxes as the work of a run."""
    return PromptedWork(
        {
            key: tuple(PromptedObject(box=(x, y, u, v)) for x, y, u, v in each.tolist())
            for key, each in boxes.items()
        }
    )


def one_process(arguments: argparse.Namespace, model: dict[str, Any]) -> dict[str, Any]:
    """The rates of `engine` and `process`, in turn on the same engine."""
    source = open_source(str(arguments.photos_in))
    boxes = boxes_of(source)
    sam = samfast.load(**model)
    paths = [source.reader.place(entry) for entry in source.entries]
    prompts = [samfast.Prompts(boxes=boxes[entry.key]) for entry in source.entries]

    def engine(count: int) -> float:
        start = time.perf_counter()
        answers = sam.predict_each(
            paths[:count], prompts[:count], multimask=False, output_mode="coco_rle"
        )
        assert sum(1 for _ in answers) == len(paths[:count])
        return time.perf_counter() - start

    engine(WARM_UP)
    engine_seconds = engine(len(paths))
    with tempfile.TemporaryDirectory() as out:
        manifest = empty_manifest(engine_identity(sam), prompted(boxes), source, arguments, out)
        start = time.perf_counter()
        assert run_shards(sam, prompted(boxes), source, manifest)
        process_seconds = time.perf_counter() - start
    return {
        "recipe": sam.recipe_name,
        "engine": round(len(paths) / engine_seconds, 3),
        "process": round(len(paths) / process_seconds, 3),
        "process_to_engine": round(engine_seconds / process_seconds, 4),
    }


def empty_manifest(
    engine: Any, work: PromptedWork, source: Source, arguments: argparse.Namespace, out: str
) -> Manifest:
    """The manifest of a run that begins."""
    identity = run_identity(engine, work, source, arguments.shard_size)
    return open_manifest(Destination(out), identity, {}, print)


def with_ray(arguments: argparse.Namespace, model: dict[str, Any], count: int) -> dict[str, Any]:
    """One run on so many devices."""
    source = open_source(str(arguments.photos_in))
    work = prompted(boxes_of(source))
    on_gpu = arguments.device != "cpu"
    cpus = os.cpu_count() or 1
    workers = (
        Workers(count, 1, max(1, min(READERS, cpus // count)), READERS)
        if on_gpu
        else Workers(count, 0, max(1, cpus // count), READERS_BESIDE_A_CPU)
    )
    began = time.perf_counter()
    shards: list[tuple[float, ShardRecord]] = []
    with (
        tempfile.TemporaryDirectory() as out,
        ray_cluster(LOCAL, "run_gpus.py", num_cpus=max(cpus, count)) as ray,
    ):
        up = time.perf_counter()
        identity = remote_identity(ray, model, workers)
        identified = time.perf_counter()
        manifest = empty_manifest(identity, work, source, arguments, out)
        with sampled_memory() as memory, profile_later() as profile:
            assert run_on_ray(
                model,
                workers,
                work,
                source,
                manifest,
                watch=Watch(on_shard=lambda r: shards.append((time.perf_counter(), r))),
            )
        end = time.perf_counter()
        ray_bytes = sum(path.stat().st_size for path in Path(out).rglob("*.parquet"))
    first = shards[min(count, len(shards)) - 1][0]
    later = sum(record.images for at, record in shards if at > first)
    half = [each for each in memory if each[0] > (first + end) / 2]
    slope = None
    if len(half) > 2:
        at, held = np.array(half, float).T
        slope = float(np.polyfit(at, held, 1)[0])
    rate = later / (shards[-1][0] - first) if later else None
    return {
        "devices": count,
        "images_per_second": None if rate is None else round(rate, 3),
        "images_per_second_with_start_up": round(len(source.entries) / (end - began), 3),
        "seconds": {
            "ray": round(up - began, 2),
            "identity": round(identified - up, 2),
            "to_first_shard_of_each": round(first - identified, 2),
            "all": round(end - began, 2),
        },
        "resident_bytes": max((size for _, size in memory), default=None),
        "slope_bytes_per_image": None if slope is None or not rate else round(slope / rate, 1),
        "result_bytes_per_image": round(ray_bytes / len(source.entries), 1),
        "profile": profile,
    }


@contextmanager
def sampled_memory() -> Iterator[list[tuple[float, int]]]:
    """Each second, what this process and its descendants hold; pages that they share count once
    for each.
    """
    samples: list[tuple[float, int]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(1):
            held = 0
            for pid in (os.getpid(), *ray_processes(os.getpid())):
                try:
                    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
                except OSError:
                    continue
                held += int(pages) * os.sysconf("SC_PAGE_SIZE")
            samples.append((time.perf_counter(), held))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


@contextmanager
def profile_later() -> Iterator[dict[str, Any]]:
    """When a worker has begun, what is on top of its threads' stacks for some seconds."""
    profile: dict[str, Any] = {}
    done = threading.Event()

    def record() -> None:
        while not done.wait(1):
            workers = [p for p, name in ray_processes(os.getpid()).items() if "MapWorker" in name]
            if workers:
                break
        else:
            return
        if done.wait(10):
            return
        profile.update(profiled(workers[0]))

    thread = threading.Thread(target=record)
    thread.start()
    try:
        yield profile
    finally:
        done.set()
        thread.join()


def profiled(pid: int) -> dict[str, Any]:
    """Shares of busy samples by the function on top."""
    with tempfile.NamedTemporaryFile() as file:
        command = ["py-spy", "record", "--pid", str(pid), "--format", "raw", "--output", file.name]
        try:
            subprocess.run(
                [*command, "--duration", str(PROFILE_SECONDS), "--nonblocking"],
                check=True,
                capture_output=True,
                text=True,
                timeout=PROFILE_SECONDS + 30,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return {"error": str(getattr(error, "stderr", None) or error).strip()[-300:]}
        lines = Path(file.name).read_text().splitlines()
    tops: Counter[str] = Counter()
    for line in lines:
        stack, _, samples = line.rpartition(" ")
        tops[stack.rpartition(";")[2].partition(":")[0]] += int(samples)
    total = sum(tops.values())
    return {
        "samples": total,
        "top": {name: round(samples / total, 4) for name, samples in tops.most_common(25)},
    }


def main() -> None:
    """Measure what the options name, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--data", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--photos-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = {
        "name": arguments.model,
        "checkpoint": None if arguments.model == "vit_xs" else "random",
        "device": arguments.device,
        "recipe": arguments.recipe,
        "batch_size": arguments.batch_size,
    }
    if arguments.only is not None:
        count = int(arguments.only)
        result = with_ray(arguments, model, count) if count else one_process(arguments, model)
        arguments.json.write_text(json.dumps(result))
        return
    root = os.environ.get("SAMFAST_DATA")
    if arguments.data is None and root is None:
        parser.error("give --data, or set SAMFAST_DATA")
    folders = arguments.data or [Path(str(root)) / name for name in ("train", "val", "unlabelled")]
    report: dict[str, Any] = {
        **model,
        "photos": arguments.photos,
        "boxes": BOXES,
        "shard_size": arguments.shard_size,
        "cpus": os.cpu_count(),
        "environment": stamp(arguments.device),
        "ray": [],
    }
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        photos.mkdir()
        make_photos(folders, arguments.photos, photos)
        report["file_bytes_per_image"] = round(
            sum(path.stat().st_size for path in photos.iterdir()) / arguments.photos, 1
        )
        report["load_average_before"] = os.getloadavg()[0]
        # Each in another process, so that one's memory on the device is not in another's figure.
        report |= in_process(photos, 0, Path(place))
        for count in arguments.devices:
            report["ray"].append(in_process(photos, count, Path(place)))
        report["load_average_after"] = os.getloadavg()[0]
    text = json.dumps(report, indent=1)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    print(text)


def in_process(photos: Path, count: int, place: Path) -> dict[str, Any]:
    """What this program measures with `--only`."""
    result = place / "result.json"
    command = [sys.executable, *sys.argv, "--photos-in", str(photos), "--only", str(count)]
    subprocess.run([*command, "--json", str(result)], check=True)
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured


if __name__ == "__main__":
    main()
