"""The stages, entered by what the engine calls, whatever runs in its place."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from samfast import Prompts
from samfast.bench.stages import REGIONS, Stages, watched
from samfast.recipes import get
from tests.model.tiny import fast, random_sam

PHOTO = np.zeros((40, 60, 3), np.uint8)
CLICKS = Prompts(points=[[[5, 6]], [[10, 20]]], labels=[[1], [1]])
PLAIN = get("fp32_sdpa")


def names(sam, prompts=None):
    stages = Stages()
    with watched(sam, stages):
        stages.enter("preprocess")
        sam.predict(sam.embed([PHOTO]), prompts or [CLICKS])
    starts = [span.start for span in stages.spans]
    assert starts == sorted(starts)
    assert all(first.end == second.start for first, second in pairwise(stages.spans))
    return [span.name for span in stages.spans]


@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN,
        replace(PLAIN, prompts="nested"),
        replace(PLAIN, prompts="packed"),
        replace(PLAIN, prompts="packed", fuse=True),
    ],
    ids=["looped", "nested", "packed", "fused"],
)
def test_every_way_of_decoding(recipe):
    sam = fast(random_sam(), recipe)
    assert names(sam) == list(REGIONS)


def test_looped_goes_to_and_fro():
    sam = fast(random_sam(), PLAIN, batch_size=2)
    stages = Stages()
    with watched(sam, stages):
        sam.predict(sam.embed([PHOTO, PHOTO]), [CLICKS, CLICKS])
    assert [span.name for span in stages.spans] == [
        "encoder",
        *("prompts", "decoder") * 2,
        "masks",
    ]


def test_a_graph_calls_no_module():
    """Nor does a compiled encoder; the engine's own calls are seen all the same."""
    sam = fast(random_sam(), replace(PLAIN, prompts="packed"))
    features = sam.encode(torch.zeros(1, 3, 128, 128))
    sam.encode = lambda pixels: features.clone()  # type: ignore[assignment]
    replayed = []

    def graphs(key, static, fill, run, take):
        replayed.append(key)
        take(
            (
                torch.zeros(2, 3, 32, 32),
                torch.zeros(2, 3),
                torch.zeros(2, dtype=torch.int64),
            )
        )

    sam.decode.graphs = graphs
    assert names(sam) == list(REGIONS)
    assert len(replayed) == 1
    assert sam.decode.graphs is graphs
