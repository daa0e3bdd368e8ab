"""Peak memory of a block of work."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class Peak:
    """`with Peak(device) as peak: ...`, then `peak.bytes` and `peak.reserved`.

    bytes     on a GPU: the most that torch had allocated at once, weights included, and what CUDA
              graphs recorded before the block keep in their memory pools, which a replay uses
              without allocating. On a CPU: how far the process's resident memory rose; None where
              the system does not report it
    reserved  on a GPU: the most that torch had reserved, unused parts included; None on a CPU

    since  on a CPU: the `settled_resident` memory to count from, instead of that at its start
    """

    bytes: int | None = None
    reserved: int | None = None

    def __init__(self, device: torch.device | str, *, since: int | None = None) -> None:
        self._device = torch.device(device)
        self._start = since
        self._graphs = 0

    def __enter__(self) -> Peak:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # so that memory cached by earlier work is not counted
            torch.cuda.reset_peak_memory_stats(self._device)
            self._graphs = graph_bytes(self._device)
        else:
            here = settled_resident()
            _reset_peak()
            if self._start is None:
                self._start = here
        return self

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device) + self._graphs
            self.reserved = torch.cuda.max_memory_reserved(self._device)
            return
        highest = peak_resident()
        if highest is not None and self._start is not None:
            self.bytes = max(0, highest - self._start)


def graph_bytes(device: torch.device) -> int:
    """Bytes on that GPU that lie unallocated in the private memory pools of CUDA graphs."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        if segment["device"] == index and tuple(segment["segment_pool_id"]) != (0, 0)
    )


def resident() -> int | None:
    """This process's resident memory in bytes; None where there is no /proc (not Linux)."""
    return _status("VmRSS")


def settled_resident() -> int | None:
    """As `resident`, after the C library, where it is glibc, has given back what it kept of freed
    memory: a block that was given such memory would not raise the resident memory, so its use would
    not be counted.
    """
    with suppress(AttributeError, TypeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    return resident()


def peak_resident() -> int | None:
    """The highest resident memory of this process in bytes; None where it is not reported."""
    highest = _status("VmHWM")
    if highest is None and sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return highest


def _status(key: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _reset_peak() -> None:
    """Restart VmHWM from the present; where that is refused, the peak is the whole process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
