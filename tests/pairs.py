"""The original SAM and ours with the same random weights, and inputs for both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samfast.images import Batcher, LoadedImage
from samfast.images.batching import already_loaded
from samfast.model.config import SamConfig
from samfast.model.sam import Sam, build
from samfast.types import RawImageBatch
from tests import oracle

SMALL = SamConfig(
    "small",
    embed_dim=48,
    depth=4,
    num_heads=3,
    global_attn_indexes=(1, 3),
    image_size=256,
    window_size=6,  # 16 tokens a side: windows with padding
    out_chans=64,
    decoder_mlp_dim=96,
)

THRESHOLD_MARGIN = 1e-4
"""Pixels closer to the threshold, relative to the largest logit, may differ by rounding."""


def original(config: SamConfig) -> Any:
    """The original's Sam with that configuration."""
    modeling = oracle.load().modeling
    grid = (config.grid, config.grid)
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            out_chans=config.out_chans,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config.window_size,
            global_attn_indexes=config.global_attn_indexes,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=config.out_chans,
            image_embedding_size=grid,
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_in_chans,
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=config.out_chans,
            transformer=modeling.TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.out_chans,
                num_heads=config.decoder_heads,
                mlp_dim=config.decoder_mlp_dim,
            ),
            num_multimask_outputs=config.num_multimask_outputs,
        ),
    )
    return sam.eval()


def randomise(sam: nn.Module, seed: int = 0, scale: float = 0.05) -> None:
    """Move every weight, the positions (zero in a new model) most."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sam.state_dict().items():
            step = 0.5 if "rel_pos" in name else scale
            tensor += step * torch.randn(tensor.shape, generator=generator)


def pair(config: SamConfig = SMALL, seed: int = 0) -> tuple[Any, Sam]:
    """The original and ours with the same random weights, the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        theirs, ours = original(config), build(config)
    randomise(theirs, seed)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: a few smooth waves and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [
        np.sin(x * rng.uniform(5, 40) + y * rng.uniform(5, 40) + rng.uniform(0, 6))
        for _ in range(3)
    ]
    pixels = 128 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 15, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def raw_batch(images: Sequence[LoadedImage], side: int, *, pin: bool = False) -> RawImageBatch:
    """Loaded images as the raw batch from which a device makes its pixels."""
    with Batcher(side, pin=pin) as batcher:
        return batcher.raw_batch(images, already_loaded)


def relative_error(ours: Tensor | NDArray[Any], theirs: Tensor | NDArray[Any]) -> float:
    """||ours - theirs|| / ||theirs||, in float64."""
    a, b = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


def undecided(logits: Tensor | NDArray[Any], threshold: float = 0.0) -> NDArray[np.bool_]:
    """Pixels so close to the threshold that rounding may decide them."""
    values = np.asarray(logits)
    margin = THRESHOLD_MARGIN * np.abs(values).max()
    close: NDArray[np.bool_] = np.abs(values - threshold) <= margin
    return close


class BlobSam(nn.Module):
    """Called like a SAM, but draws discs with holes and islands around points, by fixed rules.

    Random weights give noise; these masks overlap, repeat, touch edges and differ in predicted IoU
    as those of a trained model do.
    """

    mask_threshold = 0.0
    image_format = "RGB"

    def __init__(self, side: int = 256) -> None:
        super().__init__()
        self.image_encoder = BlobEncoder(side)
        self.prompt_encoder = BlobPrompts()
        self.mask_decoder = BlobDecoder(side)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def preprocess(self, x: Tensor) -> Tensor:
        return x.float()

    def postprocess_masks(self, masks: Tensor, input_size: Any, original_size: Any) -> Tensor:
        side = self.image_encoder.img_size
        resize = partial(nn.functional.interpolate, mode="bilinear", align_corners=False)
        return resize(
            resize(masks, (side, side))[..., : input_size[0], : input_size[1]], original_size
        )


class BlobEncoder(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.img_size = side

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2, 3)).round()  # a number that tells crops apart


class BlobPrompts(nn.Module):
    def forward(self, points: Any, boxes: Any, masks: Any) -> tuple[Tensor, Tensor]:
        return points[0], points[1]

    def get_dense_pe(self) -> None:
        return None


class BlobDecoder(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: None,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        low = self.side // 4
        place = sparse_prompt_embeddings[:, 0].double() / 4  # (n, 2) in low-resolution pixels
        cell = low / 5
        # Neighbouring points have the same centre.
        centre = (place / cell).floor() * cell + cell / 2 + (image_embeddings % 7)
        y, x = torch.meshgrid(torch.arange(low) + 0.5, torch.arange(low) + 0.5, indexing="ij")
        masks, quality = [], []
        for m in range(3):
            radius = cell * (0.35 + 0.45 * m) * (1 + 0.2 * torch.sin(centre.sum(1) * (m + 1)))
            away = (
                (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2
            ).sqrt()
            ripple = torch.sin(x * 1.7 + m) * torch.sin(y * 1.3 + place.sum(1)[:, None, None])
            slope = 0.4 + (place.sum(1) * 13 % 5)[:, None, None]
            masks.append(((radius[:, None, None] - away) + 1.6 * ripple) * slope)
            quality.append(0.7 + 0.3 * torch.sin(place[:, 0] * 3.1 + place[:, 1] * 1.7 + m).abs())
        return torch.stack(masks, dim=1).float(), torch.stack(quality, dim=1).float()


def forget_original() -> dict[str, Any]:
    """Remove the original's modules from sys.modules; returns them."""
    names = [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]
    return {name: sys.modules.pop(name) for name in names}
