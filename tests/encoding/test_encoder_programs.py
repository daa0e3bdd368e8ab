"""The CUDA C++ kernels of an encoder are named before they are needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samfast.attention.kernels import hopper_global, hopper_windows
from samfast.device import cuda_programs
from samfast.encoding import encoder_programs
from samfast.encoding.kernels import hopper_linear_gelu
from samfast.loading import random_weights
from samfast.model.config import CONFIGS

SMALL = replace(CONFIGS["vit_xs"], image_size=256, depth=2, global_attn_indexes=(1,))


def encoder(dtype):
    return random_weights(SMALL).image_encoder.to(dtype)


def test_each_kernel_once():
    bf16 = torch.bfloat16
    attention = {hopper_windows.program(bf16, 64), hopper_global.program(64)}
    assert encoder_programs.programs(encoder(bf16), fuse=False) == attention
    assert encoder_programs.programs(encoder(bf16), fuse=True) == {
        *attention,
        hopper_linear_gelu.program(bf16, bf16),
    }


def test_none_for_float32():
    assert encoder_programs.programs(encoder(torch.float32), fuse=True) == set()


def test_none_for_other_modules():
    assert encoder_programs.programs(torch.nn.Linear(2, 2), fuse=True) == set()


def test_threads_load_them(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        cuda_programs, "available", lambda program, device: loaded.append((program, device))
    )
    device = torch.device("cuda")
    wanted = encoder_programs.programs(encoder(torch.float16), fuse=True)
    for thread in cuda_programs.load_ahead(wanted, device):
        thread.join(10)
    assert sorted(map(str, loaded)) == sorted(str((program, device)) for program in wanted)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_have_none(device):
    program = hopper_windows.program(torch.bfloat16, 64)
    assert not cuda_programs.available(program, torch.device(device))
