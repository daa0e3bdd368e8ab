"""The modes of torch that recipes run in, whatever the caller's are: code is compiled and recorded
for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def inference_modes(device: torch.device) -> Iterator[None]:
    """Without gradients, inference mode and autocast, and with the device as the current one."""
    with torch.inference_mode(False), torch.no_grad(), _on(device), _no_autocast(device):
        yield


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels are launched on the current GPU, which need not be the model's."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
