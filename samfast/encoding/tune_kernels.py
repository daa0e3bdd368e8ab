"""Tune a model's attention kernels on this GPU and keep the configurations in the user's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from samfast.attention.active_configs import use
from samfast.attention.kernels import hopper_windows
from samfast.attention.tuning import Shape, tune
from samfast.device.artifacts import kernel_configs
from samfast.device.machine import device_name
from samfast.model.image_encoder import Attention, Block
from samfast.model.sam import Sam


def shapes(sam: Sam, batch_size: int, device: torch.device) -> list[Shape]:
    """The kinds of attention in the encoder, each once, that Triton's kernels do on that device."""
    encoder = sam.image_encoder
    grid = encoder.img_size // encoder.patch_embed.proj.kernel_size[0]
    kinds = []
    for block in encoder.blocks:
        if not isinstance(block, Block) or not isinstance(block.attn, Attention):
            continue
        heads = block.attn.num_heads
        dim = block.attn.proj.in_features // heads
        weight: Any = block.norm1.weight
        dtype = weight.dtype
        if hopper_windows.fits(block.window_size, dim, dtype, device):
            continue
        sizes: Any = heads, dim, block.window_size, dtype
        kinds.append(Shape(batch_size, (grid, grid), *sizes))
    return list(dict.fromkeys(kinds))


def tune_model(
    sam: Sam, name: str, batch_size: int, device: torch.device
) -> tuple[list[dict[str, Any]], Path]:
    """Find the best configuration of each kernel, use it from now on and keep it.

    name     of the model, for people
    returns  the rows of `samfast.attention.tuning.tune`, and the file in which they are kept

    CUDA graphs recorded earlier still use the configuration that they were recorded with.
    """
    rows = [tune(shape, device) for shape in shapes(sam, batch_size, device)]
    use(rows)
    return rows, kernel_configs.save(device_name(device), name, batch_size, rows)
