"""Times `samfast run` on 1, 2, 4, ... devices by Ray against the engine's own way to masks.

    python benchmarks/run_gpus.py [--devices 4 1 2] [--device cuda] [--photos 2000] [--model vit_b]
        [--recipe auto] [--shard-size 64] [--seconds 15] [--limit 165] [--profile-seconds 0]
        [--entries 20000] [--driver-shards 0] [--rows one_process ray] [--image-size N]
        [--data DIR ...] [--json FILE]

The photos are those of DIR (default: train, val and unlabelled of $SAMFAST_DATA), repeated at other
sizes until there are so many, with ten boxes each. Beyond them the run's entries are hard links to
them under other names, so that each row has enough to do. Unless the model is vit_xs, its weights
are those of vit_xs, widened, so that masks are those of objects.

    engine    one process: `predict_each` over the files, masks as COCO RLE
    process   one process: `run_shards`, what `samfast run` does without Ray
    ray N     N workers of a local Ray: rate, start-up, memory, seconds of CPU
    driver    with --driver-shards: so many shards by workers that do nothing, and the manifest

A row is measured for --seconds, or until the entries end, and stops then. Its rate is of images a
second after its warm-up: the first two shards of one process, and of Ray a quarter of --seconds
after as many shards as there are workers. Images count when their shard is written. Memory is what
all processes hold together, and the slope of a line through the second half of the measured time.
Seconds of CPU are those of all processes in that time; `driver` is the one that lists shards.
`profile` has the stages that a worker's threads are in and the functions on top of their stacks, by
py-spy (which Ray Serve brings), as shares of the samples: `busy` of all threads that do not sleep,
`gil` of those that hold Python's lock; `threads` is how many of them there are on average. It is
taken after the measured time with the most workers; where py-spy may not trace the process, it says
so.

The file is written after each row. Rows that would begin too late for --limit, in seconds of the
whole program, are left out and named; a row that hangs is ended there.

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import samfast  # noqa: E402
from benchmarks.child_environment import child_environment  # noqa: E402
from benchmarks.widened_weights import widened_weights  # noqa: E402
from samfast.bench.environment import stamp  # noqa: E402
from samfast.cli.console import write_json  # noqa: E402
from samfast.cluster import run_on_ray as on_ray  # noqa: E402
from samfast.cluster.destination import Destination  # noqa: E402
from samfast.cluster.manifest import Manifest, open_manifest  # noqa: E402
from samfast.cluster.read_ahead import READERS, READERS_BESIDE_A_CPU  # noqa: E402
from samfast.cluster.run_identity import (  # noqa: E402
    EngineIdentity,
    engine_identity,
    run_identity,
)
from samfast.cluster.run_on_ray import Workers, remote_identity, run_on_ray  # noqa: E402
from samfast.cluster.run_shards import Watch, run_shards  # noqa: E402
from samfast.cluster.shard_files import ShardRecord  # noqa: E402
from samfast.cluster.sources import Source, open_source  # noqa: E402
from samfast.cluster.work import DoneImage, PromptedWork  # noqa: E402
from samfast.prompted_masks.prompted_objects import PromptedObject  # noqa: E402
from samfast.ray_cluster import LOCAL, ray_cluster  # noqa: E402
from tests.ray_processes import ray_processes  # noqa: E402

SCALES = (1.0, 0.8, 1.25, 0.64, 1.6, 0.9, 1.1, 0.7, 1.4, 0.55)
"""Of the photos' sides; no photo has the same one twice before it has had all."""

ROWS = ("one_process", "ray")
WIDENED = "the packaged model, widened"
"""What a report calls the weights of models that the package has none for."""

BOXES = 10
WARM_UP_SHARDS = 2
"""Of one process."""

SAMPLE_SECONDS = 0.5
"""Between two looks at the memory."""

THIS = "driver"
"""This process, among those whose CPU time is counted; without Ray it is the only one."""

LEAST_ROW_SECONDS = 20.0
"""A row for which less time is left, beside what it measures, is left out."""

