"""How long something takes: the median of several runs, and their spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

MAX_RUNS = 200
"""The most runs that a time budget buys."""


@dataclass(frozen=True)
class Timing:
    """Seconds of each timed run, in order."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the median run."""
        return statistics.median(self.samples)

    @property
    def p99(self) -> float:
        """The 99th percentile (nearest rank: of fewer than 100 runs the slowest)."""
        return sorted(self.samples)[math.ceil(0.99 * len(self.samples)) - 1]

    @property
    def spread(self) -> float | None:
        """Slowest less fastest run, relative to the median: 0.1 is ten per cent; None of one run.

        Of twenty runs and more a twentieth at each end is left out, as outliers of a busy host.
        """
        if len(self.samples) == 1:
            return None
        cut = len(self.samples) // 20
        kept = sorted(self.samples)[cut : len(self.samples) - cut]
        return (kept[-1] - kept[0]) / self.median if self.median else 0.0


def measure(
    work: Callable[[], object],
    device: torch.device | str,
    *,
    repeats: int = 5,
    warmup: int = 2,
    seconds: float = 0.0,
) -> Timing:
    """Run `work` warmup times, then time it: by CUDA events on a GPU, by the clock elsewhere.

    repeats, warmup  at least 1
    seconds          more runs than `repeats` while they fit in so much time, at most MAX_RUNS
    """
    if repeats < 1 or warmup < 1:
        raise ValueError(f"repeats {repeats} and warmup {warmup} must be at least 1")
    place = torch.device(device)
    once = _events if place.type == "cuda" else _clock
    for _ in range(warmup):
        work()
    synchronize(place)
    samples = [once(work, place) for _ in range(repeats)]
    while len(samples) < MAX_RUNS and sum(samples) + samples[-1] < seconds:
        samples.append(once(work, place))
    return Timing(tuple(samples))


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clock(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def _events(work: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        event = partial(torch.cuda.Event, enable_timing=True)
        start, end = event(), event()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
