"""Where the host waits for the GPU, with the line of Python that made it wait.

The trace has every call of CUDA that waits. PyTorch's synchronisation warnings come while Python is
still at the line that caused them; each warning leaves a mark in the trace, which joins the two.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import record_function

import samfast
from samfast.bench.trace_events import CUDA_CALLS, OPERATOR, REGION, Span, Trace, region_finder
from samfast.bench.trace_events import spans as spans_of

WAITING = frozenset(
    (
        *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
        *("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize", "cudaFree"),
    )
)
"""Calls of CUDA that return only when the GPU has reached them."""

COPY = "cudaMemcpyAsync"
"""This call blocks the host where the memory is not pinned; PyTorch does not warn of that."""

MARK = "wait "
"""Prefix of the marks in the trace; the index of the stack follows."""

_WARNING = "called a synchronizing CUDA operation"
_PROTOTYPE = "Synchronization debug mode is a prototype"
_PACKAGE = Path(samfast.__file__).parent
_LIBRARY = tuple(
    os.path.join(os.path.realpath(folder), "")
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
)


class Frame(NamedTuple):
    """A line on a stack of calls; as text relative to samfast's or the current folder."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        path = Path(self.file)
        for root in (_PACKAGE.parent if path.is_relative_to(_PACKAGE) else Path.cwd(), Path.cwd()):
            if path.is_relative_to(root):
                path = path.relative_to(root)
                break
        return f"{path.as_posix()}:{self.line} in {self.function}"


Stack = tuple[Frame, ...]
"""The innermost line first."""


def user_frame(stack: Iterable[Frame]) -> Frame | None:
    """The innermost line that is neither PyTorch's nor Python's; None if all are."""
    return next((frame for frame in stack if _is_user_code(Path(frame.file))), None)


@contextmanager
def noted() -> Iterator[list[Stack]]:
    """Collects the stack of each wait within the block, and marks each in the trace.

    PyTorch warns of copies to the host, `item`, `nonzero` and the like, and of waiting for streams;
    `torch.cuda.synchronize` and `Event.synchronize` are patched to be noted too.
    """
    stacks: list[Stack] = []

    def note() -> None:
        with record_function(f"{MARK}{len(stacks)}"):
            stacks.append(_stack())

    showwarning = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **named: Any) -> None:
        if _WARNING in str(message):
            note()
        else:
            showwarning(message, category, *where, **named)

    def noting(wait: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            answer = wait(*arguments, **options)
            note()
            return answer

        return wrapper

    device, event = torch.cuda.synchronize, torch.cuda.Event.synchronize
    on_gpu = torch.cuda.is_available()
    mode = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _WARNING)
        warnings.filterwarnings("ignore", _PROTOTYPE)
        warnings.showwarning = show
        torch.cuda.synchronize = noting(device)
        torch.cuda.Event.synchronize = noting(event)  # type: ignore[method-assign]
        try:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            yield stacks
        finally:
            torch.cuda.synchronize = device
            torch.cuda.Event.synchronize = event  # type: ignore[method-assign]
            if on_gpu:
                torch.cuda.set_sync_debug_mode(mode)


def wait_table(
    trace: Trace, stacks: Sequence[Stack], regions: Sequence[Span], start: float, end: float
) -> list[dict[str, Any]]:
    """The waits from `start` to `end`, equal ones added up, the longest first.

    stacks   of `noted`, which was open while the trace was recorded
    returns  JSON: "line" (None where no stack is known), "call" of CUDA, the "operators" of PyTorch
             around it, the outermost first, "region" (None outside them), "calls", "seconds" and
             "stack", the innermost line first
    """
    called = spans_of(trace, *CUDA_CALLS)
    calls = [span for span in called if span.name in WAITING]
    marks = [span for span in spans_of(trace, REGION) if span.name.startswith(MARK)]
    operators: dict[object, list[Span]] = defaultdict(list)
    for span in spans_of(trace, OPERATOR):
        operators[span.thread].append(span)

    def around(span: Span) -> tuple[Span, ...]:
        return tuple(o for o in operators[span.thread] if o.start <= span.start < o.end)

    # A copy of pageable memory counts unless its operator waits for the GPU anyway.
    pageable = {s.correlation for s in spans_of(trace, "gpu_memcpy") if "Pageable" in s.name}
    copies = [span for span in called if span.name == COPY and span.correlation in pageable]
    waited = {around(call)[:1] for call in calls} if copies else set()
    copies = [copy for copy in copies if not around(copy) or around(copy)[:1] not in waited]
    region_at = region_finder(regions)
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for call, mark in [*join(calls, marks), *((copy, None) for copy in copies)]:
        seen = call or mark
        assert seen is not None
        if not start <= seen.start <= end:
            continue
        stack = () if mark is None else stacks[int(mark.name.removeprefix(MARK))]
        line = user_frame(stack)
        name = None if call is None else call.name
        row: dict[str, Any] = {
            "line": None if line is None else str(line),
            "call": f"{name} of memory that is not pinned" if name == COPY else name,
            "operators": [span.name for span in around(seen)],
            "region": region_at(seen.start),
            "calls": 0,
            "seconds": 0.0,
            "stack": [str(frame) for frame in stack],
        }
        row = rows.setdefault((line, row["call"], tuple(row["operators"]), row["region"]), row)
        row["calls"] += 1
        row["seconds"] += 0.0 if call is None else (call.end - call.start) / 1e6
    return sorted(rows.values(), key=lambda row: -row["seconds"])


def join(calls: Sequence[Span], marks: Sequence[Span]) -> list[tuple[Span | None, Span | None]]:
    """Pairs of a call that waited and its mark; one of the two may be missing.

    PyTorch warns when an operator returns, so the marks of two waits in one operator follow both
    calls. A mark belongs to the last call before it on its thread that has none; calls from before
    an earlier mark stay without.
    """
    pairs: list[tuple[Span | None, Span | None]] = []
    pending: dict[object, list[Span]] = defaultdict(list)
    after_mark: set[object] = set()
    is_mark = {id(mark) for mark in marks}
    for span in sorted((*calls, *marks), key=lambda span: span.start):
        waiting = pending[span.thread]
        if id(span) in is_mark:
            pairs.append((waiting.pop() if waiting else None, span))
            after_mark.add(span.thread)
            continue
        if span.thread in after_mark:
            pairs += [(call, None) for call in waiting]
            waiting.clear()
            after_mark.discard(span.thread)
        waiting.append(span)
    return pairs + [(call, None) for waiting in pending.values() for call in waiting]


def _is_user_code(file: Path) -> bool:
    if file.is_relative_to(_PACKAGE):
        return True
    if file.suffix != ".py" or {"site-packages", "dist-packages"} & set(file.parts):
        return False
    return not os.path.realpath(file).startswith(_LIBRARY)


def _stack() -> Stack:
    """The lines being run, except those of this file and of the module that warns."""
    hidden = (__file__, warnings.__file__)
    return tuple(
        Frame(frame.filename, frame.lineno or 0, frame.name)
        for frame in reversed(traceback.extract_stack())
        if frame.filename not in hidden
    )
