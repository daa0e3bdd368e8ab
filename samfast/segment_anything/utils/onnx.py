"""As `segment_anything.utils.onnx`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfast.model.sam import Sam
from samfast.segment_anything.utils.amg import calculate_stability_score

__all__ = ["Sam", "SamOnnxModel", "calculate_stability_score"]


class SamOnnxModel(nn.Module):
    """Prompt encoder, mask decoder and post-processing without branches on values, for export.

    return_single_mask    return the one of the four masks that fits the number of points
    use_stability_score   score masks by stability instead of predicted IoU
    return_extra_metrics  also return stability and area of the upscaled masks
    """

    def __init__(
        self,
        model: Sam,
        return_single_mask: bool,
        use_stability_score: bool = False,
        return_extra_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.mask_decoder = model.mask_decoder
        self.model = model
        self.img_size = model.image_encoder.img_size
        self.return_single_mask = return_single_mask
        self.use_stability_score = use_stability_score
        self.stability_score_offset = 1.0
        self.return_extra_metrics = return_extra_metrics

    @staticmethod
    def resize_longest_image_size(input_image_size: Tensor, longest_side: int) -> Tensor:
        """(H, W) -> (h, w) int64, the long side being `longest_side`."""
        size = input_image_size.to(torch.float32)
        return torch.floor(longest_side / torch.max(size) * size + 0.5).to(torch.int64)

    def _embed_points(self, point_coords: Tensor, point_labels: Tensor) -> Tensor:
        """(P, K, 2) points and (P, K) labels, 2 and 3 being the corners of a box -> (P, K, C)."""
        encoder = self.model.prompt_encoder
        encoding = encoder.pe_layer._pe_encoding((point_coords + 0.5) / self.img_size)
        kind = point_labels.unsqueeze(-1).expand_as(encoding)
        encoding = encoding * (kind != -1) + encoder.not_a_point_embed.weight * (kind == -1)
        for label, embedding in enumerate(encoder.point_embeddings):
            weight: Tensor = embedding.get_parameter("weight")
            encoding = encoding + weight * (kind == label)
        return encoding

    def _embed_masks(self, input_mask: Tensor, has_mask_input: Tensor) -> Tensor:
        """(P, 1, 4h, 4w) logits, used where has_mask_input is 1 -> (P, C, h, w)."""
        encoder = self.model.prompt_encoder
        given: Tensor = encoder.mask_downscaling(input_mask)
        none = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return has_mask_input * given + (1 - has_mask_input) * none

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """(P, M, 4h, 4w) logits -> (P, M, H, W), (H, W) being orig_im_size."""
        side = (self.img_size, self.img_size)
        square = F.interpolate(masks, size=side, mode="bilinear", align_corners=False)
        # Tensors, not numbers: a tracer would store the example's numbers for every image.
        inside = self.resize_longest_image_size(orig_im_size, self.img_size)
        square = square[..., : inside[0], : inside[1]]
        height, width = (orig_im_size[i].to(torch.int64) for i in range(2))
        size: Any = height, width
        return F.interpolate(square, size=size, mode="bilinear", align_corners=False)

    def select_masks(
        self, masks: Tensor, iou_preds: Tensor, num_points: int
    ) -> tuple[Tensor, Tensor]:
        """(P, 1, ...): the first mask for more than two points, else the best of the others."""
        first = torch.zeros_like(iou_preds[:1])
        first[:, 0] = 1000
        best = torch.argmax(iou_preds + (num_points - 2.5) * first, dim=1, keepdim=True)
        chosen = masks.gather(1, best[..., None, None].expand(-1, -1, *masks.shape[2:]))
        return chosen, iou_preds.gather(1, best)

    @torch.no_grad()
    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        """Masks (P, M, H, W), scores (P, M), [stability (P, M), areas (P, M),] low-res masks."""
        masks, scores = self.model.mask_decoder.predict_masks(
            image_embeddings=image_embeddings,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=self._embed_points(point_coords, point_labels),
            dense_prompt_embeddings=self._embed_masks(mask_input, has_mask_input),
        )
        threshold = self.model.mask_threshold
        if self.use_stability_score:
            scores = _stability(masks, threshold, self.stability_score_offset)
        if self.return_single_mask:
            masks, scores = self.select_masks(masks, scores, point_coords.shape[1])
        upscaled = self.mask_postprocessing(masks, orig_im_size)
        if not self.return_extra_metrics:
            return upscaled, scores, masks
        stable = _stability(upscaled, threshold, self.stability_score_offset)
        areas = (upscaled > threshold).sum(dim=(-2, -1))
        return upscaled, scores, stable, areas, masks


def _stability(masks: Tensor, threshold: float, offset: float) -> Tensor:
    """As `samfast.masks.stability.score`, in operations that a tracer records."""
    inner = (masks > threshold + offset).sum(dim=(-2, -1))
    return inner / (masks > threshold - offset).sum(dim=(-2, -1))
