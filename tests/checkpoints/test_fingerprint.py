"""Fingerprints identify weights."""

from __future__ import annotations

import pytest
import torch

import samfast
from samfast.checkpoints.fingerprint import fingerprint
from samfast.recipes import Recipe
from tests.model.tiny import TINY, random_sam


@pytest.fixture
def encoder():
    return random_sam(TINY).image_encoder


def test_a_fingerprint_depends_on_values_names_and_the_text_beside(encoder):
    digest = fingerprint(encoder, "a")
    assert digest == fingerprint(encoder, "a") != fingerprint(encoder, "b")
    rounded = random_sam(TINY).image_encoder
    rounded.load_state_dict(encoder.state_dict())
    assert fingerprint(rounded.to(torch.bfloat16), "a") == digest
    with torch.no_grad():
        encoder.neck[0].weight.view(-1)[0] += 1
    assert fingerprint(encoder, "a") != digest


def test_every_recipe_of_a_checkpoint_has_its_fingerprint():
    """Even if the recipe rounds weights to int8: they are hashed before it is applied."""
    first, *others = (
        samfast.load(
            "vit_xs", checkpoint="random", device="cpu", recipe=recipe, image_size=64
        ).fingerprint
        for recipe in (Recipe(), Recipe(dtype=torch.bfloat16), Recipe(quantize="int8"))
    )
    assert others == [first, first]
