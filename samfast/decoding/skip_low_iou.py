"""The plain mask decoder without upscaling the objects whose masks are predicted to be poor."""

from __future__ import annotations

import torch
from torch import Tensor

from samfast.model.mask_decoder import MaskDecoder


def decode_masks(
    decoder: MaskDecoder,
    image_embeddings: Tensor,
    image_pe: Tensor,
    sparse_prompt_embeddings: Tensor,
    dense_prompt_embeddings: Tensor,
    multimask_output: bool,
    token_mask: Tensor | None,
    min_iou: float | Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Logits and predicted IoU as of the decoder; with min_iou, objects none of whose masks has a
    higher predicted IoU have zeros for logits.

    Predicted IoU is known before the image is upscaled, which takes a quarter of an object's time
    on a CPU. Reading it waits for a GPU. A decoder of another class, whose steps may differ from
    the original's, is called whole.
    """
    if min_iou is None or type(decoder) is not MaskDecoder:
        mask = {} if token_mask is None else {"token_mask": token_mask}
        answer: tuple[Tensor, Tensor] = decoder(
            image_embeddings=image_embeddings,
            image_pe=image_pe,
            sparse_prompt_embeddings=sparse_prompt_embeddings,
            dense_prompt_embeddings=dense_prompt_embeddings,
            multimask_output=multimask_output,
            **mask,
        )
        return answer
    tokens, image = decoder.transform(
        image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, token_mask
    )
    returned = decoder.returned(multimask_output)
    iou = decoder.predicted_iou(tokens)[:, returned]
    good = (iou.float() > min_iou).any(1)
    if good.all():
        return decoder.mask_logits(tokens, image)[:, returned], iou
    height, width = image_embeddings.shape[-2:]
    low_res = torch.zeros(*iou.shape, 4 * height, 4 * width, dtype=image.dtype, device=image.device)
    if good.any():
        low_res[good] = decoder.mask_logits(tokens[good], image[good])[:, returned]
    return low_res, iou
