"""The decoder's kernels against their references: odd grids, numbers of tokens, sources, dtypes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from samfast.decoding import decoder_operations, fused_decoder
from samfast.decoding.kernels import image_to_token, token_attention, token_to_image, upscaling
from samfast.device.kernels import occupancy
from tests.kernels.decoder_operands import (
    CUDA,
    DEVICE,
    DTYPES,
    Draw,
    check,
    double,
    image_to_token_inputs,
    relative,
    token_attention_inputs,
    token_to_image_inputs,
)
from tests.model.tiny import TINY, random_sam

EXACT = torch.float16 if CUDA else torch.float32
EXAMPLES = settings(max_examples=25 if CUDA else 12)
SIZES = {
    "height": st.integers(1, 40 if CUDA else 9),
    "width": st.integers(1, 40 if CUDA else 9),
    "channels": st.sampled_from([16, 32, 256]),
    "dtype": st.sampled_from(DTYPES),
    "sources": st.lists(st.integers(0, 1), min_size=1, max_size=3),
}


@pytest.fixture(autouse=True)
def poison():
    """Memory that a kernel leaves unwritten is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@EXAMPLES
@given(
    heads=st.sampled_from([1, 3, 8]),
    tokens=st.sampled_from([1, 5, 7, 9, 16, 17, 40, 64]),
    width=st.sampled_from([4, 16, 24, 32]),
    masked=st.booleans(),
    count=st.integers(1, 3),
    dtype=SIZES["dtype"],
)
def test_token_attention(heads, tokens, width, masked, count, dtype):
    arguments = token_attention_inputs(Draw(dtype, tokens), heads, tokens, count, width, masked)
    check(token_attention, decoder_operations.token_attention, arguments)


def test_token_attention_of_scores_so_large_that_one_token_has_all_the_weight():
    queries, keys, *rest = token_attention_inputs(Draw(EXACT), 2, 7, 2, 16, masked=True)
    check(token_attention, decoder_operations.token_attention, (queries * 100, keys * 10, *rest))


def test_no_token_attends_to_padding():
    queries, keys, values, mask, heads = token_attention_inputs(
        Draw(EXACT), 2, 7, 2, 16, masked=True
    )
    before = token_attention.launch(queries, keys, values, mask, heads)
    keys[~mask], values[~mask] = 50.0, 1e4
    assert torch.equal(token_attention.launch(queries, keys, values, mask, heads), before)
    assert not torch.equal(token_attention.launch(queries, keys, values, None, heads), before)


