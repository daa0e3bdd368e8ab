"""Dry runs, in which Triton's kernels are compiled side by side instead of launched.

A first call meets its kernels one after another, and compiles each, or reads it from Triton's
cache and loads it, before it goes on. Most of that work is outside Python, so that threads share
it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import torch

from samfast.device.triton_support import has_triton, interpreted

MAX_WORKERS = 16
"""Threads that compile; a recipe has about 40 kernels."""


def dry_run(call: Callable[[], object], device: torch.device) -> None:
    """Call it without launching Triton's kernels that are new to this process; then all of them are
    compiled and loaded.

    call  its results are meaningless, and nothing in it may depend on values that a kernel writes:
          neither indices nor what is run

    Kernels that are compiled already are launched. Other threads' launches wait for their kernel,
    and are made. Where there is no Triton, or an old one, nothing happens. Raises what `call` or
    the compiler raises.
    """
    if not has_triton(device) or interpreted():
        return
    import triton

    if hasattr(triton, "AsyncCompileMode"):
        compile_together(call, lambda kernel: _load(kernel, device))


def compile_together(call: Callable[[], object], load: Callable[[Any], object]) -> None:
    """As `dry_run`, where Triton is installed; each kernel is handed to `load` on its thread."""
    import triton

    class Mode(triton.AsyncCompileMode):  # type: ignore[misc]
        """Starts to compile, and gives kernels that are not launched while the mode is open."""

        def submit(self, key: Any, compile_kernel: Callable[[], Any], *more: Any) -> Any:
            def compile_and_load() -> Any:
                kernel = compile_kernel()
                load(kernel)
                return kernel

            return _Unlaunched(super().submit(key, compile_and_load, *more), opened)

    opened = _Opened(threading.get_ident())

    def run_in_mode() -> None:
        with Mode(pool):
            try:
                call()
            finally:
                opened.thread = None

    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="samfast-compile") as pool:
        # A copy: after an error Triton 3.7 leaves its mode set in the context.
        copy_context().run(run_in_mode)


class _Opened:
    """The thread whose launches are left out; None when the dry run has ended."""

    def __init__(self, thread: int) -> None:
        self.thread: int | None = thread


class _Unlaunched:
    """A kernel that is being compiled, in the place where Triton keeps those that are ready.

    Triton replaces it when it is ready. Should the dry run end before, by an error, and for other
    threads, it is the kernel itself, for which they wait.
    """

    def __init__(self, kernel: Any, opened: _Opened) -> None:
        self._kernel, self._opened = kernel, opened

    def __getattr__(self, name: str) -> Any:
        if self._opened.thread != threading.get_ident():
            return getattr(self._kernel.result(), name)
        if name in ("run", "launch_metadata"):
            return lambda *args: None
        # Triton 3.4 to 3.6 ask what they launch for its `result`, if it has one.
        return (lambda: self) if name == "result" else None


def _load(kernel: Any, device: torch.device) -> None:
    """Make a kernel's launcher and load it onto the GPU, as its first launch would."""
    with torch.cuda.device(device):
        kernel.run  # noqa: B018 - a property that loads
