"""Keys of torch's compile cache that are the same in every program.

torch makes a key by pickling what it is to compile, the memory formats of tensors among it. Those
know no module of their own, so pickle takes the first one loaded that has an attribute `torch`: a
module of the program, wherever that imports torch first. What `samfast warmup` compiled would then
be found by no other program.
"""

from __future__ import annotations

import copyreg
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def independent() -> Iterator[None]:
    """Within the block, what torch compiles has a key that does not depend on the program that
    compiles it.
    """
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
    """For pickle: how to come by the value, with nothing of samfast in it."""
    return eval, (f"__import__('torch').{str(value).removeprefix('torch.')}",)
