"""Recording a trace in Chrome's format, and arithmetic on it. Times are microseconds."""

from __future__ import annotations

import gzip
import json
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from samfast.bench.timing import synchronize
from samfast.errors import OutputError

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of events that occupy the GPU."""

CUDA_CALLS = ("cuda_runtime", "cuda_driver")
"""Categories of the host's calls of CUDA."""

REGION = "user_annotation"
"""Category of `torch.profiler.record_function` on the host."""

OPERATOR = "cpu_op"
"""Category of PyTorch's operators."""

Trace = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """An event with a duration.

    thread       of the host, or a GPU's stream
    correlation  shared by a call of CUDA and the kernels that it launched; None: unknown
    """

    name: str
    start: float
    end: float
    thread: object = 0
    correlation: int | None = None


def record(
    run: Callable[[], object], device: torch.device, *, host: bool = True
) -> tuple[bytes, Trace]:
    """Trace one call of `run`: the file's bytes, gzipped, and its content.

    host  record the host's operators too; without them the trace disturbs a GPU's timing less
    Raises OutputError where the temporary folder has no room for the trace.
    """
    activities = [ProfilerActivity.CPU] if host else []
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    # acc_events avoids torch's warning that a second cycle would drop events.
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        run()
        synchronize(device)
    try:
        with tempfile.TemporaryDirectory(prefix="samfast-trace-") as folder:
            path = Path(folder) / "trace.json.gz"
            profiler.export_chrome_trace(str(path))
            packed = path.read_bytes()
        return packed, json.loads(gzip.decompress(packed))
    except (OSError, EOFError, ValueError) as error:  # torch does not report a truncated file
        raise OutputError(
            f"{tempfile.gettempdir()}: the trace cannot be kept here while it is read: {error}; "
            "free some space, or name another folder in the environment variable TMPDIR"
        ) from error


def spans(trace: Trace, *categories: str) -> list[Span]:
    """The events of these categories that have a duration, by start; enclosing spans come first."""
    selected = [
        Span(
            event["name"],
            float(event["ts"]),
            float(event["ts"]) + float(event["dur"]),
            event.get("tid", 0),
            event.get("args", {}).get("correlation"),
        )
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in categories
    ]
    return sorted(selected, key=lambda span: (span.start, -span.end))


def region_finder(regions: Sequence[Span]) -> Callable[[float], str | None]:
    """A function from a time to the name of its region, or None.

    regions  sorted by start, without overlap
    """
    starts = [region.start for region in regions]

    def region_at(time: float) -> str | None:
        index = bisect_right(starts, time) - 1
        return regions[index].name if index >= 0 and time < regions[index].end else None

    return region_at


def gpu_work(trace: Trace, regions: Sequence[Span]) -> list[tuple[Span, str | None]]:
    """What ran on the GPU, by start, and the region in which the host launched it.

    Kernels of a CUDA graph belong to the region that replayed it. None: launched outside the
    regions, or by no call in the trace.
    """
    launches = {call.correlation: call.start for call in spans(trace, *CUDA_CALLS)}
    region_at = region_finder(regions)
    return [
        (span, region_at(launches[span.correlation]) if span.correlation in launches else None)
        for span in spans(trace, *ON_GPU)
    ]


def timed_work(
    trace: Trace, regions: Sequence[Span], *, on_gpu: bool
) -> list[tuple[str, float, str | None]]:
    """Name, microseconds and region of each kernel on a GPU, or of each operator on a CPU."""
    if on_gpu:
        return [(span.name, span.end - span.start, at) for span, at in gpu_work(trace, regions)]
    operators, region_at = spans(trace, OPERATOR), region_finder(regions)
    return [
        (span.name, time, region_at(span.start))
        for span, time in zip(operators, self_times(operators), strict=True)
    ]


@dataclass(frozen=True)
class GpuTime:
    """Microseconds in which the GPU was busy and idle."""

    busy: float
    idle: float

    @property
    def idle_share(self) -> float | None:
        """The idle part; None of no time at all."""
        whole = self.busy + self.idle
        return self.idle / whole if whole else None


def gpu_time(
    work: Sequence[tuple[Span, str | None]], start: float, end: float
) -> dict[str | None, GpuTime]:
    """The GPU's time from `start` to `end`, divided among regions; the parts add up to all of it.

    Overlapping spans count once, for the one that began first. Idle time counts for the region of
    the span that ends it, and after the last span for None, as does work outside all regions.
    """
    busy: dict[str | None, float] = defaultdict(float)
    idle: dict[str | None, float] = defaultdict(float)
    busy_until = start
    for span, region in sorted(work, key=lambda pair: pair[0].start):
        idle[region] += max(0.0, span.start - busy_until)
        busy[region] += max(0.0, span.end - max(span.start, busy_until))
        busy_until = max(span.end, busy_until)
    idle[None] += max(0.0, end - busy_until)
    return {region: GpuTime(busy[region], idle[region]) for region in idle}


def self_times(nested: Sequence[Span]) -> list[float]:
    """Each span's duration without the spans nested in it on its thread; order as of `spans`."""
    own_time = [span.end - span.start for span in nested]
    stacks: dict[object, list[int]] = defaultdict(list)
    for index, span in enumerate(nested):
        stack = stacks[span.thread]
        while stack and nested[stack[-1]].end <= span.start:
            stack.pop()
        if stack:
            own_time[stack[-1]] -= span.end - span.start
        stack.append(index)
    return [max(0.0, time) for time in own_time]
