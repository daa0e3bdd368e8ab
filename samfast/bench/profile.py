"""`samfast profile`: where the time and the memory of a batch go, as a folder that a browser
opens.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity

from samfast.atomic_files import atomic_open, atomic_write
from samfast.bench import allocations, events, kernels, pages, timeline, waits, workload
from samfast.bench.allocations import Recorded
from samfast.bench.environment import stamp
from samfast.bench.events import Span, Trace
from samfast.bench.stages import REGIONS, Stages, watched
from samfast.bench.timing import measure, synchronize
from samfast.bench.workload import RUN, Workload
from samfast.errors import DeviceMemoryError, InputError, OutputError
from samfast.images import ImageLike, LoadedImage

if TYPE_CHECKING:
    from samfast.engine import SamFast

INDEX, DATA, TRACE, MEMORY, SNAPSHOT = (
    "index.html",
    "profile.json",
    "trace.json.gz",
    "memory.html",
    "memory.pickle",
)
"""The files of a profile. The index is written last: where it is, the others are whole and of the
same run."""

STEPS = 4
"""Passes over the workload, each of one or several runs: timed alone, traced, watched for waits,
memory."""


def profile(
    sam: SamFast,
    out: str | os.PathLike[str],
    *,
    images: Sequence[ImageLike | LoadedImage] | None = None,
    points: int = 8,
    automatic: Mapping[str, Any] | None = None,
    repeats: int = 3,
    warmup: int = 2,
    top: int = 40,
    progress: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Run a batch several times, see where its time and memory go, and write that into the folder
    `out`.

    images     the first `sam.batch_size` of them are a batch; None: so many synthetic ones of 640 x
               480
    points     objects asked in each image, a click each
    automatic  options of `SamFast.segment`: everything in each image is searched instead; {}: with
               its defaults
    repeats    runs that are traced, one after the other, after so many for `warmup`
    top        rows of the tables of kernels and allocations
    progress   called with 1 after each of STEPS passes
    writes     index.html, which links to the rest: trace.json.gz, Chrome's format, with the stages
               as regions; memory.html, the memory over time; on a GPU memory.pickle, PyTorch's own
               snapshot of it, for its viewer; profile.json
    returns    what profile.json holds. Times are of one run:
               "model", "recipe", "workload";
               "seconds": "alone", without the profiler, and "traced";
               "idle_share", the part of the traced runs in which the GPU ran nothing (None on a
               CPU). The profiler slows what launches kernels, so without CUDA graphs it is an upper
               bound; "idle_share_alone" has the same kernels in the time of a run without the
               profiler; "regions", of each stage "host_seconds" and, on a GPU, "gpu_busy_seconds",
               "gpu_idle_seconds" and "idle_share" (see `samfast.bench.events.Use`); "outside" is
               what belongs to no stage; "classes" and "kernels" as
               `samfast.bench.kernels.kernel_table` has them, with "regions"; "waits", a list (see
               `samfast.bench.waits.table`), None on a CPU; "memory": "peak_bytes", "before_bytes",
               "reported_peak_bytes", "graph_bytes", "incomplete" and "allocations" at the peak, of
               each its "line" or "operator", "bytes" and "pieces"; "files", "environment"

    The trace has nothing in it that waits between the stages. An older profile in the folder stays
    whole until the new one is written, and is replaced by it.

    Raises ImageError, OutputError when the folder cannot be written, InputError for counts below 1,
    DeviceMemoryError.
    """
    if min(points, repeats, warmup, top) < 1:
        raise InputError(
            f"points={points}, repeats={repeats}, warmup={warmup}, top={top}; give at least 1 of "
            "each"
        )
    if isinstance(images, str | os.PathLike):
        raise InputError(f"{type(images).__name__} instead of a list of images; wrap it: [image]")
    if images is not None and not images:
        raise InputError("an empty list of images; give at least one, or None for synthetic ones")
    if automatic is None:
        work = workload.clicks(images, sam.batch_size, points)
    else:
        work = workload.everything(images, sam.batch_size, automatic)
    folder = Path(out)
    _prepare(folder)
    on_gpu = sam.device.type == "cuda"

    try:
        quiet = functools.partial(work.run, sam, Stages())
        alone = measure(quiet, sam.device, repeats=repeats, warmup=warmup).median
        progress(1)
        if on_gpu:
            _traced(sam, work, 1)  # the first trace of a process pays for the profiler's own start
        raw = _traced(sam, work, repeats)
        trace = _parsed(raw)
        progress(1)
        found_waits = _waits(sam, work) if on_gpu else None
        progress(1)
        recorded = _memory(sam, work)
        progress(1)
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"the device's memory ran out with {len(work.images)} images at once; use a smaller "
            "--batch-size, or "
            "fewer --points"
        ) from error

    written = [TRACE, MEMORY, *([SNAPSHOT] if recorded.snapshot is not None else []), DATA]
    result = {
        "model": sam.name,
        "recipe": sam.recipe_name,
        "workload": {**work.describe(), "repeats": repeats, "batch_size": sam.batch_size},
        "idle_share_alone": None,
        **summary(trace, repeats, top=top, on_gpu=on_gpu),
        "waits": found_waits,
        "memory": _memory_summary(recorded, top),
        "files": [INDEX, *written],
        "environment": stamp(sam.device),
    }
    result["seconds"]["alone"] = alone
    if on_gpu:
        busy = sum(row["gpu_busy_seconds"] for row in result["regions"].values())
        result["idle_share_alone"] = max(0.0, 1 - busy / alone)
    _write(folder, result, raw, recorded)
    return result


