"""Where the host waits for the GPU: the line of Python that made it wait.

PyTorch warns of copies to the host, `item`, `nonzero` and the like, and of waiting for streams,
while Python is still at the line that caused them. It does not warn of copies from memory that is
not pinned; the trace shows those as long calls of `cudaMemcpyAsync`.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch

import samfast

_WARNING = "called a synchronizing CUDA operation"
_PROTOTYPE = "Synchronization debug mode is a prototype"
_PACKAGE = Path(samfast.__file__).parent
_LIBRARY = tuple(
    os.path.join(os.path.realpath(folder), "")
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
)


@contextmanager
def noted(region: Callable[[], str]) -> Iterator[list[dict[str, Any]]]:
    """Collects the waits within the block, equal ones counted in one row, in order of appearance.

    `torch.cuda.synchronize` and `Event.synchronize`, of which PyTorch does not warn, are patched.

    region   called at each wait, returns the name of the stage that is running
    returns  JSON: "line", the innermost that is neither PyTorch's nor Python's, "region", "calls",
             and "stack", the innermost line first
    """
    waits: list[dict[str, Any]] = []

    def note() -> None:
        stack = _stack()
        line = next((frame for frame in stack if _is_user_code(frame)), stack[0])
        wait = {"line": described(line), "region": region()}
        same = next((row for row in waits if row.items() >= wait.items()), None)
        if same is None:
            waits.append({**wait, "calls": 1, "stack": [described(frame) for frame in stack]})
        else:
            same["calls"] += 1

    def noting(wait: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            note()
            return wait(*arguments, **options)

        return wrapper

    showwarning = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **named: Any) -> None:
        if _WARNING in str(message):
            note()
        else:
            showwarning(message, category, *where, **named)

    device, event = torch.cuda.synchronize, torch.cuda.Event.synchronize
    on_gpu = torch.cuda.is_available()
    mode = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    with warnings.catch_warnings():
        warnings.filterwarnings("always", _WARNING)
        warnings.filterwarnings("ignore", _PROTOTYPE)
        warnings.showwarning = show
        torch.cuda.synchronize = noting(device)
        torch.cuda.Event.synchronize = noting(event)  # type: ignore[method-assign]
        try:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            yield waits
        finally:
            torch.cuda.synchronize = device
            torch.cuda.Event.synchronize = event  # type: ignore[method-assign]
            if on_gpu:
                torch.cuda.set_sync_debug_mode(mode)


def described(frame: FrameSummary) -> str:
    """A line as text, its file relative to samfast's or the current folder."""
    path = Path(frame.filename)
    for root in (_PACKAGE.parent if path.is_relative_to(_PACKAGE) else Path.cwd(), Path.cwd()):
        if path.is_relative_to(root):
            path = path.relative_to(root)
            break
    return f"{path.as_posix()}:{frame.lineno} in {frame.name}"


def _is_user_code(frame: FrameSummary) -> bool:
    file = Path(frame.filename)
    if file.is_relative_to(_PACKAGE):
        return True
    if file.suffix != ".py" or {"site-packages", "dist-packages"} & set(file.parts):
        return False
    return not os.path.realpath(file).startswith(_LIBRARY)


def _stack() -> list[FrameSummary]:
    """The lines being run, the innermost first, without this file's and the warning module's."""
    hidden = (__file__, warnings.__file__)
    return [frame for frame in reversed(traceback.extract_stack()) if frame.filename not in hidden]
