"""Shared memory of a GPU, and how many programs fill it."""

from __future__ import annotations

import torch

LARGE_SHARED_MEMORY = 200 * 1024
"""Bytes of shared memory a program: an H100 has more (227 KiB), an A100 less (163 KiB)."""

CONCURRENT_PROGRAMS = 264
"""Two programs on each multiprocessor of an H100 or H200."""


def best_splits(items: int, most: int) -> int:
    """Into how many programs, at most `most`, to split each item's work to finish soonest.

    Few programs leave multiprocessors idle, and so does a last round of few; but each program costs
    a beginning and an end, taken to be 3 % of an item.
    """
    most = min(most, max(8, CONCURRENT_PROGRAMS // items))
    return min(
        range(1, most + 1), key=lambda n: -(-items * n // CONCURRENT_PROGRAMS) * (1 / n + 0.03)
    )


def has_large_shared_memory(device: torch.device) -> bool:
    """Whether a program may take LARGE_SHARED_MEMORY; in the interpreter it may."""
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    return bool(getattr(properties, "shared_memory_per_block_optin", 0) >= LARGE_SHARED_MEMORY)