@EXAMPLES
@given(heads=st.integers(1, 4), tokens=st.sampled_from([5, 7, 8, 9, 24, 40]), **SIZES)
def test_token_to_image_attention(heads, tokens, height, width, channels, dtype, sources):
    draw = Draw(dtype, height * 10 + width)
    arguments = token_to_image_inputs(draw, heads, tokens, sources, height * width, channels)
    check(token_to_image, decoder_operations.token_to_image_attention, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize("places", [7 * 16 + 3, 7 * 16])
def test_token_to_image_attention_in_any_number_of_splits(dtype, splits, places):
    arguments = token_to_image_inputs(Draw(dtype), 8, 9, [1, 0], places, 32)
    operation = decoder_operations.token_to_image_attention
    check(token_to_image, operation, arguments, splits=splits, block_m=32, block_n=16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_so_large_that_one_place_has_all_the_weight(dtype):
    *arguments, _ = token_to_image_inputs(Draw(dtype), 2, 5, [0], 50, 32)
    check(token_to_image, decoder_operations.token_to_image_attention, (*arguments, 200.0))


@EXAMPLES
@given(
    heads=st.sampled_from([1, 3, 4, 8]),
    tokens=st.sampled_from([1, 5, 7, 8, 9, 24, 40]),
    masked=st.booleans(),
    **SIZES,
)
def test_image_to_token_attention(heads, tokens, masked, height, width, channels, dtype, sources):
    draw, places = Draw(dtype, height * 10 + width), height * width
    arguments = image_to_token_inputs(draw, heads, tokens, sources, places, channels, masked)
    check(image_to_token, decoder_operations.image_to_token_attention, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [16, 32, 64])
@pytest.mark.parametrize("places", [7 * 16 + 3, 7 * 16])
def test_image_to_token_attention_some_heads_at_a_time_and_in_splits(dtype, columns, places):
    arguments = image_to_token_inputs(Draw(dtype), 8, 7, [1, 0], places, 32, masked=True)
    operation = decoder_operations.image_to_token_attention
    check(image_to_token, operation, arguments, columns=columns, splits=3, block=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("places", [7 * 16 + 3, 7 * 16])
def test_image_to_token_attention_in_place(dtype, places):
    arguments = image_to_token_inputs(Draw(dtype), 8, 7, [0, 1], places, 32, masked=True)
    want = image_to_token.launch(*arguments)
    assert image_to_token.launch(*arguments, out=arguments[0]) is arguments[0]
    assert torch.equal(arguments[0], want)


def test_attentions_to_tokens_say_how_many_they_take():
    arguments = image_to_token_inputs(Draw(torch.float32), 1, 65, [0], 4, 16, masked=False)
    with pytest.raises(ValueError, match="up to 64"):
        image_to_token.launch(*arguments)
    arguments = token_attention_inputs(Draw(torch.float32), 1, 65, 1, 16, masked=False)
    with pytest.raises(ValueError, match="up to 64"):
        token_attention.launch(*arguments)


def upscaling_inputs(draw: Draw, sources, height, width, channels, masks):
    c_1, c_2 = channels // 4, channels // 8
    return (
        draw(2, height * width, channels),
        torch.tensor(sources, device=DEVICE),
        height,
        width,
        draw(4, channels, c_1, spread=channels**-0.5),
        draw(c_1),
        draw(c_1),
        draw(c_1),
        1e-6,
        draw(c_1, 4 * c_2, spread=c_1**-0.5),
        draw(c_2),
        draw(len(sources), masks, c_2),
        None,
    )


@EXAMPLES
@given(masks=st.integers(1, 4), **SIZES)
def test_upscaling(masks, height, width, channels, dtype, sources):
    draw = Draw(dtype, height * 10 + width)
    arguments = upscaling_inputs(draw, sources, height, width, channels, masks)
    check(upscaling, decoder_operations.upscaling, arguments)


def test_upscaling_of_whole_blocks():
    arguments = upscaling_inputs(Draw(torch.float32), [1, 0], 8, 4, 32, 3)
    check(upscaling, decoder_operations.upscaling, arguments, block=16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_upscaling_skips_objects_that_are_not_wanted(dtype):
    *arguments, _ = upscaling_inputs(Draw(dtype), [1, 0, 0, 1], 5, 4, 16, 3)
    wanted = torch.tensor([True, False, True, False], device=DEVICE)
    both: list[Any] = [upscaling.launch, decoder_operations.upscaling.function]
    for run in both:
        whole, some = run(*arguments, None), run(*arguments, wanted)
        assert torch.equal(some[wanted], whole[wanted]) and not some[~wanted].any()
        assert torch.equal(run(*arguments, torch.ones_like(wanted)), whole)


def test_few_objects_are_split_and_many_are_not():
    assert occupancy.best_splits(1, 128) == 128
    assert occupancy.best_splits(64, 128) == 4  # 256 programs, at once
    assert occupancy.best_splits(10**4, 128) == 1
    assert occupancy.best_splits(300, 1) == 1


def test_upscaling_equals_pytorchs_convolutions():
    arguments = double(upscaling_inputs(Draw(torch.float32), [0, 1], 3, 5, 32, 3))
    images, source_of, *size, wide, wide_bias, weight, bias, eps = arguments[:9]
    narrow, narrow_bias, hyper_in, _ = arguments[9:]
    image = images[source_of].mT.unflatten(2, size)
    image = torch.nn.functional.conv_transpose2d(
        image, wide.unflatten(0, (2, 2)).permute(2, 3, 0, 1), wide_bias, stride=2
    )
    rows = torch.nn.functional.layer_norm(image.permute(0, 2, 3, 1), (8,), weight, bias, eps)
    image = torch.nn.functional.gelu(rows).permute(0, 3, 1, 2)
    image = torch.nn.functional.conv_transpose2d(
        image, narrow.unflatten(1, (2, 2, 4)).permute(0, 3, 1, 2), narrow_bias, stride=2
    )
    want = (hyper_in @ torch.nn.functional.gelu(image).flatten(2)).unflatten(2, image.shape[2:])
    assert relative(decoder_operations.upscaling.function(*arguments), want) < 1e-12


def test_no_objects():
    draw = Draw(torch.float32)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    images, position, _, keys, bias, values, *rest = image_to_token_inputs(
        draw, 2, 5, [0], 6, 16, masked=False
    )
    queries = keys[:, :0]
    assert token_to_image.launch(queries, images, position, none, 1.0).shape == (2, 0, 5, 16)
    none_attend = token_attention_inputs(draw, 2, 5, 0, 16, masked=False)
    assert token_attention.launch(*none_attend).shape == (0, 5, 32)
    answer = image_to_token.launch(
        images, position, none, queries, bias[:, :0], values[:, :0], *rest
    )
    assert answer.shape == (0, 6, 16)
    images, _, *layers, hyper_in, wanted = upscaling_inputs(draw, [0], 2, 3, 16, 3)
    arguments = (images, none, *layers, hyper_in[:0], wanted)
    assert upscaling.launch(*arguments).shape == (0, 3, 8, 12)


def test_objects_do_not_leak_into_each_other():
    # The interpreter's NumPy warns of NaN.
    bad = float("nan") if CUDA else 1e4
    objects = {"sources": [0, 1], "places": 20, "channels": 16}
    for launch, arguments, images_at, object_axis in (
        (token_to_image.launch, token_to_image_inputs(Draw(EXACT), 2, 7, **objects), 1, 1),
        (
            image_to_token.launch,
            image_to_token_inputs(Draw(EXACT), 2, 7, **objects, masked=True),
            0,
            0,
        ),
        (upscaling.launch, upscaling_inputs(Draw(torch.float32), [0, 1], 4, 5, 16, 3), 0, 0),
        (token_attention.launch, token_attention_inputs(Draw(EXACT), 2, 7, 2, 16, True), 1, 0),
    ):
        before = launch(*arguments).select(object_axis, 0)
        arguments[images_at][1] = bad
        assert torch.equal(launch(*arguments).select(object_axis, 0), before)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 5])
def test_the_decoder_lays_out_memory_as_the_kernels_read_it(tokens):
    """FusedDecoder on the kernels against itself on the references."""
    image_to_token_reference = decoder_operations.image_to_token_attention.function
    references = SimpleNamespace(
        MAX_TOKENS=decoder_operations.MAX_TOKENS,
        token_attention=decoder_operations.token_attention.function,
        token_to_image_attention=decoder_operations.token_to_image_attention.function,
        image_to_token_attention=image_to_token_reference,
        image_to_token_attention_=lambda *a: a[0].copy_(image_to_token_reference(*a)),
        upscaling=decoder_operations.upscaling.function,
    )
    kernels = SimpleNamespace(
        MAX_TOKENS=decoder_operations.MAX_TOKENS,
        token_attention=token_attention.launch,
        token_to_image_attention=token_to_image.launch,
        image_to_token_attention=image_to_token.launch,
        image_to_token_attention_=lambda *a: image_to_token.launch(*a, out=a[0]),
        upscaling=upscaling.launch,
    )
    sam = random_sam().to(DEVICE, EXACT)
    draw, side = Draw(EXACT), TINY.grid
    inputs = (
        draw(2, TINY.out_chans, side, side),
        sam.prompt_encoder.get_dense_pe(),
        torch.tensor([1, 0, 1], device=DEVICE),
        draw(3, tokens, TINY.out_chans),
        draw(3, tokens) > 0,
    )
    for multimask in (True, False):
        results = [
            fused_decoder.FusedDecoder(sam.mask_decoder, operations)(*inputs, multimask)
            for operations in (references, kernels, kernels)
        ]
        for want, answer, again in zip(*results, strict=True):
            assert relative(answer, want) < (1e-2 if CUDA else 3e-6)
            assert torch.equal(answer, again)