def summary(trace: Trace, repeats: int, *, top: int, on_gpu: bool) -> dict[str, Any]:
    """The part of the result that a trace of so many runs tells."""
    annotated = events.spans(trace, events.REGION)
    regions = [span for span in annotated if span.name in REGIONS]
    start, end = _window(annotated)
    if on_gpu:
        work = events.launched(trace, regions)
        end = max([end, *(span.end for span, _ in work)])
        timed = [(span.name, span.end - span.start, region) for span, region in work]
        used = events.use(work, start, end)
        idle: float | None = sum(use.idle for use in used.values()) / (end - start)
    else:
        operators = events.spans(trace, events.OPERATOR)
        own, at = events.alone(operators), events.finder(regions)
        timed = [
            (span.name, each, at(span.start)) for span, each in zip(operators, own, strict=True)
        ]
        used, idle = None, None
    table = kernels.table(
        kernels.added((name, each) for name, each, _ in timed), calls=repeats, top=top
    )
    where: dict[str, set[str]] = {}
    for name, _, region in timed:
        where.setdefault(kernels.short(name), set()).add(region or "outside")
    host = dict.fromkeys(REGIONS, 0.0)
    for span in regions:
        host[span.name] += span.end - span.start
    host["outside"] = sum(s.end - s.start for s in annotated if s.name == RUN) - sum(host.values())
    scale = 1e6 * repeats
    return {
        "seconds": {"traced": (end - start) / scale},
        "idle_share": idle,
        "regions": {
            name: {
                "host_seconds": host[name] / scale,
                **_gpu(
                    None if used is None else used.get(None if name == "outside" else name), scale
                ),
            }
            for name in (*REGIONS, "outside")
        },
        "classes": table["classes"],
        "kernels": [
            {
                **row,
                "regions": [
                    name for name in (*REGIONS, "outside") if name in where.get(row["name"], ())
                ],
            }
            for row in table["rows"]
        ],
    }


def describe(result: dict[str, Any]) -> str:
    """The result as short tables."""
    return pages.text(result)


def _gpu(use: events.Use | None, scale: float) -> dict[str, float | None]:
    if use is None:
        return {"gpu_busy_seconds": None, "gpu_idle_seconds": None, "idle_share": None}
    return {
        "gpu_busy_seconds": use.busy / scale,
        "gpu_idle_seconds": use.idle / scale,
        "idle_share": use.idle_share,
    }


