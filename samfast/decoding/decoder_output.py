"""The output of decoders, and the number of objects per call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samfast.model.sam import Sam
from samfast.prompts import device_checks

OBJECTS_PER_CALL = {"cpu": 4, "cuda": 256}
"""On a CPU few, so that the objects' feature maps, 4 MiB each, stay in the cache."""


def objects_per_call(device: torch.device) -> int:
    """Objects that a decoder takes in one call on that device."""
    return OBJECTS_PER_CALL.get(device.type, 64)


@dataclass(frozen=True)
class DecoderOutput:
    """The answers for P objects, in the order of their prompts.

    low_res  (P, M, 4 * h, 4 * w) logits, float32 or, with keep_dtype, in the decoder's dtype
    iou      (P, M) float32, predicted
    codes    (P,) uint8, deferred checks (`samfast.prompts.device_checks`)
    """

    low_res: Tensor
    iou: Tensor
    codes: Tensor

    @staticmethod
    def empty(
        sam: Sam, count: int, multimask: bool, device: torch.device, keep_dtype: bool = False
    ) -> DecoderOutput:
        """Uninitialised memory for the answers of so many objects."""
        masks = sam.mask_decoder.num_multimask_outputs if multimask else 1
        dtype = sam.mask_decoder.iou_token.weight.dtype if keep_dtype else torch.float32
        shape = (count, masks, *sam.prompt_encoder.mask_input_size)
        return DecoderOutput(
            torch.empty(shape, dtype=dtype, device=device),
            torch.empty(count, masks, device=device),
            torch.empty(count, dtype=torch.uint8, device=device),
        )

    def rows(self, start: int, stop: int) -> DecoderOutput:
        """Those of some objects; they share memory."""
        rows = slice(start, stop)
        return DecoderOutput(self.low_res[rows], self.iou[rows], self.codes[rows])

    def put(self, start: int, low_res: Tensor, iou: Tensor, codes: Tensor | None = None) -> None:
        """Write some objects' answers, of any dtype, from row `start` on; None: check them here."""
        rows = slice(start, start + len(iou))
        self.low_res[rows].copy_(low_res)
        self.iou[rows].copy_(iou)
        self.codes[rows].copy_(device_checks.non_finite(low_res, iou) if codes is None else codes)
