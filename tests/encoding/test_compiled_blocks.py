"""The compiled encoder: no graph break, no recompile, a plain model beside it, and a warm start
from the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from samfast import Prompts
from samfast.device import artifacts
from samfast.encoding.compiled_blocks import MODES, _code_of, _copy_of
from samfast.loading import random_weights
from samfast.recipes import Recipe, apply
from samfast.recipes.recipe import COMPILE
from tests.model.tiny import TINY, fast, random_sam

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++"),
]

CPU = torch.device("cpu")
RECIPE = Recipe(attention="folded", compile="default")
DEEP = replace(TINY, depth=5, global_attn_indexes=(1, 4))
BATCH = 2


def loaded(batch_size=BATCH):
    return fast(random_weights(DEEP), RECIPE, batch_size=batch_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compile")


@pytest.fixture(scope="module")
def sam(folder):
    """Compiled from nothing; from its first call on, a recompile is an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMFAST_CACHE", str(folder / "samfast"))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))
        import torch._dynamo.config

        with torch._dynamo.config.patch(error_on_recompile=True):
            sam = loaded()
            sam.embed(photos(1))
            yield sam


def photos(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(60, 80), (128, 128), (200, 90), (17, 300), (64, 64)]
    return [rng.integers(0, 255, (*sizes[i % 5], 3), dtype=np.uint8) for i in range(count)]


def counts():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], dict(counters["graph_break"])


def test_blocks_of_equal_code_share_a_graph_whatever_the_depth(sam):
    assert len(sam.model.image_encoder.blocks) == 5
    assert len(sam.encode.compiled._regions) == 2  # windowed, global
    assert sam.encode.compiled.first.graphs == 2
    assert counts()[1] == {}


def test_nothing_is_compiled_again_for_other_sizes_counts_and_modes(sam):
    """Under error_on_recompile, and with the number of graphs unchanged."""
    before = counts()
    for number in (1, 2, 3, 5):
        embeddings = sam.embed(photos(number, seed=number))
        assert embeddings.features.shape[0] == number
        for objects in (1, 4, 7):
            points = np.full((objects, 1, 2), 9.0)
            sam.predict(embeddings, [Prompts(points=points, labels=np.ones((objects, 1)))] * number)
    sam.segment(photos(1), points_per_side=2)
    with torch.inference_mode():
        sam.embed(photos(2))
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        sam.embed(photos(1))
    assert counts() == before


def test_a_new_shape_would_be_noticed(sam):
    """The test above can fail: past the static sizes, the same call is a recompile."""
    import torch._dynamo.exc

    with torch.no_grad(), pytest.raises(torch._dynamo.exc.RecompileError):
        sam.encode.compiled(torch.zeros(BATCH + 1, 3, 128, 128))


def test_answers_equal_the_plain_model_s_in_batches_of_any_size(sam):
    images = photos(5)
    plain = fast(random_weights(DEEP), replace(RECIPE, compile=None))
    expected, features = plain.embed(images).features, sam.embed(images).features
    assert (features - expected).norm() <= 1e-6 * expected.norm()
    for i, image in enumerate(images):
        assert (sam.embed([image]).features - expected[i]).norm() <= 1e-6 * expected[i].norm()


def test_embeddings_survive_later_calls(sam):
    first = sam.embed(photos(2)).features
    kept = first.clone()
    sam.embed(photos(2, seed=9))
    assert torch.equal(first, kept)


def test_the_model_beside_it_stays_plain(sam):
    encoder = sam.model.image_encoder
    assert type(encoder) is type(random_weights(DEEP).image_encoder)
    assert sam.model.state_dict().keys() == random_weights(DEEP).state_dict().keys()
    pixels = torch.randn(3, 3, 128, 128)  # a batch size that the compiled encoder would refuse here
    with torch.no_grad():
        assert encoder(pixels).shape[0] == 3


def test_changed_weights_are_seen_without_compiling(sam):
    before, old = counts(), sam.embed(photos(1)).features
    bias = sam.model.image_encoder.blocks[0].mlp.lin2.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.add_(1)
        assert not torch.allclose(sam.embed(photos(1)).features, old, atol=1e-3)
        bias.copy_(kept)
    assert torch.equal(sam.embed(photos(1)).features, old)
    assert counts() == before


def test_a_second_model_of_the_process_is_no_recompile_of_the_first(sam):
    """Each load has code objects of its own, which torch counts recompiles by."""
    again = loaded()
    assert torch.equal(again.embed(photos(2)).features, sam.embed(photos(2)).features)
    assert again.encode.compiled.first.graphs == 0  # torch had them in its cache


def test_a_new_process_starts_from_the_kept_code_and_makes_none(sam, folder, tmp_path):
    (entry,) = artifacts.entries()
    assert (entry.kind, entry.batch_size, entry.stale) == ("compiled", BATCH, False)
    assert entry.model is not None and entry.model.startswith("tiny (32 wide, 5 blocks")
    program = """
import json, torch
from tests.encoding.test_compiled_blocks import loaded, photos
torch.set_num_threads(THREADS)
sam = loaded()
features = sam.embed(photos(2)).features
first = sam.encode.compiled.first
print(json.dumps([first.graphs, first.kept is not None, first.saved is None,
features.double().sum().item()]))
"""
    environment = dict(
        os.environ,
        SAMFAST_CACHE=str(folder / "samfast"),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "torch"),
        PYTHONPATH=str(Path(__file__).parents[2]),
    )
    done = subprocess.run(
        [sys.executable, "-c", program.replace("THREADS", str(torch.get_num_threads()))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    expected = sam.embed(photos(2)).features.double().sum().item()
    assert json.loads(done.stdout) == [0, True, True, pytest.approx(expected)]
    kept = {name for name in load_file(entry.path) if name.endswith(".so")}
    assert len(kept) > 5
    assert {
        path.relative_to(tmp_path / "torch").as_posix() for path in tmp_path.glob("torch/*/*.so")
    } == kept


def test_every_mode_is_one_of_torch_s_and_none_makes_graphs_of_torch_s():
    assert set(MODES) == set(COMPILE) - {None}
    assert set(MODES.values()) == {None, "max-autotune-no-cudagraphs"}


def test_code_depends_on_window_layers_and_shapes():
    first, second = (random_sam(TINY).image_encoder.blocks for _ in range(2))
    assert _code_of(first[0]) == _code_of(second[0])
    assert _code_of(first[0]) != _code_of(first[1])
    second[0].mlp.lin1 = torch.nn.Linear(32, 128, bias=False)
    assert _code_of(first[0]) != _code_of(second[0])
    copy = _copy_of(counts)
    assert copy.__code__ is not counts.__code__ and copy.__code__ == counts.__code__


def test_nothing_is_compiled_before_the_first_call():
    encoder = apply(random_sam(), RECIPE, CPU, batch_size=3).encode
    assert encoder.compiled is not None and encoder.compiled.first is None
    assert encoder.sizes == (3,)
    assert "compiled, in batches of 3" in encoder.describe()
