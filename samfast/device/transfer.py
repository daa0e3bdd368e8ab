"""Copies between host and device that do not block the host."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")

TORCH_COPIES_ALONE = 32768
"""Elements up to which PyTorch copies on one thread (`at::internal::GRAIN_SIZE`)."""

NUMPY_COPIES = 8 << 20
"""Bytes up to which a copy on one thread is soon done."""

DeviceJob = Generator[None, None, T]
"""Work that yields where it would wait for the device, so that its caller can queue other work."""


def works_beside_host(device: torch.device) -> bool:
    """Whether the device works beside the host's cores, so that threads cost it nothing."""
    return device.type != "cpu"


class AsyncHostCopy:
    """Copies of tensors on the host, started at once; `wait` blocks until they are complete."""

    def __init__(self, *values: Tensor) -> None:
        self._event: Any = None
        devices = {value.device for value in values if value.device.type == "cuda"}
        # Only CUDA has an event that says when a non-blocking copy is complete.
        self._copies = [value.detach().to("cpu", non_blocking=bool(devices)) for value in values]
        if devices:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(devices.pop()))

    def wait(self) -> list[NDArray[Any]]:
        """One array for each tensor. The first call waits for the GPU."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return [copy.numpy() for copy in self._copies]


def to_device(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """The values on the device. Copies from the host to a GPU go through pinned memory and do not
    block.
    """
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    if values.device.type == "cpu" and device.type == "cuda":
        return pinned(values).to(device, non_blocking=True)
    return values.to(device)


def pinned(values: Tensor) -> Tensor:
    """The values of a tensor on the host, in pinned memory."""
    parallel = values.numel() > TORCH_COPIES_ALONE
    if not parallel or values.nbytes > NUMPY_COPIES or not values.is_contiguous():
        return values.pin_memory()
    if values.is_pinned():
        return values
    # PyTorch would copy on all cores, each of which another thread may have: it then waits for
    # milliseconds, and those that wait with it keep their cores busy.
    copy = torch.empty_like(values, pin_memory=True)
    _bytes(copy)[:] = _bytes(values)
    return copy


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    """The memory of a contiguous tensor on the host."""
    view: NDArray[np.uint8] = values.detach().view(-1).view(torch.uint8).numpy()
    return view
