"""SHA-256 fingerprints of weights, by which embeddings and measurements are recognised."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from samfast.device.parameter_watcher import ParameterWatcher, Snapshot
from samfast.model.sam import Sam

PREPROCESSING = "rgb-uint8/pillow-bilinear-long-side/imagenet-mean-std/zero-pad"
"""How pixels reach the encoder; part of every encoder fingerprint."""


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


def encoder_fingerprint(sam: Sam) -> str:
    """The fingerprint of the image encoder's weights and of the preprocessing."""
    encoder = sam.image_encoder
    return fingerprint(encoder, f"{PREPROCESSING}/{encoder.img_size}")


class EncoderFingerprint:
    """A model's encoder fingerprint, computed again only after its weights were changed.

    known  the fingerprint of the weights from before a recipe changed them, or None
    """

    def __init__(self, sam: Sam, known: str | None = None) -> None:
        self._sam = sam
        self._watch = ParameterWatcher(sam.image_encoder)
        self._known: tuple[Snapshot, str] | None = None
        if known is not None:
            self._known = self._watch.snapshot(), known

    def __call__(self) -> str:
        """The fingerprint of the current weights."""
        if self._watch.module is not self._sam.image_encoder:
            self._watch = ParameterWatcher(self._sam.image_encoder)
        snapshot = self._watch.snapshot()
        if self._known is None or self._known[0] != snapshot:
            self._known = snapshot, encoder_fingerprint(self._sam)
        return self._known[1]


def _digest(value: Tensor) -> bytes:
    raw = value.detach().to(torch.bfloat16).contiguous().cpu().view(torch.int16)
    return hashlib.sha256(raw.numpy().reshape(-1).data.cast("B")).digest()
