"""Every change to a module's tensors is detected."""

from __future__ import annotations

import copy

import pytest
import torch

from samfast.device.parameter_watcher import ParameterWatcher
from tests.model.tiny import TINY, random_sam


@pytest.fixture
def encoder():
    return random_sam(TINY).image_encoder


def replace_a_parameter(encoder):
    encoder.neck[0].weight = torch.nn.Parameter(encoder.neck[0].weight.detach().clone())


def replace_its_memory(encoder):
    encoder.neck[0].weight.data = encoder.neck[0].weight.detach().clone()


def replace_a_layer(encoder):
    encoder.blocks[1].mlp.lin1 = torch.nn.Linear(32, 128)


def replace_the_list_of_layers(encoder):
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


def add_the_first_buffer(encoder):
    encoder.blocks[0].mlp.act.register_buffer("more", torch.zeros(1))


def add_the_first_child(encoder):
    encoder.blocks[0].mlp.act.more = torch.nn.Linear(1, 1)


def add_to_the_last_module(encoder):
    last = list(encoder.modules())[-1]
    last.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))


REPLACED = [
    replace_a_parameter,
    replace_its_memory,
    replace_a_layer,
    replace_the_list_of_layers,
    swap_two_layers,
    drop_the_last,
    drop_a_bias,
    add_a_parameter,
    add_the_first_buffer,
    add_the_first_child,
    add_to_the_last_module,
    lambda encoder: encoder.double(),
]


@pytest.mark.parametrize("change", REPLACED)
def test_snapshot_and_addresses_change_when_tensors_are_replaced(encoder, change):
    watch = ParameterWatcher(encoder)
    snapshot, addresses = watch.snapshot(), watch.addresses()
    assert (watch.snapshot(), watch.addresses()) == (snapshot, addresses)
    change(encoder)
    assert watch.snapshot() != snapshot and watch.addresses() != addresses
    assert watch.snapshot() == ParameterWatcher(encoder).snapshot()


def write_in_place(encoder):
    with torch.no_grad():
        encoder.blocks[0].attn.qkv.bias.add_(1)


def load_a_state(encoder):
    encoder.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize("change", [write_in_place, load_a_state])
def test_only_the_snapshot_changes_with_values(encoder, change):
    watch = ParameterWatcher(encoder)
    snapshot, addresses = watch.snapshot(), watch.addresses()
    change(encoder)
    assert watch.snapshot() != snapshot and watch.addresses() == addresses


def test_repeated_replacements_are_detected(encoder):
    watch = ParameterWatcher(encoder)
    for _ in range(3):
        before = watch.snapshot()
        replace_a_layer(encoder)
        assert watch.snapshot() != before


def test_every_parameter_and_buffer_is_watched(encoder):
    encoder.register_buffer("more", torch.zeros(1))
    wanted = {id(tensor) for tensor in (*encoder.parameters(), *encoder.buffers())}
    assert {id(tensor) for tensor in ParameterWatcher(encoder).tensors} == wanted
