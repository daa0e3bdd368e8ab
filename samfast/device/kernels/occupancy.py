"""How much of a GPU a program may have, and how many programs fill it."""

from __future__ import annotations

import torch

ROOM = 200 * 1024
"""Bytes of shared memory: less than an H100 has (227 KiB), more than an A100 (163 KiB)."""

PROGRAMS = 264
"""So many run at once: two on each multiprocessor of an H100 or H200."""


def parts(items: int, most: int) -> int:
    """Into how many parts, at most `most`, to split each item's work, a program a part, that all
    are done soonest.

    Few items leave multiprocessors idle, and so does a last round of few programs; but each part
    costs a beginning and an end, taken to be 3 % of an item.
    """
    most = min(most, max(8, PROGRAMS // items))
    return min(range(1, most + 1), key=lambda n: -(-items * n // PROGRAMS) * (1 / n + 0.03))


def has_large_shared_memory(device: torch.device) -> bool:
    """Whether a program may have ROOM; in the interpreter, yes."""
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    return bool(getattr(properties, "shared_memory_per_block_optin", 0) >= ROOM)
