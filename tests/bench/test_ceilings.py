from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from samfast.bench import ceilings
from samfast.bench.ceilings import (
    attention_flop,
    encoder_flop,
    formats_of,
    layer_flop,
    layers,
    least_seconds,
    measure_ceilings,
)
from samfast.model.config import CONFIGS
from samfast.recipes import RECIPES, Recipe, use_attention
from tests.model.tiny import TINY, random_sam

CPU = torch.device("cpu")


def test_each_layer_is_multiplied_and_weighted_by_its_work(monkeypatch):
    seconds = iter((4.0, 1.0, 2.0, 2.0))
    asked = []

    def timed(run, device):
        asked.append(tuple(run().shape))
        return next(seconds)

    monkeypatch.setattr(ceilings, "_seconds", timed)
    measured = measure_ceilings(TINY, 2, CPU, ["fp32"])
    assert asked == [(128, layer.outputs) for layer in layers(TINY)]
    work = [layer.flop(128) for layer in layers(TINY)]
    assert measured["layers"]["fp32"]["qkv"] == pytest.approx(work[0] / 4 / 1e12)
    assert measured["tflops"]["fp32"] == pytest.approx(sum(work) / 9 / 1e12)
    assert measured["refused"] == {}


def test_real_products_have_a_rate():
    measured = measure_ceilings(TINY, 1, CPU, ["fp32", "bf16", "int8"])
    assert all(measured["tflops"][kind] > 0 for kind in ("fp32", "bf16", "int8"))


def test_what_the_device_cannot_is_said(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no such units\nand more")

    monkeypatch.setattr(ceilings, "_fp8", refuse)
    measured = measure_ceilings(TINY, 1, CPU, ["fp8"])
    assert measured["tflops"] == {"fp8": None}
    assert measured["refused"] == {"fp8": "no such units"}
    assert "fp8" not in measured["layers"]


def rates(**by_format):
    work = layer_flop(TINY)
    return {
        "tflops": by_format,
        "layers": {kind: dict.fromkeys(work, rate) for kind, rate in by_format.items() if rate},
        "refused": {},
    }


def test_the_least_time_of_one_format():
    measured = least_seconds(TINY, rates(bf16=2.0), Recipe(dtype=torch.bfloat16))
    assert measured == pytest.approx(encoder_flop(TINY) / 2e12)
    assert least_seconds(TINY, rates(bf16=2.0), Recipe()) is None
    assert least_seconds(TINY, rates(bf16=2.0), RECIPES["fused"]) == measured


def test_quantized_layers_have_the_rate_of_their_format():
    recipe = replace(RECIPES["fp8"], quantized_layers=("lin1",))
    measured = least_seconds(TINY, rates(bf16=1.0, fp8=2.0), recipe)
    saved = layer_flop(TINY)["lin1"] / 2
    assert measured == pytest.approx((encoder_flop(TINY) - saved) / 1e12)
    assert least_seconds(TINY, rates(bf16=1.0, fp8=None), recipe) is None


def test_formats():
    assert formats_of(RECIPES["fp8"]) == {"bf16", "fp8"}
    assert formats_of(RECIPES["fp16_sdpa"]) == {"fp16"}
    assert formats_of(RECIPES["2:4"]) == {"bf16"}


# A grid of 6 x 6: two windows a side, no padding.
WHOLE = replace(TINY, image_size=96, window_size=3)


def test_it_is_what_torch_counts_where_nothing_is_padded():
    sam = random_sam(WHOLE)
    use_attention(sam, "reference")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        sam.image_encoder(torch.zeros(1, 3, 96, 96))
    by_operation = counted.get_flop_counts()["Global"]
    # The 3 x 3 convolution's border is counted by torch as if it were whole, as here.
    assert sum(by_operation.values()) == encoder_flop(WHOLE)


def test_layers_and_attention_by_their_definition():
    tokens, width = 64 * 64, 768
    flop = layer_flop(CONFIGS["vit_b"])
    assert flop["qkv"] == 3 * flop["proj"] == 12 * 2 * tokens * width * 3 * width
    assert flop["lin1"] == flop["lin2"] == 4 * flop["proj"]
    scores = 4 * 4 * tokens * width * tokens + 8 * 4 * tokens * width * 14 * 14
    positions = 4 * 4 * tokens * width * 64 + 8 * 4 * tokens * width * 14
    assert attention_flop(CONFIGS["vit_b"]) == scores + positions


@pytest.mark.parametrize(("name", "tera"), [("vit_b", 0.94), ("vit_h", 5.64)])
def test_the_public_models(name, tera):
    assert encoder_flop(CONFIGS[name]) / 1e12 == pytest.approx(tera, abs=0.01)


def test_a_linear_layer_is_one_of_the_four():
    sizes = {
        (m.in_features, m.out_features)
        for m in random_sam().image_encoder.blocks[0].modules()
        if isinstance(m, nn.Linear)
    }
    assert {(layer.inputs, layer.outputs) for layer in layers(TINY)} == sizes
