"""What decoders answer, and how many objects they take at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samfast.model.sam import Sam
from samfast.prompts import device_checks

OBJECTS_AT_A_TIME = {"cpu": 4, "cuda": 256}
"""Objects that the decoder takes in one call: on a CPU so few that their maps, 4 MiB each, stay in
the cache."""


def at_a_time(device: torch.device) -> int:
    """Objects that the decoder takes in one call there."""
    return OBJECTS_AT_A_TIME.get(device.type, 64)


@dataclass(frozen=True)
class DecoderOutput:
    """The answers for P objects.

    low_res  (P, M, 4 * h, 4 * w) logits, float32 or, if narrow, in the decoder's own dtype;  iou
             (P, M) float32
    codes    (P,) uint8, what is wrong with them (`samfast.prompts.device_checks`)
    """

    low_res: Tensor
    iou: Tensor
    codes: Tensor

    @staticmethod
    def empty(
        sam: Sam, count: int, multimask: bool, device: torch.device, keep_dtype: bool = False
    ) -> DecoderOutput:
        """Room for the answers of so many objects."""
        masks = sam.mask_decoder.num_multimask_outputs if multimask else 1
        dtype = sam.mask_decoder.iou_token.weight.dtype if keep_dtype else torch.float32
        return DecoderOutput(
            torch.empty(
                count, masks, *sam.prompt_encoder.mask_input_size, dtype=dtype, device=device
            ),
            torch.empty(count, masks, device=device),
            torch.empty(count, dtype=torch.uint8, device=device),
        )

    def put(self, start: int, low_res: Tensor, iou: Tensor, codes: Tensor | None = None) -> None:
        """Write some objects' answers, in any dtype, from object `start` on; without codes they are
        looked at.
        """
        place = slice(start, start + len(iou))
        self.low_res[place].copy_(low_res)
        self.iou[place].copy_(iou)
        self.codes[place].copy_(device_checks.non_finite(low_res, iou) if codes is None else codes)
