"""Fingerprints name weights, and marks see every way in which those can change."""

from __future__ import annotations

import copy

import pytest
import torch

import samfast
from samfast.checkpoints.fingerprint import fingerprint
from samfast.device.parameter_watcher import ParameterWatcher
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


def replace_what_holds_layers(encoder):
    encoder.blocks = torch.nn.ModuleList(copy.deepcopy(block) for block in encoder.blocks)


def swap_two_layers(encoder):
    first, second = encoder.blocks[0], encoder.blocks[1]
    encoder.blocks[0], encoder.blocks[1] = second, first


def drop_the_last(encoder):
    del encoder.blocks[-1]


def drop_a_bias(encoder):
    encoder.blocks[0].mlp.lin1.bias = None


def add_a_parameter(encoder):
    encoder.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))


def add_a_buffer_where_none_was(encoder):
    encoder.blocks[0].mlp.act.register_buffer("more", torch.zeros(1))


def add_a_layer_to_one_that_had_none(encoder):
    encoder.blocks[0].mlp.act.more = torch.nn.Linear(1, 1)


def add_one_in_the_last_place(encoder):
    last = list(encoder.modules())[-1]
    last.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))


REPLACED = [
    replace_a_parameter,
    replace_its_memory,
    replace_a_layer,
    replace_what_holds_layers,
    swap_two_layers,
    drop_the_last,
    drop_a_bias,
    add_a_parameter,
    add_a_buffer_where_none_was,
    add_a_layer_to_one_that_had_none,
    add_one_in_the_last_place,
    lambda encoder: encoder.double(),
]


@pytest.mark.parametrize("change", REPLACED)
def test_marks_and_places_change_with_what_is_there(encoder, change):
    watch = ParameterWatcher(encoder)
    marks, places = watch.snapshot(), watch.addresses()
    assert (watch.snapshot(), watch.addresses()) == (marks, places)
    change(encoder)
    assert watch.snapshot() != marks and watch.addresses() != places
    assert watch.snapshot() == ParameterWatcher(encoder).snapshot()


def write_in_place(encoder):
    with torch.no_grad():
        encoder.blocks[0].attn.qkv.bias.add_(1)


def load_a_state(encoder):
    encoder.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize("change", [write_in_place, load_a_state])
def test_marks_alone_change_with_values(encoder, change):
    watch = ParameterWatcher(encoder)
    marks, places = watch.snapshot(), watch.addresses()
    change(encoder)
    assert watch.snapshot() != marks and watch.addresses() == places


def test_a_second_replacement_is_seen_too(encoder):
    watch = ParameterWatcher(encoder)
    for _ in range(3):
        before = watch.snapshot()
        replace_a_layer(encoder)
        assert watch.snapshot() != before


def test_what_is_watched_is_every_parameter_and_buffer(encoder):
    encoder.register_buffer("more", torch.zeros(1))
    wanted = {id(own) for own in (*encoder.parameters(), *encoder.buffers())}
    assert {id(own) for own in ParameterWatcher(encoder).tensors} == wanted


def test_every_recipe_of_a_checkpoint_has_its_fingerprint():
    """Also where the weights are rounded to int8: the name is given before a recipe is applied."""
    first, *others = (
        samfast.load(
            "vit_xs", checkpoint="random", device="cpu", recipe=recipe, image_size=64
        ).fingerprint
        for recipe in (Recipe(), Recipe(dtype=torch.bfloat16), Recipe(quantize="int8"))
    )
    assert others == [first, first]
