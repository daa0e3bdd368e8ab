"""Starting CUDA on a thread, while weights are read and modules are imported."""

from __future__ import annotations

import threading
from contextlib import suppress

import torch


def start_early(device: str | torch.device | None) -> threading.Thread | None:
    """Begin what the first work on a GPU waits for: CUDA's context.

    device  as of `samfast.load`
    returns the thread that does it; None where there is nothing to start

    A device that cannot be used is left to whoever uses it, who reports the error.
    """
    text = str(device or "cuda")
    if not text.startswith("cuda") or not torch.cuda.is_available():
        return None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    thread = threading.Thread(target=_start, args=(text,), name="samfast-start", daemon=True)
    thread.start()
    return thread


def _start(device: str) -> None:
    with suppress(Exception):
        torch.zeros(1, device=device)