def _window(annotated: Sequence[Span]) -> tuple[float, float]:
    runs = [span for span in annotated if span.name == RUN]
    return runs[0].start, max(run.end for run in runs)


def _traced(sam: SamFast, work: Workload, runs: int, *, memory: bool = False) -> bytes:
    """The trace of so many runs, in Chrome's format."""
    activities = [ProfilerActivity.CPU]
    if sam.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    stages = Stages()
    synchronize(sam.device)
    # acc_events: one cycle has no other whose events could be lost, of which torch would warn
    # otherwise
    with torch.profiler.profile(
        activities=activities, profile_memory=memory, acc_events=True
    ) as seen:
        with watched(sam, stages):
            for _ in range(runs):
                work.run(sam, stages)
        synchronize(
            sam.device
        )  # after the last region: what the GPU has not done yet is to be seen too
    try:
        with tempfile.TemporaryDirectory(prefix="samfast-trace-") as folder:
            path = Path(folder) / "trace.json"
            seen.export_chrome_trace(str(path))
            return path.read_bytes()
    except OSError as error:
        raise _no_room(error.strerror or str(error)) from error


def _parsed(raw: bytes) -> Trace:
    try:
        found: Trace = json.loads(raw)
    except ValueError as error:  # the profiler does not tell when it could not write all of it
        raise _no_room("the trace there is not whole") from error
    return found


def _no_room(reason: str) -> OutputError:
    return OutputError(
        f"{tempfile.gettempdir()}: the trace cannot be kept there for a moment: {reason}; free "
        "some space, or name "
        "another folder in the environment variable TMPDIR"
    )


def _waits(sam: SamFast, work: Workload) -> list[dict[str, Any]]:
    """A run of its own: what tells of a wait takes time."""
    with waits.noted() as notes:
        trace = _parsed(_traced(sam, work, 1))
    annotated = events.spans(trace, events.REGION)
    regions = [span for span in annotated if span.name in REGIONS]
    return waits.table(trace, notes, regions, *_window(annotated))


def _memory(sam: SamFast, work: Workload) -> Recorded:
    """A run of its own: keeping the history takes time."""
    if sam.device.type != "cuda":
        trace = _parsed(_traced(sam, work, 1, memory=True))
        regions = [span for span in events.spans(trace, events.REGION) if span.name in REGIONS]
        return allocations.on_cpu(trace, regions)

    def run() -> Sequence[Span]:
        stages = Stages()
        with watched(sam, stages):
            work.run(sam, stages)
        return stages.spans

    return allocations.on_gpu(run, sam.device)


def _memory_summary(recorded: Recorded, top: int) -> dict[str, Any]:
    history = recorded.history
    return {
        "peak_bytes": history.peak,
        "before_bytes": history.before,
        "reported_peak_bytes": recorded.reported_peak,
        "graph_bytes": recorded.graph_bytes,
        "incomplete": recorded.incomplete,
        "remarks": timeline.remarks(recorded),
        "by": recorded.by,
        "allocations": [
            {recorded.by: own.label, "bytes": own.bytes, "pieces": own.pieces}
            for own in history.live[:top]
        ],
    }


def _prepare(folder: Path) -> None:
    """Make the folder, and see that files can be made in it, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise OutputError(f"{folder}: that is a file; name a folder") from error
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written: {error.strerror}; choose another folder"
        ) from error


def _write(folder: Path, result: dict[str, Any], raw: bytes, recorded: Recorded) -> None:
    _forget(folder / INDEX)  # from here on the folder holds no profile, until the last line
    _forget(folder / SNAPSHOT)
    with (
        atomic_open(folder / TRACE) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):
        packed.write(raw)
    title = f"{result['model']}, recipe {result['recipe']}"
    atomic_write(folder / MEMORY, timeline.page(recorded, f"Memory of {title}"))
    if recorded.snapshot is not None:
        atomic_write(folder / SNAPSHOT, recorded.snapshot)
    atomic_write(folder / DATA, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    atomic_write(folder / INDEX, pages.page(result))


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be replaced: {error.strerror}; choose another folder"
        ) from error
