"""Fingerprints name weights, and marks see every way in which those can change."""

from __future__ import annotations

import pytest
import torch

import samfast
from samfast.model.fingerprint import fingerprint, marks
from samfast.recipes import Recipe
from tests.model.tiny import TINY, random_sam


@pytest.fixture
def encoder():
    return random_sam(TINY).image_encoder


def test_a_fingerprint_names_values_names_and_what_stands_beside(encoder):
    own = fingerprint(encoder, "a")
    assert own == fingerprint(encoder, "a") != fingerprint(encoder, "b")
    rounded = random_sam(TINY).image_encoder
    rounded.load_state_dict(encoder.state_dict())
    assert fingerprint(rounded.to(torch.bfloat16), "a") == own
    with torch.no_grad():
        encoder.neck[0].weight.view(-1)[0] += 1
    assert fingerprint(encoder, "a") != own


def replace_a_parameter(encoder):
    encoder.neck[0].weight = torch.nn.Parameter(encoder.neck[0].weight.detach().clone())


def replace_its_memory(encoder):
    encoder.neck[0].weight.data = encoder.neck[0].weight.detach().clone()


def replace_a_layer(encoder):
    encoder.blocks[1].mlp.lin1 = torch.nn.Linear(32, 128)


def write_in_place(encoder):
    with torch.no_grad():
        encoder.blocks[0].attn.qkv.bias.add_(1)


def load_a_state(encoder):
    encoder.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize(
    "change", [replace_a_parameter, replace_its_memory, replace_a_layer, write_in_place, load_a_state]
)
def test_marks_change_with_the_weights(encoder, change):
    before = marks(encoder)
    assert marks(encoder) == before
    change(encoder)
    assert marks(encoder) != before


def test_every_recipe_of_a_checkpoint_has_its_fingerprint():
    """Also where the weights are rounded to int8: the name is given before a recipe is applied."""
    first, *others = (
        samfast.load("vit_xs", checkpoint="random", device="cpu", recipe=recipe, image_size=64).fingerprint
        for recipe in (Recipe(), Recipe(dtype=torch.bfloat16), Recipe(quantize="int8"))
    )
    assert others == [first, first]
