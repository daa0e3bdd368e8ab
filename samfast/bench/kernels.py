"""Where the time of an encoder call goes: by kernel on a GPU, by operation on a CPU, and by
class.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from samfast.bench import events
from samfast.bench.timing import synchronize

GeneratedMasks = list[tuple[str, int, float]]
"""Of each kernel or operation its name, how often it ran, and the seconds that it took in all."""

CLASSES = ("matmul", "attention", "norm/elementwise", "copies", "other")

_OWN = {
    "_whole": "attention",
    "_windows": "attention",
    "_positions": "attention",
    "_rows": "norm/elementwise",
    "_first_pass": "norm/elementwise",
    "_second_pass": "norm/elementwise",
    "_patches": "copies",
    "_cut_out": "copies",
    "_put_back": "copies",
}
"""samfast's Triton kernels, by the names of their functions."""

_CLASS_OF = (
    # What torch.compile makes of everything between the products; its names list the operations
    # fused into it.
    ("norm/elementwise", r"^triton_(poi|per|red|for)_"),
    ("matmul", r"^triton_(tem|mm|bmm)_|^nvjet"),
    ("attention", r"attend|attention|flash|fmha|mha_|sdpa|softmax|^_fwd_kernel"),
    (
        "copies",
        r"memcpy|memset|copy|catarray|^aten::(cat|contiguous|clone|constant_pad_nd|fill_|zero_)$",
    ),
    (
        "matmul",
        r"gemm|_mm\b|mm_|matmul|cutlass|cublas|wgmma|convolution|fprop|conv2d|mkldnn|onednn"
        r"|^aten::(linear|mm|addmm|bmm|baddbmm|einsum)$",
    ),
    (
        "norm/elementwise",
        r"norm|gelu|elementwise|reduce|welford|quant|amax|^aten::(add|sub|mul|div|mean|pow|sqrt|erf|neg|exp)_?$",
    ),
)
_PATTERNS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _CLASS_OF)


def classify(name: str) -> str:
    """The class, of CLASSES, of a kernel or operation, by its name; convolutions are products."""
    if name in _OWN:
        return _OWN[name]
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")


def kernel_table(
    encode: Callable[[], object], device: torch.device, *, calls: int = 3, top: int = 40
) -> dict[str, Any]:
    """Trace some calls of an encoder that has been called before.

    top      rows, by time; the rest of each class is one row, "... (n more)"
    returns  JSON: "milliseconds", of a call, from the first kernel's start to the last one's end;
             "idle_share", the part of it in which the GPU runs nothing (None on a CPU): the
             profiler slows what launches the kernels, so of an encoder without a CUDA graph it is
             an upper bound; "classes", for each of CLASSES its milliseconds and share of the busy
             time; "rows", for each kernel name, class, calls, ms and share; calls and ms are of one
             encoder call
    """
    idle: float | None
    if device.type == "cuda":
        _traced(encode, device, 1)  # the first trace of a process pays for the profiler's own start
        found, span, idle = of_trace(_traced(encode, device, calls))
    else:
        found, span, idle = _on_cpu(encode, calls)
    return {
        "milliseconds": 1e3 * span / calls,
        "idle_share": idle,
        **table(found, calls=calls, top=top),
    }


def table(found: GeneratedMasks, *, calls: int = 1, top: int = 40) -> dict[str, Any]:
    """What ran during so many calls, of one of them: "classes" and "rows" as `kernel_table` has
    them.
    """
    busy = sum(seconds for _, _, seconds in found) or 1.0
    classes = dict.fromkeys(CLASSES, 0.0)
    for name, _, seconds in found:
        classes[classify(name)] += seconds
    return {
        "classes": {
            kind: {"ms": 1e3 * seconds / calls, "share": seconds / busy}
            for kind, seconds in classes.items()
        },
        "rows": [
            {
                "name": name,
                "class": kind,
                "calls": count / calls,
                "ms": 1e3 * seconds / calls,
                "share": seconds / busy,
            }
            for name, kind, count, seconds in _shortened(found, top)
        ],
    }


def of_trace(trace: dict[str, Any]) -> tuple[GeneratedMasks, float, float]:
    """A trace in Chrome's format -> what ran on the GPU, seconds in all, and the idle share.

    Kernels of several streams may overlap: time is idle when none runs.
    """
    work = events.spans(trace, *events.ON_GPU)
    if not work:
        return [], 0.0, 1.0
    whole = max(span.end for span in work) - work[0].start
    return (
        added((span.name, span.end - span.start) for span in work),
        whole / 1e6,
        (1 - events.union(work) / whole if whole else 0.0),
    )


def added(runs: Iterable[tuple[str, float]]) -> GeneratedMasks:
    """Names and microseconds, one a run, added up by name."""
    totals: dict[str, tuple[int, float]] = {}
    for name, microseconds in runs:
        count, seconds = totals.get(name, (0, 0.0))
        totals[name] = count + 1, seconds + microseconds / 1e6
    return [(name, count, seconds) for name, (count, seconds) in totals.items()]


def _traced(encode: Callable[[], object], device: torch.device, calls: int) -> dict[str, Any]:
    synchronize(device)
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            encode()
        synchronize(device)
    with tempfile.TemporaryDirectory(prefix="samfast-trace-") as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        found: dict[str, Any] = json.loads(path.read_text())
    return found


def _on_cpu(encode: Callable[[], object], calls: int) -> tuple[GeneratedMasks, float, float | None]:
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(calls):
            encode()
    found = [
        (event.key, event.count, event.self_cpu_time_total / 1e6)
        for event in seen.key_averages()
        if event.self_cpu_time_total > 0
    ]
    return found, sum(seconds for _, _, seconds in found), None


def _shortened(
    found: Iterable[tuple[str, int, float]], top: int
) -> list[tuple[str, str, int, float]]:
    """The `top` longest, and a row for what is left of each class."""
    rows = sorted(
        ((short(name), classify(name), count, seconds) for name, count, seconds in found),
        key=lambda row: -row[3],
    )
    kept, rest = rows[:top], rows[top:]
    for kind in CLASSES:
        own = [row for row in rest if row[1] == kind]
        if own:
            kept.append(
                (
                    f"... ({len(own)} more)",
                    kind,
                    sum(row[2] for row in own),
                    sum(row[3] for row in own),
                )
            )
    return kept


def short(name: str) -> str:
    """A kernel's name as it is shown: C++ writes long ones."""
    return name if len(name) <= 160 else name[:157] + "..."
