"""Keys of torch's compile cache that do not depend on the program.

torch makes a key by pickling what it compiles, with tensors' memory formats in it. Those have no
`__module__`, so pickle writes the first loaded module with an attribute `torch`: a module of the
program, if that imports torch first. Other programs would then miss what `samfast warmup` compiled.
"""

from __future__ import annotations

import copyreg
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def program_independent_keys() -> Iterator[None]:
    """Within the block, torch's keys do not depend on the program that compiles."""
    with _LOCK:
        before = copyreg.dispatch_table.get(torch.memory_format)
        copyreg.dispatch_table[torch.memory_format] = _reduce
        try:
            yield
        finally:
            if before is None:
                del copyreg.dispatch_table[torch.memory_format]
            else:
                copyreg.dispatch_table[torch.memory_format] = before


def _reduce(value: torch.memory_format) -> tuple[Callable[..., object], tuple[str, ...]]:
    """For pickle: an expression for the value that names nothing of samfast."""
    return eval, (f"__import__('torch').{str(value).removeprefix('torch.')}",)
