"""The arithmetic of traces, on events written by hand."""

from __future__ import annotations

import tempfile

import pytest
import torch

from samfast.bench import trace_events
from samfast.bench.trace_events import GpuTime, Span
from samfast.errors import OutputError


def event(category, name, start, end, *, thread=1, link=None):
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": start,
        "dur": end - start,
        "tid": thread,
        "args": {} if link is None else {"correlation": link},
    }


TRACE = {
    "traceEvents": [
        event("user_annotation", "encoder", 0, 20),
        event("user_annotation", "decoder", 20, 40),
        event("gpu_user_annotation", "encoder", 50, 90, thread=7),
        event("cuda_runtime", "cudaGraphLaunch", 5, 9, link=1),
        event("cuda_driver", "cuLaunchKernelEx", 21, 23, link=2),
        event("cuda_runtime", "cudaMemcpyAsync", 45, 47, link=3),
        # The graph's kernels run when the host is already in the next region.
        event("kernel", "gemm", 30, 50, thread=7, link=1),
        event("kernel", "norm", 55, 60, thread=7, link=1),
        event("kernel", "attend", 58, 70, thread=8, link=2),
        event("gpu_memcpy", "Memcpy DtoH", 80, 85, thread=7, link=3),
        event("gpu_memset", "Memset", 85, 86, thread=7, link=99),
        {"ph": "i", "cat": "kernel", "name": "an instant", "ts": 0},
    ]
}
REGIONS = trace_events.spans(TRACE, trace_events.REGION)


def test_kernels_belong_to_the_region_that_launched_them():
    work = [(span.name, region) for span, region in trace_events.gpu_work(TRACE, REGIONS)]
    assert work == [
        ("gemm", "encoder"),
        ("norm", "encoder"),
        ("attend", "decoder"),
        ("Memcpy DtoH", None),  # launched after the last region
        ("Memset", None),  # by no call in the trace
    ]


def test_the_gpus_time_is_divided_without_remainder():
    work = trace_events.gpu_time(trace_events.gpu_work(TRACE, REGIONS), 0, 100)
    assert work == {
        "encoder": GpuTime(busy=20 + 5, idle=30 + 5),  # idle before gemm and before norm
        "decoder": GpuTime(busy=10, idle=0),  # two of attend's microseconds overlap norm
        None: GpuTime(busy=5 + 1, idle=10 + 14),  # idle before the copy and after the last span
    }
    assert sum(time.busy + time.idle for time in work.values()) == 100
    assert work["encoder"].idle_share == pytest.approx(35 / 60)
    assert GpuTime(0, 0).idle_share is None
    assert trace_events.gpu_time([], 10, 30) == {None: GpuTime(0, 20)}


def test_work_that_began_before_the_window_counts_from_its_start():
    work = [(Span("a", 0, 12), "encoder"), (Span("b", 2, 5), "decoder")]
    assert trace_events.gpu_time(work, 10, 20) == {
        "encoder": GpuTime(2, 0),
        "decoder": GpuTime(0, 0),
        None: GpuTime(0, 8),
    }


def test_regions_by_time():
    region_at = trace_events.region_finder(REGIONS)
    assert [region_at(time) for time in (-1, 0, 19.9, 20, 39, 40)] == [
        None,
        "encoder",
        "encoder",
        "decoder",
        "decoder",
        None,
    ]


def test_self_times():
    nested = [
        Span("aten::index", 0, 10),
        Span("aten::add", 1, 5, thread=2),
        Span("aten::nonzero", 2, 8),
        Span("aten::copy_", 3, 4),
        Span("aten::add", 10, 12),
    ]
    assert trace_events.self_times(nested) == [4, 4, 5, 1, 2]


def test_a_trace_that_has_no_room_is_an_error(monkeypatch):
    def truncated(self, path):
        with open(path, "w") as file:
            file.write('{"traceEvents": [')

    for export in (truncated, lambda self, path: None):
        monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", export)
        with pytest.raises(OutputError, match="TMPDIR") as raised:
            trace_events.record(lambda: None, torch.device("cpu"))
        assert tempfile.gettempdir() in str(raised.value)
