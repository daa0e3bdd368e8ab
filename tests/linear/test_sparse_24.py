"""The 2:4 pattern, and the sparse layers' refusals without a GPU; their kernels: tests/gpu."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

from samfast.errors import UnsupportedRecipeError
from samfast.linear import Int8Linear, SparseInt8Linear, SparseLinear, check_24
from samfast.linear.pattern import best_two
from samfast.linear.prune import magnitude
from samfast.linear.sparse_24 import pad_rows
from tests.linear.pattern_24 import satisfies_24


def weight(rows=8, columns=16, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kept", list(combinations(range(4), 2)))
def test_every_choice_of_two_of_four_satisfies_it(kept):
    pattern = torch.zeros(4)
    pattern[list(kept)] = 1
    w = weight() * pattern.repeat(4)
    assert satisfies_24(w)
    check_24(w)
    w[3, [0, 1, 2]] = 1.0  # a third one
    assert not satisfies_24(w)
    with pytest.raises(UnsupportedRecipeError, match=r"lin1: 1 of 32 groups.*samfast quantize"):
        check_24(w, "lin1")


def test_groups_are_counted_from_the_first_column_of_each_row():
    w = torch.zeros(1, 8)
    w[0, 2:6] = 1  # two at the end of one group, two at the start of the next
    assert satisfies_24(w)
    w = torch.zeros(1, 8)
    w[0, 1:4] = 1
    assert not satisfies_24(w)


def test_fewer_than_two_are_fine_and_other_widths_are_not():
    assert satisfies_24(torch.zeros(2, 4))
    assert not satisfies_24(torch.zeros(2, 6))
    with pytest.raises(UnsupportedRecipeError, match="multiple of 4 input features, not 6"):
        check_24(torch.zeros(2, 6))


def test_best_two_takes_the_higher_scores_and_of_equal_ones_the_first():
    scores = torch.tensor([[4.0, 1, 3, 2, 5, 5, 5, 5]])
    assert best_two(scores).int().tolist() == [[1, 0, 1, 0, 1, 1, 0, 0]]
    assert bool((best_two(weight(64, 64)).view(64, 16, 4).sum(-1) == 2).all())


def test_magnitude_keeps_the_larger_two_as_they_are():
    w = weight(32, 32)
    pruned = magnitude(w)
    check_24(pruned)
    kept = pruned != 0
    assert torch.equal(pruned[kept], w[kept])
    groups, zeros = w.abs().view(32, 8, 4), ~kept.view(32, 8, 4)
    smallest_kept = groups.masked_fill(zeros, 9.0).amin(-1)
    assert bool((smallest_kept >= groups.masked_fill(~zeros, 0.0).amax(-1)).all())


def test_a_sparse_weight_in_int8_is_still_sparse():
    plain = nn.Linear(16, 8).requires_grad_(False)
    plain.weight.copy_(magnitude(plain.weight))
    check_24(Int8Linear.from_linear(plain).weight)


def test_on_a_cpu_they_say_what_they_need():
    plain = nn.Linear(16, 8).requires_grad_(False)
    plain.weight.copy_(magnitude(plain.weight))
    with pytest.raises(UnsupportedRecipeError, match=r"compute capability 8\.0"):
        SparseLinear.from_linear(plain)
    with pytest.raises(UnsupportedRecipeError, match=r"compute capability 8\.0"):
        SparseInt8Linear.from_linear(plain)


def test_rows_are_filled_up_to_a_multiple():
    rows = weight(10, 4)
    padded = pad_rows(rows, 8)
    assert torch.equal(padded[:10], rows) and not padded[10:].any() and len(padded) == 16
    assert pad_rows(rows, 5) is rows
