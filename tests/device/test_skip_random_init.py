"""Modules whose random weights are left uninitialised: nothing is drawn, constants are written."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from samfast.device.skip_random_init import SkipRandomInit
from samfast.model.sam import build
from tests.model.tiny import TINY


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)
        self.conv = nn.ConvTranspose2d(3, 4, 2)
        self.embedding = nn.Embedding(2, 3)
        self.norm = nn.LayerNorm(6)
        self.register_buffer("matrix", torch.randn(2, 8))
        self.register_buffer("row", torch.rand(9))
        self.table = nn.Parameter(torch.zeros(4))
        nn.init.trunc_normal_(self.table, std=0.02)


@pytest.mark.parametrize("make", [Layers, lambda: build(TINY)], ids=["layers", "sam"])
def test_no_random_number_is_drawn_and_all_else_is_as_ever(make):
    plain = make()
    before = torch.get_rng_state()
    with SkipRandomInit():
        skipped = make()
    assert torch.equal(torch.get_rng_state(), before)
    want, got = plain.state_dict(), skipped.state_dict()
    assert {name: (value.shape, value.dtype, value.device) for name, value in got.items()} == {
        name: (value.shape, value.dtype, value.device) for name, value in want.items()
    }
    assert [name for name, _ in skipped.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    for name, module in plain.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(skipped.get_submodule(name).weight, torch.ones_like(module.weight))
            assert not skipped.get_submodule(name).bias.any()


def test_after_the_block_weights_are_random_again():
    with SkipRandomInit():
        Layers()
    torch.manual_seed(3)
    first = Layers().state_dict()
    torch.manual_seed(3)
    second = Layers().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["linear.weight"].std() > 0


def test_memory_of_random_tensors_is_not_touched():
    program = """
import resource, sys, torch
from samfast.device.skip_random_init import SkipRandomInit
def peak():
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
before = peak()
with SkipRandomInit():
    layer = torch.nn.Linear(8192, 8192, bias=False)
assert layer.weight.numel() * 4 == 1 << 28
assert peak() - before < 1 << 26, peak() - before
"""
    pytest.importorskip("resource")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
