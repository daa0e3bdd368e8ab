"""What was loaded at the start of a program, left out of Python's collections of garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def keep_loaded_objects() -> None:
    """From now on collections of garbage leave out what exists: modules, the model, what is to do.

    Each collection would walk them all, and answers are enough new objects for many collections.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def loaded_objects_kept() -> Iterator[None]:
    """As `keep_loaded_objects`, until the block ends."""
    keep_loaded_objects()
    try:
        yield
    finally:
        gc.unfreeze()