SAMPLES_A_SECOND = 100
"""Of each thread of a worker that is profiled."""

STAGES = {
    "GPU waited for": "AsyncHostCopy.wait (samfast/device/transfer.py",
    "Parquet": "shard_bytes (samfast/cluster/shard_files.py",
    "files written": "write_shard (samfast/cluster/shard_files.py",
    "JPEG": "load_bytes (samfast/images/load.py",
    "files read": "read_entry (samfast/cluster/read_ahead.py",
    "RLE": "(samfast/prompted_masks/encoded_rows.py",
    "records": "_recorded (samfast/prompted_masks/host_answers.py",
    "encoder": "AnswerStream._embed (samfast/prompted_masks/answer_stream.py",
    "decoder": "AnswerStream._decoded (samfast/prompted_masks/answer_stream.py",
    "batches": "(samfast/images/batching.py",
    "other answers": "(samfast/prompted_masks/",
    "shards": "(samfast/cluster/",
    "Ray": "(ray/",
}
"""A part of the stacks of each stage of a worker; a stack is of the first that fits."""

RATIOS = {
    "cuda": {"process to engine": 0.9, "two to one": 1.85, "four to one": 3.6},
    "cpu": {"two to one": 1.0},
}
"""What must be reached; on a CPU all workers together have what one process has."""

Box = list[float]


class Measured(Exception):  # noqa: N818
    """No error: ends a run when enough of it is measured."""


# Photos.


def make_photos(folders: list[Path], count: int, entries: int, into: Path) -> list[list[Box]]:
    """JPEG files in a folder, each of another photo or of another size, and the boxes of each;
    entries beyond them are the same again, in turn.
    """
    paths = [path for folder in folders for path in sorted(folder.rglob("*.jpg"))]
    if not paths:
        sys.exit(f"no .jpg files below {', '.join(map(str, folders))}")

    def make(number: int) -> list[Box]:
        turn, which = divmod(number, len(paths))
        return make_photo(paths[which], SCALES[(turn + which) % len(SCALES)], number, into)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(make, range(count)))
    for number in range(count, entries):
        os.link(into / f"{number % count:06}.jpg", into / f"{number:06}.jpg")
    return made


def make_photo(path: Path, scale: float, number: int, into: Path) -> list[Box]:
    """One of the photos, and ten boxes XYXY in it."""
    target = into / f"{number:06}.jpg"
    with Image.open(path) as photo:
        width, height = (max(32, round(side * scale)) for side in photo.size)
        if scale == 1.0:
            shutil.copyfile(path, target)
        else:
            photo.convert("RGB").resize((width, height)).save(target, quality=90)
    draw = np.random.default_rng(number)
    size = np.array((width, height))
    corners = draw.uniform(0, 0.6, (BOXES, 2)) * size
    boxes: list[Box] = np.hstack(
        [corners, corners + draw.uniform(0.1, 0.4, (BOXES, 2)) * size]
    ).tolist()
    return boxes


def prompted(source: Source, boxes: list[list[Box]]) -> PromptedWork:
    """The boxes of the photos, in turn, as the work of a run."""
    objects = [tuple(PromptedObject(box=(x, y, u, v)) for x, y, u, v in each) for each in boxes]
    keys = (entry.key for entry in source.entries)
    return PromptedWork({key: objects[n % len(objects)] for n, key in enumerate(keys)})


# What is measured along a run.


