"""The torch modes in which models run, independent of the caller's modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def inference_modes(device: torch.device) -> Iterator[None]:
    """Turn off gradients, inference mode and autocast, and make the device the current one.

    Code is compiled and CUDA graphs are recorded for these modes.
    """
    # Kernels are launched on the current GPU, which need not be the model's.
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), on_device, _no_autocast(device):
        yield


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
