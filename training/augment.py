"""Augmentation of whole batches on the device.

Scale, crop, flip, rotation, colour, blur, JPEG, copy-paste and mosaics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samfast.types import PIXEL_MEAN, PIXEL_STD
from training.store import MAX_IDS, Store

LOW_RES = 4
"""Input pixels along one side of a pixel of the decoder's masks."""


QUARTER_IDS = 62
"""Most objects that a quarter of a mosaic keeps on a plane; four times that is below MAX_IDS."""


@dataclass(frozen=True)
class Batch:
    """Augmented photos.

    pixels  (B, 3, S, S) float32, normalised, 0 where there is no photo
    labels  (B, L, S / 4, S / 4) uint8 ids, 0 = none
    """

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far photos are changed; lengths are relative to the model's 1024-pixel frame."""

    whole: float = 0.3
    """Share of photos shown whole and upright, as at inference, but half of them flipped."""
    min_scale: float = 0.3
    max_scale: float = 2.5
    stretch: float = 0.25
    rotation: float = 30.0
    """Degrees, for half of the photos that are not shown whole."""
    turn: float = 0.1
    """Share of photos on their side or head."""
    paste: float = 0.5
    colour: float = 0.8
    degrade: float = 0.3
    """Share of photos that are blurred or sharpened, and of photos with JPEG's artefacts."""
    mosaic: float = 0.2
    """Share of crops that are made of four."""


FIRST_EDITION = Augmentation(
    whole=0.35,
    min_scale=0.4,
    max_scale=2.0,
    stretch=0.2,
    rotation=12.0,
    turn=0.0,
    degrade=0.0,
    mosaic=0.0,
)
"""What the weights of samfast 0.2 were trained with."""

GENTLE = Augmentation(
    whole=0.7,
    min_scale=0.6,
    max_scale=1.6,
    stretch=0.1,
    rotation=10.0,
    turn=0.02,
    paste=0.15,
    colour=0.5,
    degrade=0.15,
    mosaic=0.0,
)
"""For the last part of a training, so that it ends on photos as they are at inference (YOLOX, Ge et
al. 2021, turns its mosaics off for the last epochs)."""


def affine(
    sizes: Tensor, side: int, how: Augmentation, generator: torch.Generator, frame: int
) -> Tensor:
    """(B, 2, 3): from output pixels (x, y, 1) of a side x side crop to canvas pixels.

    sizes (B, 2) height and width of the photos; frame: the long side in pixels at scale 1.
    """
    count, device = sizes.shape[0], sizes.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator, device=device) * (high - low) + low

    height, width = sizes[:, 0].float(), sizes[:, 1].float()
    long = torch.maximum(height, width)
    whole = uniform(0, 1) < how.whole
    scale = torch.exp(uniform(math.log(how.min_scale), math.log(how.max_scale))) * frame / long
    aspect = torch.exp(uniform(-how.stretch, how.stretch))
    angle = uniform(-1, 1) * math.radians(how.rotation) * (uniform(0, 1) < 0.5)
    quarters = torch.floor(uniform(1, 4)) * (uniform(0, 1) < how.turn)
    angle = angle + quarters * (math.pi / 2)
    sx, sy = scale * aspect.sqrt(), scale / aspect.sqrt()
    fit = side / long
    sx, sy, angle = (
        torch.where(whole, fit, sx),
        torch.where(whole, fit, sy),
        torch.where(whole, 0.0, angle),
    )
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    # The point of the photo at the crop's centre, such that the photo fills most of the crop.
    half_x, half_y = side / (2 * sx), side / (2 * sy)

    def centre(length: Tensor, half: Tensor) -> Tensor:
        low, high = torch.minimum(half, length - half), torch.maximum(half, length - half)
        return low + uniform(0, 1) * (high - low)

    cx = torch.where(whole, half_x, centre(width, half_x))
    cy = torch.where(whole, half_y, centre(height, half_y))
    # A photo shown whole is flipped within its width, so that it stays at the left.
    cx = torch.where(whole & (flip < 0), width - half_x, cx)
    cos, sin = angle.cos(), angle.sin()
    a, b = flip * cos / sx, flip * sin / sx
    c, d = -sin / sy, cos / sy
    middle = (side - 1) / 2
    tx = cx - 0.5 - (a + b) * middle
    ty = cy - 0.5 - (c + d) * middle
    return torch.stack([torch.stack([a, b, tx], -1), torch.stack([c, d, ty], -1)], 1)


