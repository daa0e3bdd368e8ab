"""Prompts of all images as jagged nested tensors, decoded by the plain model at once (the seed
article's step).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from samfast.decoding.decoder_output import DecoderOutput, at_a_time
from samfast.device.retry import RetryOnOOM
from samfast.device.transfer import upload
from samfast.model.sam import Sam
from samfast.prompts.flat_prompts import Flat
from samfast.prompts.prompt_buffer import token_mask


class Nested:
    """Decodes a ragged batch of all images, some objects at a time.

    Coordinates, labels and boxes are jagged over the images: (B, n, K, 2), (B, n, K), (B, n, 4),
    where n differs. What runs through the model is their flat values; the offsets say which image
    each object looks at, and make the flat answers jagged again. Nothing is padded between images
    and nothing waits for the device.

    Attention is on the flat values too, not on jagged tensors. An object's tokens see each other
    and its own copy of the image, which the image's attention to the tokens has changed, and never
    another object's: within an object nothing is ragged, unless it has fewer points than others,
    which a mask says. Jagged attention would also ask for the longest sequence on the host, and so
    wait.
    """

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    def __call__(
        self,
        features: Tensor,
        flats: Sequence[Flat],
        multimask: bool,
        halving: RetryOnOOM,
        keep_dtype: bool = False,
    ) -> list[DecoderOutput]:
        """Answers for each flat batch; features (B, C, h, w) are of all images."""
        features = features.to(self._sam.mask_decoder.iou_token.weight.dtype)
        return [self._answer(features, flat, multimask, halving, keep_dtype) for flat in flats]

    def _answer(
        self, features: Tensor, flat: Flat, multimask: bool, halving: RetryOnOOM, keep_dtype: bool
    ) -> DecoderOutput:
        sam = self._sam
        answer = halving.whole(
            partial(DecoderOutput.empty, sam, flat.count, multimask, sam.device, keep_dtype)
        )
        if flat.count == 0:
            return answer
        padded = flat.padded(flat.labels)  # while it lies on the host
        flat = flat.to(sam.device)
        coords, labels, boxes = (
            None if x is None else nested(x, flat.offsets)
            for x in (flat.coords, flat.labels, flat.boxes)
        )
        image_of = flat.image_of

        def work(start: int, stop: int) -> None:
            part = slice(start, stop)
            own = None if labels is None else labels.values()[part]
            sparse, dense = sam.prompt_encoder(
                points=None if coords is None or own is None else (coords.values()[part], own),
                boxes=None if boxes is None else boxes.values()[part],
                masks=None if flat.masks is None else upload(flat.masks[part], sam.device),
            )
            low_res, iou = sam.mask_decoder(
                image_embeddings=features if len(features) == 1 else features[image_of[part]],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                token_mask=token_mask(own, boxes is not None)
                if own is not None and padded
                else None,
            )
            answer.put(start, low_res, iou)

        halving.over(0, flat.count, at_a_time(sam.device), work)
        return answer


def nested(values: Tensor, offsets: Tensor) -> Tensor:
    """Flat values (P, ...) as a jagged tensor (B, n, ...) over offsets (B + 1,); both are shared,
    not copied.

    Unless the values were made in inference mode: outside of it torch takes no view of those apart
    again.
    """
    if values.is_inference():
        values = values.clone()
    return torch.nested.nested_tensor_from_jagged(values, offsets)