@dataclass
class Meter:
    """Counts the images of shards as they are written, and ends the run.

    seconds   to measure for, after the warm-up
    warm      shards of the warm-up
    settle    seconds of the warm-up after these
    profile   called when the time is over, before the run ends
    """

    seconds: float
    warm: int
    settle: float = 0.0
    profile: Callable[[], dict[str, Any]] | None = None
    first_shard_at: float | None = None
    shards: list[tuple[float, int]] = field(default_factory=list)
    result_bytes: int = 0
    images: int = 0
    began: tuple[float, dict[str, float]] | None = None
    ended: tuple[float, dict[str, float]] | None = None
    memory: list[tuple[float, int]] = field(default_factory=list)
    profiled: dict[str, Any] | None = None
    _profiler: threading.Thread | None = None

    def on_shard(self, record: ShardRecord) -> None:
        """Count a shard; raises Measured when the time is over."""
        now = time.perf_counter()
        self.first_shard_at = self.first_shard_at or now
        self.images += record.images
        self.result_bytes += record.bytes
        if self.ended is None:
            self.shards.append((now, record.images))
        if self.began is None:
            if len(self.shards) >= self.warm and now >= self.shards[self.warm - 1][0] + self.settle:
                self.began = now, cpu_seconds()
        elif self.ended is None:
            # The run may end with any shard.
            if now - self.began[0] >= self.seconds:
                self.ended = now, cpu_seconds()
                self._profile_or_end()
        elif self._profiler is None or not self._profiler.is_alive():
            raise Measured

    def _profile_or_end(self) -> None:
        if self.profile is None:
            raise Measured

        def record(profile: Callable[[], dict[str, Any]] = self.profile) -> None:
            self.profiled = profile()

        self._profiler = threading.Thread(target=record)
        self._profiler.start()

    def finish(self) -> None:
        """When the run is over, whoever ended it."""
        if self.began is not None and self.ended is None:
            self.ended = self.shards[-1][0], cpu_seconds()
        if self._profiler is not None:
            self._profiler.join()

    def figures(self) -> dict[str, Any]:
        """Of the measured time; the rate is None for a run that ended in its warm-up."""
        row: dict[str, Any] = {"images_per_second": None, "images_of_the_run": self.images}
        if self.began is None or self.ended is None or self.ended[0] <= self.began[0]:
            return row
        (start, busy), (end, busy_at_end) = self.began, self.ended
        count = sum(images for at, images in self.shards if start < at <= end)
        rate = count / (end - start)
        used = {name: each - busy.get(name, 0.0) for name, each in busy_at_end.items()}
        return row | {
            "images_per_second": round(rate, 3),
            "images": count,
            "seconds_measured": round(end - start, 2),
            "cpu_seconds_per_image": round(sum(used.values()) / count, 5),
            "cpu_seconds_per_image_by_program": {
                name: round(each / count, 6) for name, each in Counter(used).most_common(6)
            },
            "result_bytes_per_image": round(self.result_bytes / self.images, 1),
            **memory_figures([each for each in self.memory if start <= each[0] <= end], rate),
            **({"profile": self.profiled} if self.profiled is not None else {}),
        }


