"""The arithmetic of traces, on events written by hand."""

from __future__ import annotations

import pytest

from samfast.bench import events
from samfast.bench.events import Span, Use


def event(category, name, start, end, *, thread=1, link=None):
    args = {} if link is None else {"correlation": link}
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": start,
        "dur": end - start,
        "tid": thread,
        "args": args,
    }


TRACE = {
    "traceEvents": [
        event("user_annotation", "encoder", 0, 20),
        event("user_annotation", "decoder", 20, 40),
        event("gpu_user_annotation", "encoder", 50, 90, thread=7),
        event("cuda_runtime", "cudaGraphLaunch", 5, 9, link=1),
        event("cuda_driver", "cuLaunchKernelEx", 21, 23, link=2),
        event("cuda_runtime", "cudaMemcpyAsync", 45, 47, link=3),
        # The graph's kernels run when the host is long in the next region.
        event("kernel", "gemm", 30, 50, thread=7, link=1),
        event("kernel", "norm", 55, 60, thread=7, link=1),
        event("kernel", "attend", 58, 70, thread=8, link=2),
        event("gpu_memcpy", "Memcpy DtoH", 80, 85, thread=7, link=3),
        event("gpu_memset", "Memset", 85, 86, thread=7, link=99),
        {"ph": "i", "cat": "kernel", "name": "an instant", "ts": 0},
    ]
}
REGIONS = events.spans(TRACE, events.REGION)


def test_kernels_belong_to_the_region_that_launched_them():
    found = [(span.name, region) for span, region in events.launched(TRACE, REGIONS)]
    assert found == [
        ("gemm", "encoder"),
        ("norm", "encoder"),
        ("attend", "decoder"),
        ("Memcpy DtoH", None),  # launched after the last region
        ("Memset", None),  # by nothing in the trace
    ]


def test_the_gpus_time_is_shared_out_without_rest():
    work = events.launched(TRACE, REGIONS)
    found = events.use(work, 0, 100)
    assert found == {
        # 30 before gemm, 5 before norm
        "encoder": Use(busy=20 + 5, idle=30 + 5),
        # two of attend's microseconds are norm's too
        "decoder": Use(busy=10, idle=0),
        # 10 before the copy, 14 after the last
        None: Use(busy=5 + 1, idle=10 + 14),
    }
    assert sum(use.busy + use.idle for use in found.values()) == 100
    assert found["encoder"].idle_share == pytest.approx(35 / 60)
    assert Use(0, 0).idle_share is None
    assert events.use([], 10, 30) == {None: Use(0, 20)}


def test_what_began_before_the_window_counts_from_its_start_on():
    work = [(Span("a", 0, 12), "encoder"), (Span("b", 2, 5), "decoder")]
    assert events.use(work, 10, 20) == {
        "encoder": Use(2, 0),
        "decoder": Use(0, 0),
        None: Use(0, 8),
    }


def test_union():
    assert events.union([]) == 0
    assert (
        events.union([Span("b", 5, 9), Span("a", 0, 6), Span("c", 1, 2), Span("d", 20, 21)]) == 10
    )


def test_regions_by_time():
    assert [events.finder(REGIONS)(time) for time in (-1, 0, 19.9, 20, 39, 40)] == [
        None,
        "encoder",
        "encoder",
        "decoder",
        "decoder",
        None,
    ]


NESTED = [
    Span("aten::index", 0, 10),
    Span("aten::nonzero", 2, 8),
    Span("aten::copy_", 3, 4),
    Span("aten::add", 10, 12),
    Span("aten::add", 1, 5, thread=2),
]


def test_chains_of_callers():
    moments = [(11.0, 1), (3.5, 0), (4.0, 0), (10.0, 0), (9.0, 0), (12.0, 0), (3.0, 2)]
    names = [[span.name for span in chain] for chain in events.chains(NESTED, moments)]
    assert names == [
        [],  # nothing on that thread
        ["aten::index", "aten::nonzero", "aten::copy_"],
        ["aten::index", "aten::nonzero"],
        ["aten::add"],
        ["aten::index"],
        [],
        ["aten::add"],
    ]


def test_time_alone():
    ordered = sorted(NESTED, key=lambda span: (span.start, -span.end))
    assert [(span.name, own) for span, own in zip(ordered, events.alone(ordered), strict=True)] == [
        ("aten::index", 4),
        ("aten::add", 4),
        ("aten::nonzero", 5),
        ("aten::copy_", 1),
        ("aten::add", 2),
    ]
