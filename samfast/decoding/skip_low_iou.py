"""The mask decoder where poor masks will be dropped: what it thinks poor itself is not upscaled."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.model.mask_decoder import MaskDecoder


def skip_low_iou(
    decoder: MaskDecoder,
    image_embeddings: Tensor,
    image_pe: Tensor,
    sparse_prompt_embeddings: Tensor,
    dense_prompt_embeddings: Tensor,
    multimask_output: bool,
    least_iou: float | Tensor,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As the decoder, but the logits of an object none of whose masks has an IoU above least_iou
    are zeros.

    Predicted IoU is known before the image is upscaled, which takes a quarter of an object's time
    on a CPU. Looking at it would wait for a GPU.
    """
    tokens, image = decoder.transform(
        image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, token_mask
    )
    chosen = decoder.chosen(multimask_output)
    iou = decoder.quality(tokens)[:, chosen]
    good = (iou.float() > least_iou).any(1)
    if good.all():
        return decoder.masks(tokens, image)[:, chosen], iou
    height, width = image_embeddings.shape[-2:]
    low_res = torch.zeros(*iou.shape, 4 * height, 4 * width, dtype=image.dtype, device=image.device)
    if good.any():
        low_res[good] = decoder.masks(tokens[good], image[good])[:, chosen]
    return low_res, iou
