"""The plain model on one image's prompts at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor

from samfast.decoding.decoder_output import DecoderOutput, at_a_time
from samfast.decoding.skip_low_iou import skip_low_iou
from samfast.device.retry import RetryOnOOM
from samfast.device.transfer import upload
from samfast.model.mask_decoder import MaskDecoder
from samfast.model.sam import Sam
from samfast.prompts.flat_prompts import Flat
from samfast.prompts.prompt_buffer import token_mask
from samfast.types import PromptGroup


class Looped:
    """Decodes image by image, some objects at a time."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    def __call__(
        self,
        features: Tensor,
        groups: Sequence[PromptGroup],
        multimask: bool,
        halving: RetryOnOOM,
        keep_dtype: bool = False,
        least_iou: float | None = None,
    ) -> list[DecoderOutput]:
        """As `samfast.decoding.decoder.Decoder`."""
        sam, answers = self._sam, []
        features = features.to(sam.mask_decoder.iou_token.weight.dtype)
        for group in groups:
            flat, offsets = Flat.of(group), group.batch.offsets
            answer = halving.whole(
                partial(DecoderOutput.empty, sam, flat.count, multimask, sam.device, keep_dtype)
            )
            for image, (first, last) in zip(group.images, pairwise(offsets), strict=True):
                work = partial(
                    self._decode, features[image : image + 1], flat, multimask, least_iou, answer
                )
                halving.over(first, last, at_a_time(sam.device), work)
            answers.append(answer)
        return answers

    def _decode(
        self,
        features: Tensor,
        flat: Flat,
        multimask: bool,
        least_iou: float | None,
        answer: DecoderOutput,
        start: int,
        stop: int,
    ) -> None:
        sam, device = self._sam, self._sam.device
        coords, labels = flat.points(start, stop)
        points = None
        if coords is not None and labels is not None:
            points = (upload(coords, device), upload(labels, device))
        boxes = None if flat.boxes is None else upload(flat.boxes[start:stop], device)
        masks = None if flat.masks is None else upload(flat.masks[start:stop], device)
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        mask = {}
        if labels is not None and flat.padded(labels):
            mask["token_mask"] = upload(token_mask(labels, flat.boxes is not None), device)
        decoder = sam.mask_decoder
        decode: Callable[..., tuple[Tensor, Tensor]] = decoder
        # Of the original's structure, whose steps can be called one by one; and nothing there waits
        # for a CPU.
        if least_iou is not None and type(decoder) is MaskDecoder and device.type == "cpu":
            decode = partial(skip_low_iou, decoder, least_iou=least_iou)
        low_res, iou = decode(
            image_embeddings=features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **mask,
        )
        answer.put(start, low_res, iou)
