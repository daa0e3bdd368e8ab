"""Starting CUDA and Triton on threads, while weights are read and modules are imported."""

from __future__ import annotations

import threading
from contextlib import suppress
from importlib import import_module

import torch

from samfast.device.triton_support import has_triton

COMPILER = "triton.compiler.code_generator"
"""What Triton imports in the first launch of a kernel."""


def start_early(device: str | torch.device | None) -> list[threading.Thread]:
    """Begin what the first work on a GPU waits for: CUDA's context; Triton's access to the driver,
    a C module that it compiles once and then loads; the hash of Triton's own files, half a second
    in each process, by which it finds compiled kernels; and the import of Triton's compiler, which
    it needs for the first launch of any kernel, a compiled one too.

    device  as of `samfast.load`
    returns the threads that do it; none where there is nothing to start

    A device that cannot be used is left to whoever uses it, who reports the error.
    """
    text = str(device or "cuda")
    if not text.startswith("cuda") or not torch.cuda.is_available():
        return []
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    threads = [
        # No daemons: a process that ends meanwhile waits, as torch's threads may abort otherwise.
        threading.Thread(target=step, args=(text,), name="samfast-start")
        for step in (_start_cuda, _prepare_triton)
    ]
    for thread in threads:
        thread.start()
    return threads


def _start_cuda(device: str) -> None:
    # Whoever uses the device meets the same error, and reports it.
    with suppress(Exception):
        torch.zeros(1, device=device)
        if has_triton(torch.device(device)):
            from triton.runtime import driver

            _ = driver.active.utils


def _prepare_triton(device: str) -> None:
    # Only a head start: a version of Triton without these functions does the same work later.
    with suppress(Exception):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend
        from triton.runtime.cache import triton_key

        triton_key()
        major, minor = torch.cuda.get_device_capability(device)
        make_backend(GPUTarget("cuda", 10 * major + minor, 32)).hash()
    with suppress(Exception):
        import_module(COMPILER)
