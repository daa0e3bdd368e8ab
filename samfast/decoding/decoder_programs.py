"""The CUDA C++ kernels that a fused mask decoder will launch on a Hopper GPU."""

from __future__ import annotations

import torch

from samfast.decoding.kernels import hopper_image_to_token, hopper_token_to_image
from samfast.device.cuda_programs import CudaProgram


def programs(dtype: torch.dtype) -> set[CudaProgram]:
    """The programs for weights of that dtype, to be loaded ahead."""
    if dtype == torch.float32:
        return set()
    return {hopper_image_to_token.program(dtype), hopper_token_to_image.program(dtype)}
