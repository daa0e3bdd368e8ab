from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from samfast.bench.work import attention_flop, encoder_flop, layer_flop
from samfast.model.config import CONFIGS
from samfast.recipes import use_attention
from tests.model.tiny import TINY, random_sam

WHOLE = replace(
    TINY, image_size=96, window_size=3
)  # a grid of 6 x 6: two windows a side, no padding


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
    from samfast.bench.work import layers

    assert {(layer.inputs, layer.outputs) for layer in layers(TINY)} == sizes
