"""Arithmetic on a trace in Chrome's format: what ran, for which region, and when the GPU was idle.

Times are microseconds of the trace's own clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""The categories of events that occupy the GPU."""

CALLS = ("cuda_runtime", "cuda_driver")
"""Those of the host's calls of CUDA."""

REGION = "user_annotation"
"""That of `torch.profiler.record_function`, on the host."""

OPERATOR = "cpu_op"
"""That of PyTorch's operators."""

Trace = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """Something that began and ended.

    thread  of the host, or a GPU's stream
    link    what a call of CUDA and the kernels that it launched have in common; None: nothing
    """

    name: str
    start: float
    end: float
    thread: object = 0
    link: int | None = None


def spans(trace: Trace, *categories: str) -> list[Span]:
    """The events of these categories that have a duration, by their start; of equal starts the
    longest first.
    """
    found = [
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
    return sorted(found, key=lambda span: (span.start, -span.end))


def union(found: Iterable[Span]) -> float:
    """How long at least one of the spans lasts."""
    return sum(own.busy for own in occupied(found))


@dataclass(frozen=True)
class Occupied:
    """What a span adds to a timeline: how long nothing ran before it, and how long it ran when no
    earlier one did.
    """

    span: Span
    gap: float
    busy: float


def occupied(found: Iterable[Span], start: float | None = None) -> list[Occupied]:
    """Each span's part of the timeline, by their start. Gaps and busy times add up to the last end
    less `start`.

    start  when the timeline begins; what lies before is not counted. None: with the first span
    """
    parts = []
    for span in sorted(found, key=lambda span: span.start):
        cursor = span.start if start is None else start
        gap = max(0.0, span.start - cursor)
        busy = max(0.0, span.end - max(span.start, cursor))
        parts.append(Occupied(span, gap, busy))
        start = max(span.end, cursor)
    return parts


def finder(regions: Sequence[Span]) -> Callable[[float], str | None]:
    """What tells the region of a moment, of regions that do not overlap, by their start; None
    outside them.
    """
    starts = [region.start for region in regions]

    def at(time: float) -> str | None:
        index = bisect_right(starts, time) - 1
        return regions[index].name if index >= 0 and time < regions[index].end else None

    return at


def launched(trace: Trace, regions: Sequence[Span]) -> list[tuple[Span, str | None]]:
    """What ran on the GPU, by its start, and the region in which the host launched it.

    The kernels of a CUDA graph are linked to the call that replayed it. None: launched outside the
    regions, or nothing in the trace says where.
    """
    when = {call.link: call.start for call in spans(trace, *CALLS) if call.link is not None}
    at = finder(regions)
    return [
        (span, at(when[span.link]) if span.link in when else None) for span in spans(trace, *ON_GPU)
    ]


@dataclass(frozen=True)
class Use:
    """How the GPU spent a time, in microseconds.

    busy  when it ran something: what overlaps is counted once, for what began first
    idle  when it ran nothing; of a region, before that region's own kernels, which were not
          launched yet
    """

    busy: float
    idle: float

    @property
    def idle_share(self) -> float | None:
        """The idle part of it; None of no time at all."""
        whole = self.busy + self.idle
        return self.idle / whole if whole else None


def use(work: Sequence[tuple[Span, str | None]], start: float, end: float) -> dict[str | None, Use]:
    """How each region used the GPU from `start` to `end`; all of it adds up to that time.

    None is what belongs to no region: work of no region, and idling after the last kernel.
    """
    totals: dict[str | None, tuple[float, float]] = {None: (0.0, 0.0)}
    owners = {id(span): region for span, region in work}
    cursor = start
    for part in occupied((span for span, _ in work), start):
        busy, idle = totals.get(owners[id(part.span)], (0.0, 0.0))
        totals[owners[id(part.span)]] = busy + part.busy, idle + part.gap
        cursor += part.gap + part.busy
    busy, idle = totals[None]
    totals[None] = busy, idle + max(0.0, end - cursor)
    return {region: Use(*total) for region, total in totals.items()}


def chains(
    outer: Iterable[Span], moments: Sequence[tuple[float, object]]
) -> list[tuple[Span, ...]]:
    """For each moment of a thread the spans of that thread that it lies in, the outermost first.

    outer    spans that are nested in each other or apart, as calls on a thread are
    moments  time and thread
    """
    threads: dict[object, list[Span]] = {}
    for span in sorted(outer, key=lambda span: (span.start, -span.end)):
        threads.setdefault(span.thread, []).append(span)
    found: list[tuple[Span, ...]] = [()] * len(moments)
    stacks: dict[object, tuple[int, list[Span]]] = {}
    for index in sorted(range(len(moments)), key=lambda index: moments[index][0]):
        time, thread = moments[index]
        own = threads.get(thread, [])
        place, stack = stacks.get(thread, (0, []))
        while place < len(own) and own[place].start <= time:
            while stack and stack[-1].end <= own[place].start:
                stack.pop()
            stack.append(own[place])
            place += 1
        while stack and stack[-1].end <= time:
            stack.pop()
        stacks[thread] = place, stack
        found[index] = tuple(stack)
    return found


def alone(nested: Sequence[Span]) -> list[float]:
    """How long each span lasts without those that lie in it on the same thread, in the order of
    `spans`.
    """
    own = [span.end - span.start for span in nested]
    stacks: dict[object, list[int]] = {}
    for index, span in enumerate(nested):
        stack = stacks.setdefault(span.thread, [])
        while stack and nested[stack[-1]].end <= span.start:
            stack.pop()
        if stack:
            own[stack[-1]] -= span.end - span.start
        stack.append(index)
    return [max(0.0, each) for each in own]
