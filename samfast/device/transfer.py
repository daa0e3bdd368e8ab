"""Values on their way between host and device, and work that stops where it would wait for them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work that stops wherever it would have to wait for the device, which others may give something to
do meanwhile."""


class AsyncHostCopy:
    """Tensors as they are now, on the host: the copies start at once, and only looking at them
    waits.
    """

    def __init__(self, *values: Tensor) -> None:
        self._event: Any = None
        devices = {value.device for value in values if value.device.type == "cuda"}
        # Elsewhere nobody would say when a copy that goes on by itself is done.
        self._copies = [value.detach().to("cpu", non_blocking=bool(devices)) for value in values]
        if devices:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(devices.pop()))

    def __call__(self) -> list[NDArray[Any]]:
        """An array for each; waits for the GPU, the first time."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return [copy.numpy() for copy in self._copies]


def upload(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; from the host to a GPU without waiting, which takes pinned
    memory.
    """
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """`upload` of an array."""
    return upload(torch.from_numpy(np.ascontiguousarray(values)), device)


def finish(steps: Steps[T]) -> T:
    """What the work comes to, with all its waiting."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
