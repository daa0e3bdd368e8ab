"""A batch of images on the host -> the encoder's input on its device, without waiting for that."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.fused import reference
from samfast.masks import op
from samfast.masks.reading import upload
from samfast.recipes.modes import plain_modes
from samfast.types import ByteBatch, ImageBatch


def on_device(batch: ImageBatch | ByteBatch, device: torch.device, part: slice = slice(None)) -> Tensor:
    """(B, 3, S, S) float32 on the device, normalised, of the images in that part of the batch.

    Bytes travel as they are and are normalised there: on a GPU by one kernel, where Triton is missing and elsewhere
    by plain torch, with the same bits as a CPU.
    """
    with plain_modes(device):
        pixels = upload(batch.pixels[part], device)
        if isinstance(batch, ImageBatch):
            return pixels
        sizes = upload(torch.tensor(batch.input_sizes[part], dtype=torch.int32, device="cpu"), device)
        if op.fused(device):
            from samfast.fused.kernels.normalise import launch

            return launch(pixels, sizes)
        return reference.normalise(pixels, sizes)
