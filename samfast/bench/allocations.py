"""What lay in memory when a run used most of it, and which line or operator had asked for it.

On a GPU PyTorch's allocator keeps a history, with stacks; on a CPU the profiler notes what
operators allocate.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from samfast.bench import events
from samfast.bench.events import Span, Trace
from samfast.bench.memory import graph_bytes
from samfast.bench.places import Frame, behind

MOST = 200_000
"""Events of a GPU's allocator that are kept; of more, only the last."""

NOWHERE = "no line of samfast or its user"
NO_OPERATOR = "outside operators"


@dataclass(frozen=True)
class Change:
    """Memory taken or given back.

    time     microseconds
    size     bytes; negative: given back
    label    of what is taken: who asked for it
    """

    time: float
    address: int
    size: int
    label: str = ""


@dataclass(frozen=True)
class Live:
    """What one label has in memory: bytes in so many pieces."""

    label: str
    bytes: int
    pieces: int


@dataclass(frozen=True)
class Moment:
    """Bytes in memory at a time; of what was there before the run, `before`."""

    time: float
    before: int
    by_label: dict[str, int]

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.before + sum(self.by_label.values())


@dataclass(frozen=True)
class History:
    """A run's memory.

    peak     the most bytes in memory at once, and `time`, when; `before`, what of it was there
             before the run
    live     what else there was then, the largest first
    start, end  of the first and the last change
    moments  for a picture: the fullest moment of each of many equal parts of that time
    """

    peak: int
    time: float
    before: int
    live: tuple[Live, ...]
    start: float
    end: float
    moments: tuple[Moment, ...] = field(repr=False)


def replay(changes: Sequence[Change], before: int = 0, parts: int = 600) -> History:
    """Go through the changes, by their time, from `before` bytes that are in memory already.

    What is given back and was not taken in these changes was there before them.
    """
    memory = _Memory(before)
    start, end = (changes[0].time, changes[-1].time) if changes else (0.0, 0.0)
    peak, time, then, fullest = before, start, before, memory.pieces()
    moments: list[Moment] = []
    place = 0
    for part in range(parts if changes else 0):
        until = start + (end - start) * (part + 1) / parts
        moment = memory.moment(start + (end - start) * part / parts)
        while place < len(changes) and (changes[place].time <= until or part == parts - 1):
            change = changes[place]
            memory.apply(change)
            place += 1
            if memory.bytes > moment.bytes:
                moment = memory.moment(change.time)
            if memory.bytes > peak:
                peak, time, then, fullest = (
                    memory.bytes,
                    change.time,
                    memory.before,
                    memory.pieces(),
                )
        moments.append(moment)
    return History(peak, time, then, _by_label(fullest), start, end, tuple(moments))


class _Memory:
    """What is in memory after the changes so far."""

    def __init__(self, before: int) -> None:
        self.before = self.bytes = before
        self._live: dict[int, Change] = {}
        self._totals: dict[str, int] = {}

    def apply(self, change: Change) -> None:
        """Take or give back."""
        old = self._live.pop(change.address, None)
        if old is not None:
            self._totals[old.label] -= old.size
            self.bytes -= old.size
        elif change.size < 0:
            taken = min(self.before, -change.size)
            self.before -= taken
            self.bytes -= taken
        if change.size > 0:
            self._live[change.address] = change
            self._totals[change.label] = self._totals.get(change.label, 0) + change.size
            self.bytes += change.size

    def pieces(self) -> list[Change]:
        """What was taken and not given back."""
        return list(self._live.values())

    def moment(self, time: float) -> Moment:
        """All of it, by label."""
        return Moment(
            time, self.before, {label: size for label, size in self._totals.items() if size}
        )


def _by_label(pieces: Sequence[Change]) -> tuple[Live, ...]:
    found: dict[str, tuple[int, int]] = {}
    for piece in pieces:
        size, count = found.get(piece.label, (0, 0))
        found[piece.label] = size + piece.size, count + 1
    return tuple(
        sorted(
            (Live(label, *each) for label, each in found.items()),
            key=lambda own: (-own.bytes, own.label),
        )
    )


@dataclass(frozen=True)
class Recorded:
    """The memory of one run.

    history         what was replayed
    regions         in which stages it was, by the history's clock
    by              what labels are: "line" or "operator"
    reported_peak   what PyTorch itself says that the peak was, on a GPU; it rounds each piece up
    graph_bytes     on a GPU: what CUDA graphs from before the run keep beside this for their
                    intermediate results
    incomplete      there were more events than are kept: the first are missing
    snapshot        on a GPU: PyTorch's own, as its viewer reads it
    """

    history: History
    regions: tuple[Span, ...]
    by: str
    reported_peak: int | None = None
    graph_bytes: int | None = None
    incomplete: bool = False
    snapshot: bytes | None = field(default=None, repr=False)


def on_gpu(run: Callable[[], Sequence[Span]], device: torch.device) -> Recorded:
    """Run it and replay what the allocator did; it has run before, so that graphs are recorded.

    run  returns the regions it went through, in microseconds since 1970
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, graphs = torch.cuda.memory_allocated(device), graph_bytes(device)
    record = torch.cuda.memory._record_memory_history
    record("all", context="alloc", stacks="python", max_entries=MOST)
    try:
        regions = tuple(run())
        torch.cuda.synchronize(device)
        snapshot = torch.cuda.memory._snapshot()
    finally:
        record(None)
    own = snapshot["device_traces"][index]
    return Recorded(
        replay(of_snapshot(own), before),
        regions,
        "line",
        torch.cuda.max_memory_allocated(device),
        graphs,
        len(own) >= MOST,
        pickle.dumps(snapshot),
    )


def of_snapshot(entries: Sequence[dict[str, Any]]) -> list[Change]:
    """The changes of one device's trace in PyTorch's memory snapshot, labelled by line.

    Memory counts until the GPU is done with it ("free_completed"): before that nothing else can
    have it.
    """
    changes = []
    for entry in entries:
        time = float(entry.get("time_us", 0))
        if entry["action"] == "alloc":
            line = behind(
                Frame(each["filename"], each["line"], each["name"]) for each in entry["frames"]
            )
            label = NOWHERE if line is None else str(line)
            changes.append(Change(time, entry["addr"], entry["size"], label))
        elif entry["action"] == "free_completed":
            changes.append(Change(time, entry["addr"], -entry["size"]))
    return changes


def on_cpu(trace: Trace, regions: Sequence[Span]) -> Recorded:
    """What the profiler noted of a run on a CPU with profile_memory=True: what that run took, by
    operator.
    """
    return Recorded(replay(of_trace(trace)), tuple(regions), "operator")


def of_trace(trace: Trace) -> list[Change]:
    """The changes of the host's memory in a trace, labelled by the operator that was called from
    Python.
    """
    notes = [
        event
        for event in trace["traceEvents"]
        if event.get("name") == "[memory]" and event.get("args", {}).get("Device Type") == 0
    ]
    notes.sort(key=lambda event: float(event["ts"]))
    chains = events.chains(
        events.spans(trace, events.OPERATOR),
        [(float(event["ts"]), event.get("tid", 0)) for event in notes],
    )
    return [
        Change(
            float(event["ts"]),
            event["args"]["Addr"],
            event["args"]["Bytes"],
            chain[0].name if chain else NO_OPERATOR,
        )
        for event, chain in zip(notes, chains, strict=True)
    ]
