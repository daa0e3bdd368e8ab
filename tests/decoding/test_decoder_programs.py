"""The CUDA C++ kernels of a fused decoder are named before they are needed."""

from __future__ import annotations

import pytest
import torch

from samfast.decoding import decoder_programs
from samfast.device.cuda_programs import compile_program


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_both_attentions(dtype):
    pytest.importorskip("cuda.bindings")
    programs = decoder_programs.programs(dtype)
    assert {program.kernel for program in programs} == {
        "image_to_token_attention",
        "token_to_image_attention",
    }
    assert all(compile_program(program)[0] for program in programs)


def test_none_for_float32():
    assert decoder_programs.programs(torch.float32) == set()