def places(matrix: Tensor, side: int, step: int) -> Tensor:
    """(B, n, n, 2): canvas pixels of every step-th output pixel's centre, n = side / step."""
    axis = (
        torch.arange(side // step, device=matrix.device, dtype=torch.float32) * step
        + (step - 1) / 2
    )
    ones = torch.ones_like(axis)
    grid = torch.stack(
        [
            axis.expand(len(axis), -1),
            axis[:, None].expand(-1, len(axis)),
            ones.expand(len(axis), -1),
        ],
        dim=-1,
    )
    return torch.einsum("bij,hwj->bhwi", matrix, grid)


def within(where: Tensor, sizes: Tensor) -> Tensor:
    """(B, 1, n, n) bool: which canvas pixels (B, n, n, 2) lie in the photos."""
    inside = (where > -0.5).all(-1) & (where[..., 1] < sizes[:, 0, None, None] - 0.5)
    return (inside & (where[..., 0] < sizes[:, 1, None, None] - 0.5))[:, None]


def warp(images: Tensor, where: Tensor, sizes: Tensor, mode: str) -> Tensor:
    """Sample (B, C, canvas, canvas) at canvas pixels (B, n, n, 2); 0 outside each photo."""
    normal = (where + 0.5) * (2 / images.shape[-1]) - 1
    out = F.grid_sample(
        images.float(), normal, mode=mode, padding_mode="border", align_corners=False
    )
    return out * within(where, sizes)


def recolour(pixels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Change gamma, brightness, white balance, contrast and saturation, and add noise.

    pixels (B, 3, S, S) in [0, 1]; a share of the photos is changed.
    """
    count, device = pixels.shape[0], pixels.device

    def chance() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator, device=device)

    def factor(spread: float, channels: int = 1) -> Tensor:
        noise = torch.rand(count, channels, 1, 1, generator=generator, device=device)
        return torch.exp((noise * 2 - 1) * spread)

    gamma, gain = factor(0.35), factor(0.3) * factor(0.12, 3)
    contrast = factor(0.35)
    saturation = torch.where(chance() < 0.1, 0.0, factor(0.5))
    strength = 0.03 * chance() ** 2
    noise = torch.randn(pixels.shape, generator=generator, device=device)
    changed = apply_colour(pixels, gamma, gain, contrast, saturation, noise, strength)
    return torch.where(chance() < share, changed, pixels)


def apply_colour(
    pixels: Tensor,
    gamma: Tensor,
    gain: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    noise: Tensor,
    strength: Tensor,
) -> Tensor:
    """The changes of `recolour`, each by a factor (B, 1 or 3, 1, 1)."""
    changed = pixels.clamp(1e-4, 1) ** gamma * gain
    mean = changed.mean((1, 2, 3), keepdim=True)
    changed = mean + (changed - mean) * contrast
    grey = changed.mean(1, keepdim=True)
    changed = grey + (changed - grey) * saturation
    return (changed + noise * strength).clamp(0, 1)


def degrade(pixels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Blur or sharpen a share of the photos, and compress a share as JPEG does.

    pixels (B, 3, S, S) in [0, 1], S a multiple of 8
    """
    count, device = pixels.shape[0], pixels.device

    def chance(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    blurred = F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    blurred = F.avg_pool2d(blurred, 3, stride=1, padding=1, count_include_pad=False)
    amount = (chance(1, 1, 1) * 1.6 - 0.6) * (chance(1, 1, 1) < share)
    pixels = (pixels + amount * (blurred - pixels)).clamp(0, 1)

    # JPEG rounds the cosine transform of 8 x 8 blocks, high frequencies more coarsely.
    n = torch.arange(8, device=device)
    basis = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) * 0.5
    basis[0] *= 0.5**0.5
    rows = torch.unflatten(pixels, 3, (-1, 8))
    blocks = torch.unflatten(rows, 2, (-1, 8))  # (B, 3, S / 8, 8, S / 8, 8)
    waves = torch.einsum("uy,bciyjx,vx->bciujv", basis, blocks, basis)
    step = (0.02 + 0.1 * chance(1, 1, 1, 1, 1)) * (1 + n[:, None, None] + n) / 4
    waves = (waves / step).round() * step
    rounded = torch.einsum("uy,bciujv,vx->bciyjx", basis, waves, basis).reshape(pixels.shape)
    return torch.where(chance(1, 1, 1) < share, rounded.clamp(0, 1), pixels)


def mosaic(
    pixels: Tensor, labels: Tensor, inside: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A share of the crops gets three of its quarters from the crops before it in the batch.

    The quarters meet at a random point. So that objects of different photos differ in their ids,
    each quarter keeps the ids up to QUARTER_IDS of its photo, and moves them by its number.
    """
    count, side = pixels.shape[0], pixels.shape[-1]
    device, cells = pixels.device, side // LOW_RES
    chosen = torch.rand(count, 1, generator=generator, device=device) < share
    cut = torch.rand(count, 2, generator=generator, device=device) * 0.5 + 0.25
    cut = (cut * cells).long()
    axis = torch.arange(cells, device=device)
    low = (axis >= cut[:, :1])[:, :, None]
    right = (axis >= cut[:, 1:])[:, None, :]
    quarter = (2 * low + right) * chosen[:, :, None]  # (B, S / 4, S / 4)
    fine = quarter.repeat_interleave(LOW_RES, 1).repeat_interleave(LOW_RES, 2)[:, None]
    crowded = (labels > 0) & chosen[:, :, None, None]
    first = torch.where(crowded & (labels > QUARTER_IDS), 0, labels)
    out = [pixels, first, inside]
    for number in range(1, 4):
        moved = torch.where(
            (labels > 0) & (labels <= QUARTER_IDS), labels + number * QUARTER_IDS, 0
        )
        here = (fine == number, (quarter == number)[:, None], fine == number)
        for i, (source, mask) in enumerate(zip((pixels, moved, inside), here, strict=True)):
            out[i] = torch.where(mask, source.roll(number, 0), out[i])
    return out[0], out[1], out[2]


def object_weights(labels: Tensor, smallest: int) -> Tensor:
    """(B, L * 256) float: 1 for ids that cover at least `smallest` pixels on their plane, or 0."""
    batch, depth = labels.shape[:2]
    flat = labels.flatten(2).long()
    counts = torch.zeros(batch, depth, MAX_IDS + 1, device=labels.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=counts.dtype))
    counts[:, :, 0] = 0
    return (counts >= smallest).float().flatten(1)


def draw(weights: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw `count` objects per image: planes and ids (B, count), and whether it has any (B,)."""
    has = weights.sum(1) > 0
    safe = torch.where(has[:, None], weights, torch.ones_like(weights))
    # Without replacement while objects last; the small weight lets other ids fill the rest.
    index = torch.multinomial(safe + 1e-6, count, generator=generator)
    filler = weights.gather(1, index) == 0
    again = torch.multinomial(safe, count, replacement=True, generator=generator)
    index = torch.where(filler, again, index)
    ids = MAX_IDS + 1
    return index // ids, index % ids, has


def batch(
    store: Store,
    index: Tensor,
    side: int,
    frame: int,
    how: Augmentation,
    device: torch.device,
    generator: torch.Generator,
) -> Batch:
    """Augmented photos `index` (B,) of the store, as crops of side x side pixels."""
    here = index.to(store.pixels.device)
    raw, ids, sizes = (
        t[here].to(device, non_blocking=True) for t in (store.pixels, store.labels, store.sizes)
    )
    matrix = affine(sizes, side, how, generator, frame)
    fine = places(matrix, side, 1)
    pixels = warp(raw, fine, sizes, "bilinear") / 255
    labels = warp(ids, places(matrix, side, LOW_RES), sizes, "nearest").to(torch.uint8)
    inside = within(fine, sizes)

    # Copy-paste (Ghiasi et al. 2021): an object of the previous photo covers part of this one.
    planes, chosen, has = draw(object_weights(labels, 64), 1, generator)
    rows = torch.arange(len(index), device=device)
    plane = ids[rows, planes[:, 0]]
    stencil = warp((plane == chosen[..., None]).unsqueeze(1), fine, sizes, "bilinear")
    small = labels[rows, planes[:, 0]] == chosen[..., None]
    paste = (
        has
        & (chosen[:, 0] > 0)
        & (torch.rand(len(index), generator=generator, device=device) < how.paste)
    )
    stencil = (stencil * paste[:, None, None, None]).roll(1, 0)
    small = (small & paste[:, None, None]).roll(1, 0)
    pixels = pixels * (1 - stencil) + pixels.roll(1, 0) * stencil
    inside = inside | (stencil > 0.5)
    labels = torch.where(small[:, None], 0, labels)
    labels[:, 0] = torch.where(small, MAX_IDS, labels[:, 0])

    if how.mosaic:
        pixels, labels, inside = mosaic(pixels, labels, inside, how.mosaic, generator)
    pixels = recolour(pixels, how.colour, generator)
    if how.degrade:
        pixels = degrade(pixels, how.degrade, generator)
    mean = torch.tensor(PIXEL_MEAN, device=device).view(3, 1, 1) / 255
    std = torch.tensor(PIXEL_STD, device=device).view(3, 1, 1) / 255
    return Batch((pixels - mean) / std * inside, labels)
