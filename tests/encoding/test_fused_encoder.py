"""The fused encoder against the plain one, with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from samfast import attention
from samfast.device.custom_ops import Operation
from samfast.encoding import fused_operations as ops
from samfast.encoding.fused_encoder import FusedEncoder
from samfast.errors import UnsupportedRecipeError
from samfast.linear.fp8 import Fp8Linear
from samfast.linear.quantization import quantize_rows
from tests.encoding.small_encoder import relative


@torch.no_grad()
@pytest.mark.parametrize("name", ["reference", "folded"])
def test_it_equals_the_plain_encoder(sam, name):
    for block in sam.image_encoder.blocks:
        block.attn.attend = attention.get(name)
    pixels = torch.randn(2, 3, 256, 256)
    truth = sam.double().image_encoder(pixels.double())
    for dtype, floor in ((torch.float32, 1e-6), (torch.bfloat16, 0.0)):
        sam.to(dtype)
        plain = relative(sam.image_encoder(pixels.to(dtype)), truth)
        answer = FusedEncoder(sam.image_encoder)(pixels)
        assert answer.dtype == dtype and answer.is_contiguous(memory_format=torch.channels_last)
        assert relative(answer, truth) <= max(2 * plain, floor)


@torch.no_grad()
@pytest.mark.parametrize("missing", ["positions", "biases", "both"])
def test_an_encoder_without_positions_or_biases(sam, missing):
    encoder = sam.image_encoder
    if missing != "biases":
        encoder.pos_embed = None
    if missing != "positions":
        encoder.patch_embed.proj.bias = None
        encoder.blocks[0].attn.proj.bias = None
        encoder.blocks[2].mlp.lin2.bias = None
        encoder.blocks[3].mlp.lin2.bias = None
    pixels = torch.randn(1, 3, 256, 256)
    assert relative(FusedEncoder(encoder)(pixels), encoder(pixels)) < 3e-6


@torch.no_grad()
def test_weights_loaded_later_are_used(sam):
    fused = FusedEncoder(sam.image_encoder)
    pixels = torch.randn(1, 3, 256, 256)
    before = fused(pixels)
    sam.load_state_dict({k: v * 1.1 for k, v in sam.state_dict().items()})
    after = fused(pixels)
    assert relative(after, before) > 1e-2
    assert relative(after, sam.image_encoder(pixels)) < 3e-6


def test_other_blocks_are_refused(sam):
    sam.image_encoder.blocks[1].mlp.act = nn.GELU(approximate="tanh")
    with pytest.raises(UnsupportedRecipeError, match="GELU by erf"):
        FusedEncoder(sam.image_encoder)


@torch.no_grad()
def test_no_hidden_value_exceeds_the_bound_that_float8_is_scaled_by(sam):
    block = sam.image_encoder.blocks[1]
    block.mlp.lin1 = Fp8Linear.from_linear(block.mlp.lin1)
    block.mlp.lin2 = Fp8Linear.from_linear(block.mlp.lin2)
    fused = FusedEncoder(sam.image_encoder)
    assert fused.bound_0 is None  # these layers are not float8
    weight = block.mlp.lin1.weight.float() * block.mlp.lin1.weight_scale[:, None]
    # Among random rows, those that agree best with the weight of some hidden value.
    rows = torch.cat([torch.randn(64, weight.shape[1]), weight * block.norm2.weight, -weight])
    x, x_scale = quantize_rows(block.norm2(rows), torch.float8_e4m3fn)
    hidden = nn.functional.linear(x.float() * x_scale[:, None], weight, block.mlp.lin1.bias)
    highest = float(nn.functional.gelu(hidden).max())
    assert highest <= float(fused.bound_1) <= 3 * highest


def test_the_operations_keep_pytorchs_rules():
    x, y, pixels = torch.randn(4, 16), torch.randn(2, 16), torch.randn(1, 3, 8, 8)
    weight, bias = torch.randn(16), torch.randn(16)
    cases: list[tuple[Operation[..., Any], tuple[Any, ...]]]
    cases = [(ops.gelu_, (x,)), (ops.patches, (pixels, 4, torch.float32))]
    cases += [(ops.linear_gelu, (x, torch.randn(8, 16), torch.randn(8)))]
    small, small_weight = (each.to(torch.float8_e4m3fn) for each in (x, torch.randn(8, 16)))
    scales = torch.rand(4), torch.rand(8)
    inputs = small, scales[0], small_weight, scales[1], torch.randn(8), torch.tensor(100.0)
    # Torch cannot compare float8 on a CPU, as the check of the schema does.
    torch.library.opcheck(ops.linear_gelu_fp8.register(), inputs, test_utils="test_faketensor")
    for kind in ("", "int8", "fp8"):
        cases += [
            (ops.norm, (x, None, weight, bias, 1e-6, kind)),
            (ops.add_norm, (x, y, bias, weight, bias, 1e-6, kind)),
            (ops.gelu, (x, kind)),
        ]
    for operation, arguments in (*cases, (ops.quantize, (x, "int8"))):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(operation.register(), arguments, test_utils=checks)


@torch.no_grad()
def test_a_large_batch_goes_in_parts(sam, monkeypatch):
    pixels = torch.randn(5, 3, 256, 256)
    whole = FusedEncoder(sam.image_encoder)(pixels)
    monkeypatch.setattr("samfast.encoding.fused_encoder.MAX_BATCH", 2)
    sizes = []
    encode = FusedEncoder._encode
    monkeypatch.setattr(
        FusedEncoder, "_encode", lambda self, x: sizes.append(len(x)) or encode(self, x)
    )
    assert relative(FusedEncoder(sam.image_encoder)(pixels), whole) < 1e-6
    assert sizes == [2, 2, 1]
