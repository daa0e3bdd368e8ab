"""Where the host waits for the GPU, and which line of Python made it wait.

Two things together tell: the trace has every call of CUDA that waits, and PyTorch warns of what
synchronises while Python is still at the line that asked for it. Each warning leaves a mark in the
trace, which joins them.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.profiler import record_function

from samfast.bench import events
from samfast.bench.events import Span, Trace
from samfast.bench.places import Frame, behind

WAITING = frozenset(
    (
        *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
        *("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize", "cudaFree"),
    )
)
"""Calls of CUDA that return only when the GPU has come so far."""

COPY, STAGED = "cudaMemcpyAsync", " of memory that is not pinned"
"""Such a copy holds the host up until the driver has copied it elsewhere first; PyTorch does not
warn of it."""

MARK = "wait "
"""Begins the name of a mark in the trace; the number of its note follows."""

_SAYS = "called a synchronizing CUDA operation"
_PROTOTYPE = "Synchronization debug mode is a prototype"

Stack = tuple[Frame, ...]


@contextmanager
def noted() -> Iterator[list[Stack]]:
    """Notes the stack, innermost line first, of each wait that PyTorch knows of within the block,
    and marks it.

    It knows of copies to the host, `item`, `nonzero` and what needs them, and streams waited for;
    beside these, `torch.cuda.synchronize` and `Event.synchronize` are watched. Without a GPU
    nothing is ever noted.
    """
    notes: list[Stack] = []

    def note() -> None:
        with record_function(f"{MARK}{len(notes)}"):
            notes.append(_stack())

    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **named: Any) -> None:
        if _SAYS in str(message):
            note()
        else:
            shown(message, category, *where, **named)

    def telling(wait: Callable[..., Any]) -> Callable[..., Any]:
        def told(*given: Any, **named: Any) -> Any:
            answer = wait(*given, **named)
            note()
            return answer

        return told

    device, event = torch.cuda.synchronize, torch.cuda.Event.synchronize
    on_gpu = torch.cuda.is_available()
    before = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _SAYS)
        warnings.filterwarnings("ignore", _PROTOTYPE)
        warnings.showwarning = show
        torch.cuda.synchronize = telling(device)
        torch.cuda.Event.synchronize = telling(event)  # type: ignore[method-assign]
        try:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            yield notes
        finally:
            torch.cuda.synchronize, torch.cuda.Event.synchronize = device, event  # type: ignore[method-assign]
            if on_gpu:
                torch.cuda.set_sync_debug_mode(before)


def table(
    trace: Trace, notes: Sequence[Stack], regions: Sequence[Span], start: float, end: float
) -> list[dict[str, Any]]:
    """The waits from `start` to `end`, equal ones added up, the longest first; empty: nothing
    waited.

    notes    of `noted`, which was open while the trace was made
    returns  JSON: "line" (None where Python's own line is not known), "call" of CUDA, "operators"
             of PyTorch that led there, the outermost first, "region" (None outside them), "calls",
             "seconds" and "stack", the innermost line first
    """
    called = events.spans(trace, *events.CALLS)
    calls = [span for span in called if span.name in WAITING]
    marks = [span for span in events.spans(trace, events.REGION) if span.name.startswith(MARK)]
    every = joined(calls, marks) + [Wait(call, None) for call in _staged(trace, called, calls)]
    found = [wait for wait in every if start <= wait.seen.start <= end]
    chains = events.chains(
        events.spans(trace, events.OPERATOR),
        [(wait.seen.start, wait.seen.thread) for wait in found],
    )
    at = events.finder(regions)
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for wait, chain in zip(found, chains, strict=True):
        stack = () if wait.mark is None else notes[int(wait.mark.name.removeprefix(MARK))]
        line = behind(stack)
        row: dict[str, Any] = {
            "line": None if line is None else str(line),
            "call": None
            if wait.call is None
            else wait.call.name + (STAGED if wait.call.name == COPY else ""),
            "operators": [span.name for span in chain],
            "region": at(wait.seen.start),
            "calls": 0,
            "seconds": 0.0,
            "stack": [str(frame) for frame in stack],
        }
        row = rows.setdefault((line, row["call"], tuple(row["operators"]), row["region"]), row)
        row["calls"] += 1
        row["seconds"] += 0.0 if wait.call is None else (wait.call.end - wait.call.start) / 1e6
    return sorted(rows.values(), key=lambda row: -row["seconds"])


class Wait(NamedTuple):
    """A call that waited and the mark of what is known about it; one of them may be missing."""

    call: Span | None
    mark: Span | None

    @property
    def seen(self) -> Span:
        """Where the trace shows it."""
        found = self.call or self.mark
        assert found is not None
        return found


def joined(calls: Sequence[Span], marks: Sequence[Span]) -> list[Wait]:
    """Each mark and the call that it tells of: the last one before it on its thread that no later
    mark tells of.

    PyTorch warns when an operator returns: of two waits in one operator the marks follow both.
    Calls from before an earlier mark are nobody's any more.
    """
    found: list[Wait] = []
    waiting: dict[object, list[Span]] = {}
    told: set[object] = set()
    kept = {id(mark) for mark in marks}
    for span in sorted((*calls, *marks), key=lambda span: span.start):
        own = waiting.setdefault(span.thread, [])
        if id(span) in kept:
            found.append(Wait(own.pop() if own else None, span))
            told.add(span.thread)
            continue
        if span.thread in told:
            found += [Wait(call, None) for call in own]
            own.clear()
            told.discard(span.thread)
        own.append(span)
    found += [Wait(call, None) for own in waiting.values() for call in own]
    return sorted(found, key=lambda wait: wait.seen.start)


def _staged(trace: Trace, called: Sequence[Span], calls: Sequence[Span]) -> list[Span]:
    """Copies of memory that is not pinned, without those whose operator then waits for them
    anyway.
    """
    links = {span.link for span in events.spans(trace, "gpu_memcpy") if "Pageable" in span.name}
    copies = [span for span in called if span.name == COPY and span.link in links]
    operators = events.spans(trace, events.OPERATOR)
    chains = events.chains(operators, [(span.start, span.thread) for span in copies])
    waited = {
        chain[0]
        for chain in events.chains(operators, [(span.start, span.thread) for span in calls])
        if chain
    }
    return [
        copy
        for copy, chain in zip(copies, chains, strict=True)
        if not chain or chain[0] not in waited
    ]


def _stack() -> Stack:
    """The lines being run, without those of this file and of the module that warns."""
    here = (__file__, warnings.__file__)
    return tuple(
        Frame(frame.filename, frame.lineno or 0, frame.name)
        for frame in reversed(traceback.extract_stack())
        if frame.filename not in here
    )
