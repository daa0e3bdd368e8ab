"""Operations of PyTorch: one declaration for reference, kernel and schema."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
import torch
from torch import Tensor

from samfast.decoding import decoder_operations
from samfast.device.custom_ops import Operation, operation
from samfast.encoding import fused_operations

WITH_KERNEL = {
    name: declared
    for module in (decoder_operations, fused_operations)
    for name, declared in vars(module).items()
    if isinstance(declared, Operation) and declared.kernel is not None
}


@operation(fake=lambda x, times: torch.empty_like(x))
def multiplied(x: Tensor, times: float) -> Tensor:
    return x * times


multiplied_ = multiplied.to_in_place("x")


def schema(declared: Operation) -> str:
    declared.register()
    name = declared.function.__name__ + ("_" if declared.in_place else "")
    return str(getattr(torch.ops.samfast, name).default._schema)


def test_the_schema_is_the_signature_of_the_function():
    assert schema(multiplied) == "samfast::multiplied(Tensor x, float times) -> Tensor"
    assert schema(multiplied_) == "samfast::multiplied_(Tensor(a0!) x, float times) -> ()"


def test_in_place_overwrites_the_first_argument():
    x = torch.arange(3.0)
    assert multiplied_(x, 2.0) is None
    assert torch.equal(x, multiplied(torch.arange(3.0), 2.0))


def test_compiled_code_has_a_node_for_it():
    for declared in (multiplied, multiplied_):
        declared.register()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def twice(x):
        multiplied_(x, 3.0)
        return multiplied(x, 2.0)

    torch._dynamo.reset()
    compiled = torch.compile(twice, backend=keep, fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [6.0, 6.0]
    targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert targets == ["samfast.multiplied_.default", "samfast.multiplied.default"]
    torch._dynamo.reset()


@pytest.mark.parametrize("name", WITH_KERNEL)
def test_a_kernel_takes_the_arguments_of_its_reference(name):
    pytest.importorskip("triton")
    declared = WITH_KERNEL[name]
    reference = inspect.signature(declared.function)
    launch = inspect.signature(import_module(declared.kernel).launch)
    common = [p for p in launch.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert common == list(reference.parameters.values())
    assert launch.return_annotation == reference.return_annotation
    assert not declared.in_place or "out" in launch.parameters
