"""Python's collections of garbage: none while a program loads, and later not of what it loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collections_paused() -> Iterator[None]:
    """No collections within the block, for one that imports modules and loads a model: hundreds of
    thousands of objects are made, of which hardly any is garbage, and walked again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep_loaded_objects(*, collect: bool = True) -> None:
    """From now on collections of garbage leave out what exists: modules, the model, what is to do.

    Each collection would walk them all, and answers are enough new objects for many collections.

    collect  what is garbage now is collected first; False: it is kept, by a program that soon ends
    """
    if collect:
        gc.collect()
    gc.freeze()


@contextmanager
def loaded_objects_kept(*, collect: bool = True) -> Iterator[None]:
    """As `keep_loaded_objects`, until the block ends."""
    keep_loaded_objects(collect=collect)
    try:
        yield
    finally:
        gc.unfreeze()
