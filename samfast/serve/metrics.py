"""What /metrics tells, in Prometheus's text format."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from samfast.serve.batch_policy import Operation, Urgency

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Bounds of the histograms' buckets."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Depths = Callable[[], dict[tuple[Operation, Urgency], int]]


class Metrics:
    """Counters and histograms of one service, in a registry of their own."""

    def __init__(self, device: torch.device) -> None:
        self._registry = CollectorRegistry()
        into = self._registry
        self.requests = Counter(
            "samfast_requests", "Requests that were answered", ["route", "status"], registry=into
        )
        self.open_requests = Gauge(
            "samfast_open_requests", "Requests that are received or answered", registry=into
        )
        self.batch_jobs = Histogram(
            "samfast_batch_jobs", "Jobs in a batch", ["operation"], buckets=COUNTS, registry=into
        )
        self.batch_cost = Histogram(
            "samfast_batch_size",
            "Objects or images in a batch",
            ["operation"],
            buckets=COUNTS,
            registry=into,
        )
        self.stages = StageSeconds()
        into.register(self.stages)
        self.lookups = Counter(
            "samfast_embedding_lookups",
            "Embeddings by the tier that had them; encoded: none had",
            ["tier"],
            registry=into,
        )
        self.refused = Counter(
            "samfast_refused_jobs",
            "Jobs refused because the queue was full",
            ["urgency"],
            registry=into,
        )
        self.dropped = Counter(
            "samfast_dropped_jobs", "Jobs whose client left before they ran", registry=into
        )
        self.store_skips = Counter(
            "samfast_store_skipped_writes",
            "Embeddings not written: the store is too slow",
            registry=into,
        )
        self._gauges = _Gauges(device)
        self._registry.register(self._gauges)

        # Finding a series by its labels takes longer than counting in it.
        self.lookups_of = cache(self.lookups.labels)
        self._requests_of = cache(self.requests.labels)

    def answered(self, route: str, status: int, *seconds: float) -> None:
        """Count requests that were answered, each after so many seconds."""
        self._requests_of(route, str(status)).inc(len(seconds))
        self.stages.observe("request", seconds)

    def watch_queue(self, depths: Depths) -> None:
        """Read the depth of the queue there when it is asked for."""
        self._gauges.depths = depths

    def watch_tiers(self, tiers: Callable[[], dict[str, int]]) -> None:
        """Read the bytes of the tiers there when they are asked for."""
        self._gauges.tiers = tiers

    def watch_masks(self, size: Callable[[], int]) -> None:
        """Read the bytes of low-resolution masks there when they are asked for."""
        self._gauges.mask_bytes = size

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages.observe(name, [time.perf_counter() - start])

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class StageSeconds(Collector):
    """A histogram of the time in each stage, which takes the times of a batch at once: the
    library's own takes one, in longer than the server has for all else that it counts of a click.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Of each stage, how many times are within each bound and above the one before, and their
        # sum.
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, stage: str, seconds: Iterable[float]) -> None:
        """Count some times."""
        with self._lock:
            counts = self._counts.setdefault(stage, [0] * (len(SECONDS) + 1))
            total = self._sums.get(stage, 0.0)
            for each in seconds:
                counts[bisect_left(SECONDS, each)] += 1
                total += each
            self._sums[stage] = total

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            "samfast_stage_seconds", "Time in each stage", labels=["stage"]
        )
        bounds = [*map(floatToGoString, SECONDS), "+Inf"]
        with self._lock:
            for stage, counts in self._counts.items():
                buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
                family.add_metric([stage], buckets, self._sums[stage])
        yield family


def merged(texts: Mapping[str, bytes]) -> bytes:
    """The metrics of several processes as one text; the label `replica` says of which.

    texts  by the name of a process, what `Metrics.text` has told there
    """
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            whole = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, "replica": replica}
                whole.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry()
    registry.register(_Families(list(families.values())))
    return generate_latest(registry)


class _Families(Collector):
    """Metrics that were collected elsewhere."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Gauges(Collector):
    """What is read at the moment of asking."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.depths: Depths = dict
        self.tiers: Callable[[], dict[str, int]] = dict
        self.mask_bytes: Callable[[], int] = int

    def collect(self) -> Iterable[Metric]:
        queue = GaugeMetricFamily(
            "samfast_queue_depth", "Jobs that wait", labels=["operation", "urgency"]
        )
        for (operation, urgency), count in self.depths().items():
            queue.add_metric([operation.value, urgency.value], count)
        yield queue
        tiers = GaugeMetricFamily(
            "samfast_embedding_bytes", "Embeddings kept in each tier", labels=["tier"]
        )
        for name, size in self.tiers().items():
            tiers.add_metric([name], size)
        yield tiers
        yield GaugeMetricFamily(
            "samfast_mask_bytes",
            "Low-resolution masks kept for later prompts",
            value=self.mask_bytes(),
        )
        memory = GaugeMetricFamily(
            "samfast_device_memory_bytes", "PyTorch's memory on the GPU", labels=["kind"]
        )
        if self._device.type == "cuda":
            memory.add_metric(["allocated"], torch.cuda.memory_allocated(self._device))
            memory.add_metric(["reserved"], torch.cuda.memory_reserved(self._device))
            memory.add_metric(["peak"], torch.cuda.max_memory_allocated(self._device))
        yield memory
