"""ModuleSnapshot: whatever a caller changes below the roots is noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from torch import nn

from samfast.device.module_snapshot import ModuleSnapshot

Roots = tuple[nn.Sequential, nn.Linear]


def replace_child(roots: Roots) -> Roots:
    roots[0][1][0] = copy.deepcopy(roots[0][1][0])  # type: ignore[index]
    return roots


def add_child(roots: Roots) -> Roots:
    roots[0].append(nn.Identity())
    return roots


def replace_root(roots: Roots) -> Roots:
    return roots[0], copy.deepcopy(roots[1])


def change_class(roots: Roots) -> Roots:
    roots[1].__class__ = type("Other", (nn.Linear,), {})
    return roots


def replace_forward(roots: Roots) -> Roots:
    roots[1].forward = lambda x: x  # type: ignore[method-assign,assignment]
    return roots


def add_hook(roots: Roots) -> Roots:
    roots[0][1].register_forward_pre_hook(lambda *_: None)
    return roots


def add_backward_hook(roots: Roots) -> Roots:
    roots[1].register_full_backward_hook(lambda *_: None)
    return roots


CHANGES = [
    replace_child,
    add_child,
    replace_root,
    change_class,
    replace_forward,
    add_hook,
    add_backward_hook,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change: Callable[[Roots], Roots]) -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    roots = (nn.Sequential(nn.Linear(2, 2), inner), nn.Linear(2, 3))
    snapshot = ModuleSnapshot(*roots)
    roots[1].weight.data.zero_()  # weights may change
    assert snapshot.matches(*roots)
    assert not snapshot.matches(*change(roots))


def test_a_removed_hook_leaves_no_change() -> None:
    root = nn.Linear(2, 2)
    snapshot = ModuleSnapshot(root)
    handle = root.register_forward_hook(lambda *_: None)
    assert not snapshot.matches(root)
    handle.remove()
    assert snapshot.matches(root)
