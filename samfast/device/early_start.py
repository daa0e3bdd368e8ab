"""Starting CUDA on a thread, while weights are read and modules are imported."""

from __future__ import annotations

import threading
from contextlib import suppress

import torch

from samfast.device.triton_support import has_triton


def start_early(device: str | torch.device | None) -> threading.Thread | None:
    """Begin what the first work on a GPU waits for: CUDA's context, and Triton's access to the
    driver, a C module that it compiles once and then loads.

    device  as of `samfast.load`
    returns the thread that does it; None where there is nothing to start

    A device that cannot be used is left to whoever uses it, who reports the error.
    """
    text = str(device or "cuda")
    if not text.startswith("cuda") or not torch.cuda.is_available():
        return None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    # No daemon: a process that ends meanwhile waits for it, as torch's threads may abort otherwise.
    thread = threading.Thread(target=_start, args=(text,), name="samfast-start")
    thread.start()
    return thread


def _start(device: str) -> None:
    # Whoever uses the device meets the same error, and reports it.
    with suppress(Exception):
        torch.zeros(1, device=device)
        if has_triton(torch.device(device)):
            from triton.runtime import driver

            _ = driver.active.utils
