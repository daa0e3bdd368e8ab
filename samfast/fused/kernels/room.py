"""How much of a GPU's own memory a program may have."""

from __future__ import annotations

import torch

ROOM = 200 * 1024
"""Bytes of shared memory: less than an H100 has (227 KiB), more than an A100 (163 KiB)."""


def roomy(device: torch.device) -> bool:
    """Whether a program may have ROOM; in the interpreter, yes."""
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    return bool(getattr(properties, "shared_memory_per_block_optin", 0) >= ROOM)
