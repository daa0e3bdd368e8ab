"""The sparsify step: what it refuses, and pruning on photos."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.quantized_vit_xs import by_wanda
from samfast.errors import UnsupportedRecipeError
from samfast.linear import SparseLinear, check_24, sparsify_layers
from samfast.linear.encoder_layers import LAYERS, encoder_layers
from samfast.linear.prune_layerwise import prune_layerwise
from samfast.linear.sparsify_layers import prune_by_magnitude
from samfast.recipes import Recipe, apply
from tests.linear.pattern_24 import satisfies_24
from tests.model import tiny

CPU = torch.device("cpu")
SPARSE = Recipe(dtype=torch.bfloat16, attention="sdpa", sparsify="2:4")


def photos(count, seed=0):
    """Smooth pictures: neighbouring tokens are alike, as in photos."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 12, 12, generator=generator)
    return list(nn.functional.interpolate(coarse, 128, mode="bicubic").split(1))


def random_sam(config=tiny.TINY):
    """The same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny.random_sam(config)


def relative(sam, plain, seed=9):
    with torch.no_grad():
        pairs = [(sam.image_encoder(x), plain.image_encoder(x)) for x in photos(4, seed)]
    return sum(float((a - b).norm() / b.norm()) for a, b in pairs) / len(pairs)


def test_the_sparsify_step_drops_no_weight():
    sam = random_sam()
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    with pytest.raises(UnsupportedRecipeError, match=r"blocks\.0\.attn\.qkv.*samfast quantize"):
        sparsify_layers.sparsify_layers(sam, SPARSE.layer_formats)
    assert all(torch.equal(value, before[name]) for name, value in sam.state_dict().items())


def test_pruned_weights_are_compressed_as_they_are(monkeypatch):
    made = []
    monkeypatch.setattr(sparsify_layers, "multiples", lambda: (16, 16))
    monkeypatch.setattr(
        SparseLinear,
        "from_linear",
        classmethod(lambda cls, layer: made.append(layer.weight) or nn.Identity()),
    )
    recipe = replace(SPARSE, sparse_layers=("lin1", "lin2"))
    sam = random_sam()
    prune_by_magnitude(sam, recipe.sparse_layers)
    weights = [place.module.weight for place in encoder_layers(sam, ("lin1", "lin2"))]
    sparsify_layers.sparsify_layers(sam, recipe.layer_formats)
    assert [id(weight) for weight in made] == [id(weight) for weight in weights]
    assert all(
        isinstance(place.module, nn.Linear) for place in encoder_layers(sam, ("qkv", "proj"))
    )


def test_layers_that_are_quantized_too_are_left_for_that_step(monkeypatch):
    monkeypatch.setattr(sparsify_layers, "multiples", lambda: (16, 16))
    monkeypatch.setattr(SparseLinear, "from_linear", classmethod(lambda cls, layer: nn.Identity()))
    sam = random_sam()
    prune_by_magnitude(sam, SPARSE.sparse_layers)
    sparsify_layers.sparsify_layers(
        sam, replace(SPARSE, quantize="int8", quantized_layers=("lin1",)).layer_formats
    )
    for place in encoder_layers(sam):
        assert isinstance(place.module, nn.Linear if place.layer == "lin1" else nn.Identity)


def test_sizes_that_the_kernels_cannot_take_are_refused():
    sam = random_sam(replace(tiny.TINY, embed_dim=24))
    prune_by_magnitude(sam, SPARSE.sparse_layers)
    with pytest.raises(
        UnsupportedRecipeError, match="has 24 inputs and 72 outputs; 2:4 needs multiples"
    ):
        sparsify_layers.sparsify_layers(sam, SPARSE.layer_formats)


def test_a_cpu_refuses_the_recipe():
    with pytest.raises(UnsupportedRecipeError, match="2:4"):
        apply(random_sam(), SPARSE, CPU)


def test_pruning_by_magnitude_changes_only_the_given_layers():
    sam, plain = random_sam(), random_sam()
    prune_by_magnitude(sam, ("proj",))
    for each, other in zip(encoder_layers(sam), encoder_layers(plain), strict=True):
        assert satisfies_24(each.module.weight) == (each.layer == "proj")
        assert torch.equal(each.module.weight, other.module.weight) == (each.layer != "proj")


@pytest.mark.parametrize("layers", [LAYERS, ("lin1", "lin2")])
def test_pruning_on_photos_leaves_much_less_error_than_scores_alone(layers):
    plain, sam, scored, large = (random_sam() for _ in range(4))
    recipe = replace(SPARSE, sparse_layers=layers)
    done: list[int] = []
    errors = prune_layerwise(sam, photos(5), layers, progress=done.append)
    assert done == [1, 1]
    assert set(errors) == {place.name for place in encoder_layers(sam, layers)}
    assert all(0 < error < 0.6 for error in errors.values())
    for place, other in zip(encoder_layers(sam), encoder_layers(plain), strict=True):
        assert satisfies_24(place.module.weight) == (place.layer in layers)
        if place.layer not in layers:
            assert torch.equal(place.module.weight, other.module.weight)

    prune_layerwise(scored, photos(5), layers, method=by_wanda)
    prune_by_magnitude(large, recipe.sparse_layers)
    error = relative(sam, plain)
    assert error < 0.7 * relative(scored, plain) and error < 0.7 * relative(large, plain)


def test_each_layer_is_pruned_for_its_inputs_in_the_pruned_model():
    """The moments' inputs are the pruned model's, their answers the dense model's and what the
    stream lacks."""
    plain, sam = random_sam(), random_sam()
    (image,) = photos(1)
    seen = {}

    def crude(layer, moments, keep_bias):
        seen[id(layer)] = (moments, keep_bias)
        layer.weight.mul_(0.5)

    prune_layerwise(sam, [image], LAYERS, method=crude)
    inputs: dict = {}
    block_inputs: dict = {}

    def note(store, key):
        return lambda module, args, out: store.__setitem__(key, (args[0].detach(), out.detach()))

    for model, name in ((plain, "plain"), (sam, "sam")):
        for index, block in enumerate(model.image_encoder.blocks):
            block.register_forward_hook(note(block_inputs, (name, index)))
            block.mlp.lin2.register_forward_hook(note(inputs, (name, index)))
            block.norm2.register_forward_hook(note(inputs, (name, index, "norm2")))
        with torch.no_grad():
            model.image_encoder(image)
    for index, block in enumerate(sam.image_encoder.blocks):
        moments, keep_bias = seen[id(block.mlp.lin2)]
        assert not keep_bias and moments.count == 64
        reached = inputs["sam", index][0].flatten(0, -2).double()
        torch.testing.assert_close(moments.xx, reached.T @ reached, rtol=1e-4, atol=1e-3)
        target = block_inputs["plain", index][1] - inputs["sam", index, "norm2"][0]
        torch.testing.assert_close(
            moments.y, target.flatten(0, -2).double().sum(0), rtol=1e-3, atol=2e-2
        )
        assert seen[id(block.attn.qkv)][1], "the padding of windows is answered with this bias"


def test_the_padding_of_windows_stays():
    sam, plain = random_sam(), random_sam()
    prune_layerwise(sam, photos(2), LAYERS)
    for each, other in zip(encoder_layers(sam), encoder_layers(plain), strict=True):
        check_24(each.module.weight)
        assert torch.equal(each.module.bias, other.module.bias) == (each.layer == "qkv")
