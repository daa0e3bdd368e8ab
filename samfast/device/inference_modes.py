"""The torch modes in which models run, independent of the caller's modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def inference_modes(device: torch.device) -> AbstractContextManager[object]:
    """Turn off gradients, inference mode and autocast, and make the device the current one.

    Code is compiled and CUDA graphs are recorded for these modes.
    """
    return nullcontext() if _in_force(device) else _entered(device)


def _in_force(device: torch.device) -> bool:
    """Whether nothing is to be changed, as where one part of the work calls another: entering and
    leaving the modes takes longer than asking for them.
    """
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return False
    if _autocasts(device):
        return False
    return device.type != "cuda" or device.index in (None, torch.cuda.current_device())


@contextmanager
def _entered(device: torch.device) -> Iterator[None]:
    # Kernels are launched on the current GPU, which need not be the model's.
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    no_autocast: AbstractContextManager[object] = nullcontext()
    if _autocasts(device):
        no_autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), on_device, no_autocast:
        yield


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
