"""What other processes do during a measurement: on a busy machine it shows less than there is."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

BUSY = 0.1
"""Share of the CPUs' time, and of a GPU's, that other processes may take without a word."""

_STAT = Path("/proc/stat")


class OtherLoad:
    """`with OtherLoad() as other_load: ...`, then `other_load.cpus`.

    cpus  CPUs, of those that this process may use, that other processes kept busy during the block,
          on average; None where the system does not report it (not Linux)
    """

    cpus: float | None = None

    def __enter__(self) -> OtherLoad:
        self._start = time.perf_counter(), _busy_seconds(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        start, busy, ours = self._start
        busy_now = _busy_seconds()
        if busy is not None and busy_now is not None:
            seconds = busy_now - busy - (time.process_time() - ours)
            self.cpus = max(0.0, seconds) / (time.perf_counter() - start)


def gpu_share(device: torch.device) -> float | None:
    """The share of the last moment in which that GPU ran something, None if nvidia-smi is silent.

    To be asked before this process uses the GPU: then all of it is other processes' work.
    """
    if device.type != "cuda":
        return None
    identity = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ("nvidia-smi", identity, "--query-gpu=utilization.gpu", "--format=csv,noheader")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return float(answer.stdout.strip().removesuffix("%")) / 100
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def described(load: dict[str, Any]) -> list[str]:
    """What disturbed a measurement, in words; load: {"cpus", "of_cpus", "gpu_share"}."""
    words = []
    cpus, share = load["cpus"], load["gpu_share"]
    if cpus is not None and cpus > BUSY * load["of_cpus"]:
        words.append(f"other processes kept {cpus:.1f} of {load['of_cpus']} CPUs busy")
    if share is not None and share > BUSY:
        words.append(f"other processes used the GPU {share:.0%} of the time")
    return words


def usable_cpus() -> set[int]:
    """The numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    """Seconds in which those CPUs have worked for anyone, this process included."""
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines()]
    except OSError:
        return None
    names = {f"cpu{number}" for number in usable_cpus()}
    times = [list(map(int, line[1:9])) for line in lines if line[0] in names]
    if not times:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = sum(sum(each) - each[3] - each[4] for each in times)
    return ticks / os.sysconf("SC_CLK_TCK")
