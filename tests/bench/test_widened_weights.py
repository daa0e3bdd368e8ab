"""A wide encoder computes what a narrow one does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samfast.loading import random_weights
from samfast.model.config import CONFIGS, SamConfig
from samfast.model.sam import build
from tests.bench.benchmark_scripts import imported

NARROW = SamConfig("narrow", 24, 3, 2, (1,), image_size=64, window_size=3)


@pytest.fixture(scope="module")
def script():
    with imported("widened_weights") as module:
        yield module


def features(config, state, pixels):
    sam = build(config)
    sam.load_state_dict(state)
    with torch.no_grad():
        return sam.eval().image_encoder(pixels)


@pytest.mark.parametrize(
    "wide",
    [
        replace(NARROW, name="as wide", depth=5, global_attn_indexes=(2, 4)),
        replace(NARROW, name="twice", embed_dim=48, num_heads=4),
        replace(NARROW, name="other heads", embed_dim=72, num_heads=4, depth=4),
        replace(NARROW, name="a head more", embed_dim=48, num_heads=3),
    ],
    ids=lambda config: config.name,
)
def test_features_are_those_of_the_narrow_encoder(script, monkeypatch, wide):
    monkeypatch.setattr(script, "IDLE", 1e-6)
    narrow = random_weights(NARROW, seed=1)
    pixels = torch.randn(2, 3, 64, 64)
    want = features(NARROW, narrow.state_dict(), pixels)
    state = script.widened(narrow.state_dict(), NARROW, wide)
    got = features(wide, state, pixels)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(want[0], want[1], rtol=0.1, atol=0.1)


def test_a_width_that_the_narrow_one_does_not_divide_differs_a_little(script):
    narrow = random_weights(NARROW, seed=1)
    pixels = torch.randn(1, 3, 64, 64)
    want = features(NARROW, narrow.state_dict(), pixels)
    wide = replace(NARROW, name="a third more", embed_dim=64, num_heads=4)
    got = features(wide, script.widened(narrow.state_dict(), NARROW, wide), pixels)
    assert 1e-4 < (got - want).std() / want.std() < 0.5


@pytest.mark.parametrize("model", ["vit_b", "vit_l", "vit_h"])
def test_every_block_of_the_packaged_model_has_a_place(script, model):
    places = script._places_of_blocks(CONFIGS["vit_xs"], CONFIGS[model])
    assert len(set(places)) == CONFIGS["vit_xs"].depth and places == sorted(places)
    kinds = [place in CONFIGS[model].global_attn_indexes for place in places]
    assert kinds == [n in CONFIGS["vit_xs"].global_attn_indexes for n in range(11)]


def test_too_few_blocks_are_refused(script):
    few = replace(NARROW, name="few", depth=2)
    with pytest.raises(ValueError, match="few has no block for block 2 of narrow"):
        script._places_of_blocks(NARROW, few)
