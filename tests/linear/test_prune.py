"""Pruning, on layers small enough to find the best result by trying all patterns."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch

from samfast.linear import check_24
from samfast.linear.pattern import best_two
from samfast.linear.prune import Moments, magnitude, prune, refit, sparsegpt


def tokens(count=400, inputs=24, seed=0):
    """Typical inputs of a layer: correlated, of unlike size, not around zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    sizes = torch.rand(inputs, generator=generator) * 3 + 0.1
    mean = torch.randn(inputs, generator=generator)
    return torch.randn(count, inputs, generator=generator) @ mix * sizes + mean


def layer(inputs=24, outputs=10, seed=0):
    generator = torch.Generator().manual_seed(100 + seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight, torch.randn(outputs, generator=generator)


def moments_of(x, y):
    moments = Moments(x.shape[1], y.shape[1])
    for part in range(0, len(x), 150):  # photo by photo
        moments.add(x[part : part + 150], y[part : part + 150])
    return moments


def error(x, y, weight, bias):
    return float((x @ weight.T + bias - y).norm() / y.norm())


def test_the_moments_give_the_relative_error():
    x, (w, b) = tokens(), layer()
    y = x @ w.T + b
    moments = moments_of(x, y)
    assert moments.count == 400
    other = w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(5))
    assert moments.relative_error(other, b + 0.2) == pytest.approx(
        error(x, y, other, b + 0.2), rel=1e-4
    )
    assert moments.relative_error(other, None) == pytest.approx(error(x, y, other, 0.0), rel=1e-4)
    assert moments.relative_error(w, b) < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_prune_beats_sparsegpt_and_magnitude_on_other_tokens(seed):
    w, b = layer(seed=seed)
    x, other = tokens(800, seed=seed).split(400)
    y, other_y = x @ w.T + b, other @ w.T + b
    moments = moments_of(x, y)
    pruned, pruned_bias = prune(w, b, moments)
    check_24(pruned)
    h = moments.xx + 0.01 * moments.xx.diagonal().mean() * torch.eye(24)
    rivals = [magnitude(w), sparsegpt(w.double(), h).float()]
    errors = [error(other, other_y, rival, b) for rival in rivals]
    assert error(other, other_y, pruned, pruned_bias) < 0.8 * min(errors)
    assert errors[1] < errors[0]


def test_sparsegpt_makes_up_for_what_it_removes():
    """Two columns are equal: if one is dropped, the other must take its weight."""
    x = tokens(inputs=8)
    x[:, 1] = x[:, 0]
    x[:, 5] = x[:, 4]
    w = torch.tensor([[1.0, 1.0, 5.0, 0.0, 0.0, 5.0, 1.0, 1.0]])
    w[0, 3] = w[0, 4] = 0.0
    w[0, 7] = 0.0
    h = (x.T @ x).double() + 1e-6 * torch.eye(8)
    pruned = sparsegpt(w.double(), h)
    check_24(pruned)
    assert pruned[0, :2].sum().item() == pytest.approx(2.0, abs=1e-3)
    assert pruned[0, 2].item() == pytest.approx(5.0, abs=1e-3)


def test_refit_finds_the_least_squares_of_each_row():
    x, (w, b) = tokens().double(), layer()
    y = (x @ w.double().T + b.double()) + x[:, :10].sin()
    mask = best_two(torch.rand(w.shape, generator=torch.Generator().manual_seed(3)))
    start = w.double() * mask
    start[0, mask[0].nonzero()[0]] = 0.0  # a kept weight that is zero by chance
    got = refit(start, x.T @ x, y.T @ x)
    check_24(got)
    for row in range(1, len(w)):
        kept = mask[row]
        best = torch.linalg.lstsq(x[:, kept], y[:, row]).solution
        torch.testing.assert_close(got[row, kept], best, rtol=1e-7, atol=1e-7)
        assert not got[row, ~kept].any()


def test_it_comes_near_the_best_of_all_patterns():
    x, (w, b) = tokens(inputs=8), layer(inputs=8, outputs=6)
    y = x @ w.T + b
    pruned, bias = prune(w, b, moments_of(x, y))
    assert bias is not None
    centred, target = x - x.mean(0), y - y.mean(0)
    pairs = list(combinations(range(4), 2))
    for row in range(6):
        errors = []
        for first, second in product(pairs, pairs):
            kept = [*first, *(4 + i for i in second)]
            best = torch.linalg.lstsq(centred[:, kept], target[:, row : row + 1]).solution
            errors.append(float((centred[:, kept] @ best - target[:, row : row + 1]).norm()))
        mine = float((x @ pruned[row] + bias[row] - y[:, row]).norm())
        assert mine <= 1.6 * min(errors) and mine <= sorted(errors)[len(errors) // 4] * 1.01


def test_targets_may_be_other_than_the_layers_own_answers():
    """Errors of earlier layers are made up for, as far as the inputs show them."""
    x, (w, b) = tokens(), layer()
    missed = x[:, :10] * 2 + 5
    moments = moments_of(x, x @ w.T + b + missed)
    pruned, bias = prune(w, b, moments)
    plain, plain_bias = prune(w, b, moments_of(x, x @ w.T + b))
    y = x @ w.T + b + missed
    assert error(x, y, pruned, bias) < 0.6 * error(x, y, plain, plain_bias)


def test_the_bias_takes_the_mean_unless_it_is_to_stay():
    x, (w, b) = tokens(), layer()
    y = x @ w.T + b
    moments = moments_of(x, y)
    pruned, bias = prune(w, b, moments)
    assert not torch.equal(bias, b)
    assert (x @ pruned.T + bias - y).mean(0).abs().max() < 1e-4
    kept, same = prune(w, b, moments, keep_bias=True)
    assert same is b
    assert error(x, y, kept, b) >= error(x, y, pruned, bias)
    none, no_bias = prune(w, None, moments_of(x, x @ w.T))
    assert no_bias is None
    check_24(none)


def test_dead_inputs_and_too_few_tokens_do_no_harm():
    x, (w, b) = tokens(5), layer()
    x[:, 3] = 0.0
    x[:, 8:12] = 0.0
    moments = moments_of(x, x @ w.T + b)
    pruned, bias = prune(w, b, moments)
    check_24(pruned)
    assert bool(torch.isfinite(pruned).all()) and bool(torch.isfinite(bias).all())
    assert pruned.abs().max() < 20 * w.abs().max()
    silent = moments_of(torch.zeros(5, 24), torch.zeros(5, 10) + b)
    pruned, bias = prune(w, b, silent)
    check_24(pruned)
    assert bool(torch.isfinite(pruned).all())


def test_dtypes_stay():
    x, (w, b) = tokens(), layer()
    pruned, bias = prune(w.bfloat16(), b.bfloat16(), moments_of(x, x @ w.T + b))
    assert pruned.dtype == bias.dtype == torch.bfloat16
