from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samfast.bench import ceilings
from samfast.bench.ceilings import formats_of, least_seconds, measure_ceilings
from samfast.bench.work import encoder_flop, layer_flop, layers
from samfast.recipes import RECIPES
from tests.model.tiny import TINY

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ceilings, "COPIED_BYTES", {"cpu": 2**20})


def test_each_layer_is_multiplied_and_weighted_by_its_work(small, monkeypatch):
    seconds = iter((4.0, 1.0, 2.0, 2.0))
    asked = []

    def timed(run, device):
        asked.append(tuple(run().shape))
        return next(seconds)

    monkeypatch.setattr(ceilings, "_seconds", timed)
    found = measure_ceilings(TINY, 2, CPU, ["fp32"])
    assert asked == [(128, layer.outputs) for layer in layers(TINY)]
    work = [layer.flop(128) for layer in layers(TINY)]
    assert found["layers"]["fp32"]["qkv"] == pytest.approx(work[0] / 4 / 1e12)
    assert found["tflops"]["fp32"] == pytest.approx(sum(work) / 9 / 1e12)
    assert found["copied_terabytes_per_second"] > 0
    assert found["refused"] == {}


def test_real_products_have_a_rate(small):
    found = measure_ceilings(TINY, 1, CPU, ["fp32", "bf16", "int8"])
    assert all(found["tflops"][kind] > 0 for kind in ("fp32", "bf16", "int8"))


def test_what_the_device_cannot_is_said(small, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no such units\nand more")

    monkeypatch.setattr(ceilings, "_fp8", refuse)
    found = measure_ceilings(TINY, 1, CPU, ["fp8"])
    assert found["tflops"] == {"fp8": None}
    assert found["refused"] == {"fp8": "no such units"}
    assert "fp8" not in found["layers"]


def rates(**by_format):
    work = layer_flop(TINY)
    return {
        "tflops": by_format,
        "layers": {kind: dict.fromkeys(work, rate) for kind, rate in by_format.items() if rate},
        "refused": {},
    }


def test_the_least_time_of_one_format():
    found = least_seconds(TINY, rates(bf16=2.0), torch.bfloat16)
    assert found == pytest.approx(encoder_flop(TINY) / 2e12)
    assert least_seconds(TINY, rates(bf16=2.0), torch.float32) is None
    assert least_seconds(TINY, rates(bf16=2.0), torch.bfloat16, RECIPES["fused"]) == found


def test_quantized_layers_have_the_rate_of_their_format():
    recipe = replace(RECIPES["fp8"], quantized_layers=("lin1",))
    found = least_seconds(TINY, rates(bf16=1.0, fp8=2.0), torch.bfloat16, recipe)
    saved = layer_flop(TINY)["lin1"] / 2
    assert found == pytest.approx((encoder_flop(TINY) - saved) / 1e12)
    assert least_seconds(TINY, rates(bf16=1.0, fp8=None), torch.bfloat16, recipe) is None


def test_formats():
    assert formats_of(RECIPES["fp8"]) == {"bf16", "fp8"}
    assert formats_of(RECIPES["fp16_sdpa"]) == {"fp16"}
    assert formats_of(RECIPES["2:4"]) == {"bf16"}
