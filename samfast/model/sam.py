"""The whole of SAM: image encoder, prompt encoder, mask decoder (Kirillov et al. 2023, fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.model.config import SamConfig
from samfast.model.image_encoder import ImageEncoderViT
from samfast.model.mask_decoder import MaskDecoder
from samfast.model.prompt_encoder import PromptEncoder
from samfast.model.transformer import TwoWayTransformer
from samfast.types import PIXEL_MEAN, PIXEL_STD


class Sam(nn.Module):
    """The three parts, and the mean and deviation of pixels (original: `modeling/sam.py`)."""

    mask_threshold: float = 0.0
    image_format: str = "RGB"
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        image_encoder: ImageEncoderViT,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return self.pixel_mean.device

    @torch.no_grad()
    def forward(
        self, batched_input: list[dict[str, Any]], multimask_output: bool
    ) -> list[dict[str, Tensor]]:
        """Images and prompts to masks in one call (original: `Sam.forward`).

        batched_input  one dict per image: `image` (3, h, w), resized but not normalised;
                       `original_size` (H, W); and any of `point_coords` (N, K, 2) with
                       `point_labels` (N, K), `boxes` (N, 4), both in pixels of the resized image,
                       `mask_inputs` (N, 1, 256, 256)
        returns        one dict per image: `masks` (N, M, H, W) bool, `iou_predictions` (N, M),
                       `low_res_logits` (N, M, 256, 256)
        """
        images = torch.stack([self.preprocess(record["image"]) for record in batched_input])
        outputs = []
        for record, embedding in zip(batched_input, self.image_encoder(images), strict=True):
            points = None
            if "point_coords" in record:
                points = (record["point_coords"], record["point_labels"])
            sparse, dense = self.prompt_encoder(
                points=points, boxes=record.get("boxes"), masks=record.get("mask_inputs")
            )
            low_res, iou = self.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
            )
            masks = self.postprocess_masks(
                low_res, tuple(record["image"].shape[-2:]), record["original_size"]
            )
            masks = masks > self.mask_threshold
            outputs.append({"masks": masks, "iou_predictions": iou, "low_res_logits": low_res})
        return outputs

    def preprocess(self, x: Tensor) -> Tensor:
        """Pixels (..., 3, h, w) in [0, 255], long side S -> (..., 3, S, S), normalised, padded."""
        x = (x - self.pixel_mean) / self.pixel_std
        side = self.image_encoder.img_size
        return F.pad(x, (0, side - x.shape[-1], 0, side - x.shape[-2]))

    def postprocess_masks(
        self, masks: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> Tensor:
        """Logits (P, M, 256, 256) -> (P, M, H, W) at the original size, padding removed."""
        side = self.image_encoder.img_size
        masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
        masks = masks[..., : input_size[0], : input_size[1]]
        return F.interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)


def build(config: SamConfig, encoder: type[ImageEncoderViT] = ImageEncoderViT) -> Sam:
    """A SAM with random weights, in evaluation mode (original: `_build_sam`)."""
    grid = (config.grid, config.grid)
    sam = Sam(
        image_encoder=encoder(
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
        prompt_encoder=PromptEncoder(
            embed_dim=config.out_chans,
            image_embedding_size=grid,
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_in_chans,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=config.out_chans,
            transformer=TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.out_chans,
                num_heads=config.decoder_heads,
                mlp_dim=config.decoder_mlp_dim,
            ),
            num_multimask_outputs=config.num_multimask_outputs,
        ),
    )
    return sam.eval()