def memory_figures(samples: list[tuple[float, int]], rate: float) -> dict[str, Any]:
    """The most that was held, and the slope of the second half."""
    half = samples[len(samples) // 2 :]
    slope = None
    if len(half) > 2:
        at, held = np.array(half, float).T
        slope = round(float(np.polyfit(at - at[0], held, 1)[0]) / rate, 1)
    return {
        "resident_bytes": max((size for _, size in samples), default=None),
        "slope_bytes_per_image": slope,
    }


def processes() -> list[int]:
    """This process and its descendants."""
    children: dict[int, list[int]] = {}
    for folder in os.scandir("/proc"):
        if folder.name.isdecimal():
            with suppress(OSError):
                parent = Path(folder.path, "stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(folder.name))
    processes = [os.getpid()]
    for pid in processes:
        processes += children.get(pid, [])
    return processes


def cpu_seconds() -> dict[str, float]:
    """Of all of them, so far, by the name of the program; Ray names its workers by what they do."""
    seconds: dict[str, float] = {}
    for pid in processes():
        with suppress(OSError):
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            busy = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            name = THIS if pid == os.getpid() else name
            seconds[name] = seconds.get(name, 0.0) + busy
    return seconds


@contextmanager
def sampled_memory(samples: list[tuple[float, int]]) -> Iterator[None]:
    """Twice a second, what all of them hold; pages that they share count once for each."""
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            held = 0
            for pid in processes():
                try:
                    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
                except OSError:
                    continue
                held += int(pages) * os.sysconf("SC_PAGE_SIZE")
            samples.append((time.perf_counter(), held))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def profile_worker(seconds: int) -> dict[str, Any]:
    """Where a worker's threads are busy, and which of them hold Python's lock meanwhile."""
    workers = [pid for pid, name in ray_processes(os.getpid()).items() if "MapWorker" in name]
    if not workers:
        return {"error": "no worker was found"}
    with ThreadPoolExecutor(2) as pool:
        busy = pool.submit(record_stacks, workers[0], seconds)
        gil = pool.submit(record_stacks, workers[0], seconds, "--gil")
    return {"busy": busy.result(), "gil": gil.result()}


def record_stacks(pid: int, seconds: int, *options: str) -> dict[str, Any]:
    """Shares of a process's samples by stage and by the function on top, by py-spy."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else "py-spy"
    with tempfile.NamedTemporaryFile() as file:
        command = [program, "record", "--pid", str(pid), "--format", "raw", *options]
        command += ["--output", file.name, "--duration", str(seconds), "--nonblocking"]
        command += ["--rate", str(SAMPLES_A_SECOND)]
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=seconds + 30
            )
        except (OSError, subprocess.SubprocessError) as error:
            return {"error": str(getattr(error, "stderr", None) or error).strip()[-300:]}
        lines = Path(file.name).read_text().splitlines()
    stages: Counter[str] = Counter()
    tops: Counter[str] = Counter()
    for line in lines:
        stack, _, samples = line.rpartition(" ")
        stages[stage_of(stack)] += int(samples)
        tops[stack.rpartition(";")[2].partition(":")[0]] += int(samples)
    total = sum(tops.values())
    return {
        "samples": total,
        "threads": round(total / (seconds * SAMPLES_A_SECOND), 3),
        "stages": {name: round(samples / total, 4) for name, samples in stages.most_common()},
        "top": {name: round(samples / total, 4) for name, samples in tops.most_common(25)},
    }


def stage_of(stack: str) -> str:
    """The stage of a run that a stack of functions belongs to."""
    return next((name for name, frame in STAGES.items() if frame in stack), "other")


# Rows.


@dataclass
class Rows:
    """What the rows of a process have in common.

    deadline  by `time.time()`: none begins that would end later
    """

    arguments: argparse.Namespace
    model: dict[str, Any]
    source: Source
    boxes: list[list[Box]]
    deadline: float
    results: dict[str, Any] = field(default_factory=dict)

    def write(self, **results: Any) -> None:
        """Add to what is written for the process that waits."""
        self.results |= results
        write_json(self.results, str(self.arguments.json))

    def time_for(self, row: str) -> bool:
        """Whether there is time for one more row; one for which there is none is named."""
        if self.deadline - time.time() >= self.arguments.seconds + LEAST_ROW_SECONDS:
            return True
        self.write(**{row: {"left_out": "the time was over"}})
        return False

    @cached_property
    def work(self) -> PromptedWork:
        """The boxes as the work of a run."""
        return prompted(self.source, self.boxes)

    def manifest(self, engine: EngineIdentity, out: str) -> Manifest:
        """The manifest of a run that begins."""
        identity = run_identity(engine, self.work, self.source, self.arguments.shard_size)
        return open_manifest(Destination(out), identity, {}, print)


def one_process(rows: Rows) -> None:
    """The rows `engine` and `process`, in turn on the same engine."""
    start = time.perf_counter()
    sam = samfast.load(**rows.model)
    rows.write(
        recipe=sam.recipe_name,
        batch_size=sam.batch_size,
        seconds_to_load=round(time.perf_counter() - start, 2),
    )
    rows.write(engine=engine_row(rows, sam))
    if not rows.time_for("process"):
        return
    meter = Meter(rows.arguments.seconds, WARM_UP_SHARDS)
    with tempfile.TemporaryDirectory() as out:
        manifest = rows.manifest(engine_identity(sam), out)
        with sampled_memory(meter.memory):
            run_until_measured(
                meter,
                lambda watch: run_shards(sam, rows.work, rows.source, manifest, watch=watch),
            )
    rows.write(process=meter.figures())


def engine_row(rows: Rows, sam: samfast.SamFast) -> dict[str, Any]:
    """Images a second of `predict_each` over the files, counted as those of shards are."""
    size = rows.arguments.shard_size
    paths = [rows.source.reader.place(entry) for entry in rows.source.entries]
    prompts = [samfast.Prompts(boxes=np.array(each)) for each in rows.boxes]
    asked = [prompts[number % len(prompts)] for number in range(len(paths))]
    meter = Meter(rows.arguments.seconds, WARM_UP_SHARDS)

    def run(watch: Watch) -> None:
        answers = sam.predict_each(paths, asked, multimask=False, output_mode="coco_rle")
        for number, _ in enumerate(answers, 1):
            if number % size == 0 or number == len(paths):
                images = number % size or size
                watch.on_shard(ShardRecord(number // size, images, 0, images, 0))

    with sampled_memory(meter.memory):
        run_until_measured(meter, run)
    row = meter.figures()
    row.pop("result_bytes_per_image", None)
    return row


def run_until_measured(meter: Meter, run: Callable[[Watch], object]) -> None:
    """Run until the meter or the entries end it."""
    try:
        run(Watch(on_shard=meter.on_shard))
    except Measured:
        pass
    finally:
        meter.finish()


def with_ray(rows: Rows, counts: list[int]) -> None:
    """The rows of Ray, for one number of devices after the other, and the driver's."""
    arguments = rows.arguments
    cpus = os.cpu_count() or 1
    began = time.perf_counter()
    with ray_cluster(LOCAL, "run_gpus.py", num_cpus=max([cpus, *counts])) as ray:
        up = time.perf_counter()
        if arguments.device != "cpu":  # a worker would wait for ever for a GPU that is not there
            gpus = int(ray.cluster_resources().get("GPU", 0))
            for count in (each for each in counts if each > gpus):
                rows.write(**{f"ray {count}": {"left_out": f"Ray finds {gpus} GPUs"}})
            counts = [each for each in counts if each <= gpus]
            if not gpus:
                return
        probe = workers_of(arguments.device, max(counts, default=1), cpus)
        identity = remote_identity(ray, rows.model, probe)
        identified = time.perf_counter()
        start_up = {"ray": round(up - began, 2), "identity": round(identified - up, 2)}
        rows.write(recipe=identity.recipe, ray_start=start_up)
        for count in counts:
            if not rows.time_for(f"ray {count}"):
                continue
            workers = workers_of(arguments.device, count, cpus)
            profiled = arguments.profile_seconds and count == max(counts)
            rows.write(**{f"ray {count}": ray_row(rows, workers, identity, bool(profiled))})
        if arguments.driver_shards and rows.time_for("driver"):
            rows.write(driver=driver_row(rows, arguments.driver_shards, identity))


def workers_of(device: str, count: int, cpus: int) -> Workers:
    """As `samfast run` makes them on one host."""
    if device == "cpu":
        return Workers(count, 0, max(1, cpus // count), READERS_BESIDE_A_CPU)
    return Workers(count, 1, max(1, min(READERS, cpus // count)), READERS)


def ray_row(
    rows: Rows, workers: Workers, identity: EngineIdentity, profiled: bool
) -> dict[str, Any]:
    """One run on so many devices."""
    seconds = rows.arguments.seconds
    meter = Meter(
        seconds,
        workers.count,
        settle=seconds / 4,
        profile=(lambda: profile_worker(rows.arguments.profile_seconds)) if profiled else None,
    )
    with tempfile.TemporaryDirectory() as out:
        manifest = rows.manifest(identity, out)
        start = time.perf_counter()
        with sampled_memory(meter.memory):
            run_until_measured(
                meter,
                lambda watch: run_on_ray(
                    rows.model, workers, rows.work, rows.source, manifest, watch=watch
                ),
            )
    first = meter.first_shard_at
    return {
        "devices": workers.count,
        "seconds_to_first_shard": None if first is None else round(first - start, 2),
        **meter.figures(),
    }


class IdleWorker:
    """In place of a ShardWorker: says of each shard that it is done, and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __call__(self, batch: Any) -> dict[str, list[bytes]]:
        """The result of the only row."""
        import pickle

        from samfast.cluster.run_on_ray import _ShardResult

        shard, _ = pickle.loads(batch["shard"][0])
        images: list[Any] = [DoneImage(entry.key, 640, 480) for entry in shard.entries]
        count = len(images)
        record = ShardRecord(shard.number, count, 0, count * BOXES, count * BOXES * 200)
        return {"result": [pickle.dumps(_ShardResult(record, images))]}


def driver_row(rows: Rows, count: int, identity: EngineIdentity) -> dict[str, Any]:
    """Shards a second that the driver hands out and lists, where workers take no time."""
    one = rows.source.entries[: rows.arguments.shard_size]
    entries = [
        entry._replace(key=f"{number:06}/{entry.key}") for number in range(count) for entry in one
    ]
    boxes = rows.boxes[: len(one)]
    source = Source(rows.source.text, entries, rows.source.reader)
    many = Rows(rows.arguments, rows.model, source, boxes, rows.deadline)
    meter = Meter(float("inf"), 8)
    worker, on_ray.ShardWorker = on_ray.ShardWorker, IdleWorker  # type: ignore[assignment,misc]
    try:
        with tempfile.TemporaryDirectory() as out:
            manifest = many.manifest(identity, out)
            run_until_measured(
                meter,
                lambda watch: run_on_ray(
                    rows.model, Workers(4, 0, 0, 1), many.work, source, manifest, watch=watch
                ),
            )
    finally:
        on_ray.ShardWorker = worker  # type: ignore[misc]
    rate = meter.figures()["images_per_second"]
    return {
        "shards": count,
        "shard_size": len(one),
        "shards_per_second": None if rate is None else round(rate / len(one), 2),
    }


# The program.


def ratios(report: dict[str, Any]) -> dict[str, float]:
    """Of rates, as far as they are measured."""

    def rate(row: str) -> float | None:
        value: float | None = report.get(row, {}).get("images_per_second")
        return value

    pairs = {"process to engine": ("process", "engine")}
    for name, count in (("one", 1), ("two", 2), ("four", 4), ("eight", 8)):
        pairs[f"{name} to one"] = f"ray {count}", "process"
        if count > 1:
            pairs[f"{name} to one of Ray"] = f"ray {count}", "ray 1"
    known = {}
    for name, (top, bottom) in pairs.items():
        above, below = rate(top), rate(bottom)
        if above is not None and below:
            known[name] = round(above / below, 4)
    return known


def summary(report: dict[str, Any]) -> str:
    """A line for each row, and the ratios with what they must reach."""
    lines = []
    for name, row in report.items():
        if name not in ("engine", "process", "driver") and not name.startswith("ray "):
            continue
        parts = [f"{key} {value}" for key, value in row.items() if key != "profile"]
        lines.append(f"{name:9} " + ", ".join(parts))
    lines.append(f"start-up  {report.get('ray_start')}, load {report.get('seconds_to_load')} s")
    known = report["ratios"]
    needed = RATIOS["cuda" if report["environment"]["gpu"] else "cpu"]
    for name, value in known.items():
        least = f" (must {needed[name]})" if name in needed else ""
        lines.append(f"{name}: {value}{least}")
    return "\n".join(lines)


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=ROWS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--entries", type=int, default=20000)
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--limit", type=float, default=float("inf"))
    parser.add_argument("--profile-seconds", type=int, default=0)
    parser.add_argument("--driver-shards", type=int, default=0)
    parser.add_argument("--data", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--photos-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=["one_process", "ray"], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.data is None and arguments.photos_in is None:
        root = os.environ.get("SAMFAST_DATA")
        if root is None:
            parser.error("give --data, or set SAMFAST_DATA")
        arguments.data = [Path(root) / name for name in ("train", "val", "unlabelled")]
    return arguments


def checkpoint_of(arguments: argparse.Namespace) -> str | None:
    """The weights: packaged, or those that the first process has written beside the photos."""
    if arguments.model == "vit_xs":
        return None
    return "random" if arguments.only is None else str(weights_beside(arguments.photos_in))


def is_widened(arguments: argparse.Namespace) -> bool:
    """Whether the weights are those of `WIDENED`."""
    return arguments.model != "vit_xs" and arguments.image_size is None


def weights_beside(photos: Path) -> Path:
    """Where the first process writes them."""
    return photos.with_name("weights.pth")


def main() -> None:
    """Measure what the options name, and write it."""
    began = time.time()
    arguments = arguments_of()
    model = {
        "name": arguments.model,
        "checkpoint": checkpoint_of(arguments),
        "device": arguments.device,
        "recipe": arguments.recipe,
        "batch_size": arguments.batch_size,
    }
    if arguments.image_size is not None:  # with random weights, to see that all of this works
        model |= {"checkpoint": "random", "image_size": arguments.image_size}
    if arguments.only is not None:
        photos = arguments.photos_in
        boxes = json.loads(photos.with_suffix(".json").read_text())
        rows = Rows(arguments, model, open_source(str(photos)), boxes, arguments.deadline)
        one_process(rows) if arguments.only == "one_process" else with_ray(rows, arguments.devices)
        return
    report: dict[str, Any] = {
        "model": model["name"],
        "checkpoint": WIDENED if is_widened(arguments) else model["checkpoint"],
        "asked_recipe": model["recipe"],
        "photos": arguments.photos,
        "boxes": BOXES,
        "shard_size": arguments.shard_size,
        "cpus": os.cpu_count(),
        "environment": stamp(arguments.device),
        "load_average_before": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        photos.mkdir()
        boxes = make_photos(arguments.data, arguments.photos, arguments.entries, photos)
        photos.with_suffix(".json").write_text(json.dumps(boxes))
        if is_widened(arguments):
            torch.save(widened_weights(arguments.model), weights_beside(photos))
        report["seconds_to_make_photos"] = round(time.time() - began, 2)
        sizes = [path.stat().st_size for path in photos.iterdir()]
        report["file_bytes_per_image"] = round(sum(sizes) / len(sizes), 1)
        # One process and Ray apart, so that one's memory on the device is not in another's figure.
        for only in arguments.rows:
            result = Path(place) / f"{only}.json"
            for measured in child(arguments, only, photos, result, began + arguments.limit):
                report |= measured
                report["ratios"] = ratios(report)
                report["seconds"] = round(time.time() - began, 1)
                report["load_average_after"] = os.getloadavg()[0]
                if arguments.json is not None:
                    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    print(summary(report))


def child(
    arguments: argparse.Namespace, only: str, photos: Path, result: Path, deadline: float
) -> Iterator[dict[str, Any]]:
    """Have another process measure: what it has written so far, and at last what went wrong."""
    command = [sys.executable, *sys.argv, "--photos-in", str(photos), "--only", only]
    command += ["--deadline", str(deadline), "--json", str(result)]
    written = 0.0
    with subprocess.Popen(command, env=child_environment()) as process:
        while process.poll() is None:
            time.sleep(0.5)
            if result.exists() and result.stat().st_mtime > written:
                written = result.stat().st_mtime
                yield json.loads(result.read_text())
            if time.time() > deadline:
                process.kill()
                yield {f"{only}_error": "ended at --limit"}
                return
    if result.exists():
        yield json.loads(result.read_text())
    if process.returncode:
        yield {f"{only}_error": f"exit code {process.returncode}"}


if __name__ == "__main__":
    main()
