"""The server's own histogram tells what the library's does."""

from __future__ import annotations

import random
import re

import torch
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from samfast.serve.metrics import SECONDS, Metrics


def test_times_of_a_batch_are_counted_as_the_library_counts_each():
    draw = random.Random(0)
    batches = {
        "decode": [[draw.expovariate(20) for _ in range(64)], [0.0], [0.001, 0.0010001, 31.0]],
        "encode": [list(map(float, SECONDS))],
    }
    registry = CollectorRegistry()
    library = Histogram(
        "samfast_stage_seconds", "Time in each stage", ["stage"], buckets=SECONDS, registry=registry
    )
    metrics = Metrics(torch.device("cpu"))
    for stage, each in batches.items():
        for seconds in each:
            metrics.stages.observe(stage, seconds)
            for one in seconds:
                library.labels(stage).observe(one)
    wanted = [x for x in generate_latest(registry).decode().splitlines() if "created" not in x]
    told = [x for x in metrics.text().decode().splitlines() if "samfast_stage_seconds" in x]
    assert _rounded(told) == _rounded(wanted)


def _rounded(lines: list[str]) -> list[str]:
    """Sums are made in another order."""
    return [
        re.sub(r" ([0-9.e-]+)$", lambda number: f" {float(number[1]):.9g}", line)
        for line in sorted(lines)
    ]


def test_requests_that_are_answered_together_are_all_counted():
    metrics = Metrics(torch.device("cpu"))
    metrics.answered("/v1", 200, 0.1, 0.2, 0.3)
    metrics.answered("/v1", 404, 0.1)
    text = metrics.text().decode()
    assert 'samfast_requests_total{route="/v1",status="200"} 3.0' in text
    assert 'samfast_requests_total{route="/v1",status="404"} 1.0' in text
    assert 'samfast_stage_seconds_count{stage="request"} 4.0' in text
