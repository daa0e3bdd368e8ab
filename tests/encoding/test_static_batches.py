"""Static batch sizes: which there are, and that nobody's answer depends on the filling."""

from __future__ import annotations

import pytest
import torch

from samfast.encoding.static_batches import StaticBatches, static_sizes
from samfast.recipes import Recipe


@pytest.mark.parametrize(
    ("recipe", "batch_size", "sizes"),
    [
        (Recipe(), 8, ()),
        (Recipe(fuse=True), 8, ()),
        (Recipe(compile="default"), 8, (8,)),
        (Recipe(compile="max-autotune"), 6, (6,)),
        (Recipe(compile="default", graph=True), 4, (4,)),
        (Recipe(graph=True), 8, (1, 2, 4, 8)),
        (Recipe(graph=True), 6, (1, 2, 4, 6)),
        (Recipe(graph=True), 1, (1,)),
    ],
)
def test_sizes(recipe, batch_size, sizes):
    assert (
        static_sizes(batch_size, compiled=recipe.compile is not None, graphed=recipe.graphed)
        == sizes
    )


class Recorder:
    """Doubles its input, and remembers how many images it was given."""

    def __init__(self):
        self.sizes = []

    def __call__(self, pixels):
        self.sizes.append(len(pixels))
        return 2 * pixels


@pytest.mark.parametrize(
    ("count", "run"),
    [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (6, [6]), (7, [6, 1]), (15, [6, 6, 4])],
)
def test_a_batch_is_run_in_static_sizes_and_answered_as_it_came(count, run):
    inner = Recorder()
    pixels = torch.arange(count * 12.0).view(count, 3, 2, 2)
    answer = StaticBatches(inner, (1, 2, 4, 6))(pixels)
    assert inner.sizes == run
    assert torch.equal(answer, 2 * pixels)


def test_the_result_holds_no_memory_of_the_padding():
    answer = StaticBatches(Recorder(), (4,))(torch.ones(1, 3, 2, 2))
    assert answer.untyped_storage().nbytes() == answer.nbytes
