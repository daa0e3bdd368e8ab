"""Time by kernel on a GPU, by operator on a CPU, and by class of both."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from samfast.bench.trace_events import record, timed_work

TOP = 40
"""Rows of a table by time; the rest of each class is one row more, "... (n more)"."""

CLASSES = ("matmul", "attention", "norm/elementwise", "copies", "other")

OWN_KERNELS = {
    "_global_attention": "attention",
    "_window_attention": "attention",
    "window_attention": "attention",
    "_positions": "attention",
    "_linear_gelu": "matmul",
    "linear_gelu": "matmul",
    "_rows": "norm/elementwise",
    "_first_pass": "norm/elementwise",
    "_second_pass": "norm/elementwise",
    "_patches": "copies",
    "_cut_out": "copies",
    "_put_back": "copies",
}
"""The class of samfast's own kernels of the image encoder."""

_PATTERNS = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        # torch.compile names a kernel after the operations that it fused; those come first.
        ("norm/elementwise", r"^triton_(poi|per|red|for)_"),
        ("matmul", r"^triton_(tem|mm|bmm)_|^nvjet"),
        ("attention", r"attend|attention|flash|fmha|mha_|sdpa|softmax|^_fwd_kernel"),
        (
            "copies",
            r"memcpy|memset|copy|catarray"
            r"|^aten::(cat|contiguous|clone|constant_pad_nd|fill_|zero_)$",
        ),
        (
            "matmul",
            r"gemm|_mm\b|mm_|matmul|cutlass|cublas|wgmma|convolution|fprop|conv2d|mkldnn|onednn"
            r"|^aten::(linear|mm|addmm|bmm|baddbmm|einsum)$",
        ),
        (
            "norm/elementwise",
            r"norm|gelu|elementwise|reduce|welford|quant|amax"
            r"|^aten::(add|sub|mul|div|mean|pow|sqrt|erf|neg|exp)_?$",
        ),
    )
)


def classify(name: str) -> str:
    """The class, of CLASSES, of a kernel or operator by its name; convolutions are products."""
    if name in OWN_KERNELS:
        return OWN_KERNELS[name]
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")


def kernel_table(
    encode: Callable[[], object], device: torch.device, *, calls: int = 3
) -> dict[str, Any]:
    """Trace some calls of an encoder that has run before; returns what `table` does."""

    def run() -> None:
        for _ in range(calls):
            encode()

    on_gpu = device.type == "cuda"
    if on_gpu:
        record(encode, device, host=False)  # the first trace of a process starts the profiler
    _, trace = record(run, device, host=not on_gpu)
    times = [(name, time) for name, time, _ in timed_work(trace, (), on_gpu=on_gpu)]
    return table(times, calls=calls)


def table(timed: Iterable[tuple[str, float]], *, calls: int = 1) -> dict[str, Any]:
    """Time by class and by name.

    timed    name and microseconds of each kernel or operator that ran in `calls` calls
    returns  JSON: "classes", for each of CLASSES its "ms" and "share" of the busy time; "rows", for
             each name its "class", "calls", "ms" and "share"; all are of one call
    """
    counts: dict[str, int] = defaultdict(int)
    times: dict[str, float] = defaultdict(float)
    for name, microseconds in timed:
        counts[name] += 1
        times[name] += microseconds
    busy = sum(times.values()) or 1.0

    def row(name: str, kind: str, names: Sequence[str]) -> dict[str, Any]:
        time = sum(times[each] for each in names)
        count = sum(counts[each] for each in names) / calls
        ms, share = time / 1e3 / calls, time / busy
        return {"name": name, "class": kind, "calls": count, "ms": ms, "share": share}

    ordered = sorted(times, key=times.__getitem__, reverse=True)
    rows = [row(shortened(name), classify(name), [name]) for name in ordered[:TOP]]
    classes = {}
    for kind in CLASSES:
        members = [name for name in ordered if classify(name) == kind]
        rest = [name for name in members if name not in ordered[:TOP]]
        if rest:
            rows.append(row(f"... ({len(rest)} more)", kind, rest))
        whole = row(kind, kind, members)
        classes[kind] = {"ms": whole["ms"], "share": whole["share"]}
    return {"classes": classes, "rows": rows}


def shortened(name: str) -> str:
    """A kernel's name cut to 160 characters: C++ template names are long."""
    return name if len(name) <= 160 else name[:157] + "..."
