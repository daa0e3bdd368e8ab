"""Starting CUDA, its libraries and Triton on threads, while the engine is imported and loaded."""

from __future__ import annotations

import threading
from contextlib import suppress
from importlib import import_module

import torch
import torch.nn.functional as F

from samfast.device.triton_support import has_triton

COMPILER = "triton.compiler.code_generator"
"""What Triton imports in the first launch of a kernel."""


def start_early(device: str | torch.device | None) -> list[threading.Thread]:
    """Begin what the first work on a GPU waits for: CUDA's context; Triton's access to the driver,
    a C module that it compiles once and then loads; cuBLAS, cuDNN and PyTorch's own kernels, which
    are loaded when they are first called; the hash of Triton's own files, half a second in each
    process, by which it finds compiled kernels; and the import of Triton's compiler, which it needs
    for the first launch of any kernel, a compiled one too.

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
    with suppress(Exception):
        load_libraries(torch.device(device))


def load_libraries(device: torch.device) -> None:
    """Call once, on tensors of a few numbers, what the first image and its prompts call.

    Each is the first call of a library, or of a file of PyTorch's kernels, which is loaded then,
    mostly outside Python, so that other threads go on.
    """
    half = torch.float32
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
        half = torch.bfloat16 if has_bfloat16 else torch.float16
    rows, floats = torch.zeros(8, 256, dtype=half, device=device), torch.zeros(8, 8, device=device)
    image = rows.view(1, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    flags = torch.zeros(8, dtype=torch.bool, device=device)
    with torch.no_grad():
        rows @ rows.T
        F.linear(rows, rows, rows[:, 0])
        F.linear(floats, floats, floats[0])
        F.conv2d(image, image, padding=1)
        F.layer_norm(rows, (256,), rows[0], rows[0])
        F.relu(rows)
        torch.stack([rows, rows]).float().cumsum(0)
        rows.masked_fill(flags[:, None], 0)[flags.long()]
        (~torch.isfinite(rows.sum(1, dtype=torch.float32))).to(torch.uint8) * 1


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
