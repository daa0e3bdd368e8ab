"""SHA-256 fingerprints of weights."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module, beside: str) -> str:
    """SHA-256 of the module's state dict, rounded to bfloat16, and of the text `beside`.

    Weights on a GPU are copied to the host, which waits for the copy.
    """
    state = module.state_dict()
    # Hashing releases the GIL, so ViT-H takes a fraction of a second on several cores.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = pool.map(_digest, state.values())
        whole = hashlib.sha256(beside.encode())
        for (name, value), part in zip(state.items(), parts, strict=True):
            whole.update(f"{name}{tuple(value.shape)}".encode())
            whole.update(part)
    return whole.hexdigest()


def _digest(value: Tensor) -> bytes:
    raw = value.detach().to(torch.bfloat16).contiguous().cpu().view(torch.int16)
    return hashlib.sha256(raw.numpy().reshape(-1).data.cast("B")).digest()
