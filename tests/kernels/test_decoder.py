"""The decoder's passes over images against their reference, over odd grids, numbers of tokens,
sources and dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from samfast.decoding import decoder_reference as reference
from samfast.decoding import fused_decoder
from samfast.decoding.decoder_operations import DecoderOperations
from samfast.decoding.kernels import image_to_token, token_to_image, upscaling
from samfast.device.kernels import occupancy
from tests.model.tiny import TINY, random_sam

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter's product of bfloat16 is wrong; it is tested on a GPU, where float32 does not run
# on these kernels.
DTYPES = [torch.float16, torch.bfloat16 if CUDA else torch.float32]
EXACT = torch.float16 if CUDA else torch.float32
EXAMPLES = settings(
    max_examples=40 if CUDA else 12, deadline=None, suppress_health_check=list(HealthCheck)
)
SIZES = {
    "height": st.integers(1, 40 if CUDA else 9),
    "width": st.integers(1, 40 if CUDA else 9),
    "channels": st.sampled_from([16, 32, 256]),
    "dtype": st.sampled_from(DTYPES),
    "sources": st.lists(st.integers(0, 1), min_size=1, max_size=3),
}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def double(value):
    """What was handed over, in float64."""
    if isinstance(value, tuple):
        return tuple(double(each) for each in value)
    return (
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    )


def check(module, function, arguments, **options):
    """Error against float64 at most twice the reference's in the same dtype, with a floor of
    1e-6."""
    answer = module.launch(*arguments, **options)
    truth = function(*(double(each) for each in arguments))
    own = relative(function(*arguments), truth)
    assert answer.shape == truth.shape and answer.dtype == arguments[0].dtype
    assert answer.is_contiguous()
    assert relative(answer, truth) <= max(2 * own, 1e-6)


class Draw:
    """Random tensors of one dtype, the same for a seed."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *sizes: int, spread: float = 1.0) -> torch.Tensor:
        return (torch.randn(*sizes, generator=self.generator) * spread).to(DEVICE, self.dtype)


@pytest.fixture(autouse=True)
def poison():
    """Memory that a kernel leaves unwritten is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def asked(draw: Draw, heads, tokens, sources, places, channels):
    return (
        draw(heads, len(sources), tokens, channels, spread=channels**-0.5),
        draw(2, places, channels),
        draw(places, channels),
        torch.tensor(sources, device=DEVICE),
        2.0,
    )


@EXAMPLES
@given(heads=st.integers(1, 4), tokens=st.sampled_from([5, 7, 8, 9, 24, 40]), **SIZES)
def test_from_image(heads, tokens, height, width, channels, dtype, sources):
    arguments = asked(
        Draw(dtype, height * 10 + width), heads, tokens, sources, height * width, channels
    )
    check(token_to_image, reference.from_image, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize("places", [7 * 16 + 3, 7 * 16])
def test_from_image_in_any_number_of_parts(dtype, splits, places):
    arguments = asked(Draw(dtype), 8, 9, [1, 0], places, 32)
    check(token_to_image, reference.from_image, arguments, splits=splits, block_m=32, block_n=16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_so_large_that_one_place_is_all_that_is_seen(dtype):
    queries, *rest, _ = asked(Draw(dtype), 2, 5, [0], 50, 32)
    check(token_to_image, reference.from_image, (queries, *rest, 200.0))


def looked_at(draw: Draw, heads, tokens, sources, places, channels, masked):
    count = len(sources)
    shift = torch.randn(heads, count, tokens, generator=draw.generator).to(DEVICE)
    if masked:
        seen = torch.rand(count, tokens, generator=draw.generator).to(DEVICE) < 0.5
        seen[:, 0] = True
        shift = shift.masked_fill(~seen, float("-inf"))
    return (
        draw(2, places, channels),
        draw(places, channels),
        torch.tensor(sources, device=DEVICE),
        draw(heads, count, tokens, channels, spread=channels**-0.5),
        shift,
        draw(heads, count, tokens, channels),
        draw(channels),
        (draw(channels), draw(channels), 1e-5),
        2.0,
    )


@EXAMPLES
@given(
    heads=st.sampled_from([1, 3, 4, 8]),
    tokens=st.sampled_from([1, 5, 7, 8, 9, 24, 40]),
    masked=st.booleans(),
    **SIZES,
)
def test_to_image(heads, tokens, masked, height, width, channels, dtype, sources):
    draw = Draw(dtype, height * 10 + width)
    arguments = looked_at(draw, heads, tokens, sources, height * width, channels, masked)
    check(image_to_token, reference.to_image, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [16, 32, 64])
@pytest.mark.parametrize("places", [7 * 16 + 3, 7 * 16])
def test_to_image_some_heads_at_a_time_and_in_parts(dtype, columns, places):
    arguments = looked_at(Draw(dtype), 8, 7, [1, 0], places, 32, masked=True)
    check(image_to_token, reference.to_image, arguments, columns=columns, splits=3, block=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("places", [7 * 16 + 3, 7 * 16])
def test_to_image_in_place(dtype, places):
    arguments = looked_at(Draw(dtype), 8, 7, [0, 1], places, 32, masked=True)
    want = image_to_token.launch(*arguments)
    assert image_to_token.launch(*arguments, out=arguments[0]) is arguments[0]
    assert torch.equal(arguments[0], want)


def test_to_image_says_how_many_tokens_it_takes():
    with pytest.raises(ValueError, match="up to 64"):
        image_to_token.launch(*looked_at(Draw(torch.float32), 1, 65, [0], 4, 16, masked=False))


def upscaled(draw: Draw, sources, height, width, channels, masks):
    c_1, c_2 = channels // 4, channels // 8
    return (
        draw(2, height * width, channels),
        torch.tensor(sources, device=DEVICE),
        (height, width),
        (draw(4, channels, c_1, spread=channels**-0.5), draw(c_1)),
        (draw(c_1), draw(c_1), 1e-6),
        (draw(c_1, 4 * c_2, spread=c_1**-0.5), draw(c_2)),
        draw(len(sources), masks, c_2),
    )


@EXAMPLES
@given(masks=st.integers(1, 4), **SIZES)
def test_upscaling(masks, height, width, channels, dtype, sources):
    draw = Draw(dtype, height * 10 + width)
    check(upscaling, reference.upscaling, upscaled(draw, sources, height, width, channels, masks))


def test_upscaling_of_whole_blocks():
    arguments = upscaled(Draw(torch.float32), [1, 0], 8, 4, 32, 3)
    check(upscaling, reference.upscaling, arguments, block=16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_upscaling_of_what_is_wanted(dtype):
    arguments = upscaled(Draw(dtype), [1, 0, 0, 1], 5, 4, 16, 3)
    wanted = torch.tensor([True, False, True, False], device=DEVICE)
    every: list[Any] = [upscaling.launch, reference.upscaling]
    for run in every:
        whole, some = run(*arguments), run(*arguments, wanted)
        assert torch.equal(some[wanted], whole[wanted]) and not some[~wanted].any()
        assert torch.equal(run(*arguments, torch.ones_like(wanted)), whole)


def test_few_objects_are_split_and_many_are_not():
    assert occupancy.parts(1, 128) == 128
    assert occupancy.parts(64, 128) == 4  # 256 programs, at once
    assert occupancy.parts(10**4, 128) == 1
    assert occupancy.parts(300, 1) == 1


def test_upscaling_is_what_pytorch_s_convolutions_do():
    keys, source_of, size, (wide, wide_bias), norm, (keep_dtype, narrow_bias), kernels = double(
        upscaled(Draw(torch.float32), [0, 1], 3, 5, 32, 3)
    )
    image = keys[source_of].mT.unflatten(2, size)
    image = torch.nn.functional.conv_transpose2d(
        image, wide.unflatten(0, (2, 2)).permute(2, 3, 0, 1), wide_bias, stride=2
    )
    rows = torch.nn.functional.layer_norm(image.permute(0, 2, 3, 1), (8,), *norm)
    image = torch.nn.functional.gelu(rows).permute(0, 3, 1, 2)
    image = torch.nn.functional.conv_transpose2d(
        image, keep_dtype.unflatten(1, (2, 2, 4)).permute(0, 3, 1, 2), narrow_bias, stride=2
    )
    want = (kernels @ torch.nn.functional.gelu(image).flatten(2)).unflatten(2, image.shape[2:])
    arguments = (keys, source_of, size, (wide, wide_bias), norm, (keep_dtype, narrow_bias), kernels)
    assert relative(reference.upscaling(*arguments), want) < 1e-12


def test_no_objects():
    draw = Draw(torch.float32)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    keys, position, _, mixed, shift, values, *rest = looked_at(draw, 2, 5, [0], 6, 16, masked=False)
    queries = mixed[:, :0]
    assert token_to_image.launch(queries, keys, position, none, 1.0).shape == (2, 0, 5, 16)
    answer = image_to_token.launch(
        keys, position, none, queries, shift[:, :0], values[:, :0], *rest
    )
    assert answer.shape == (0, 6, 16)
    keys, _, *layers, kernels = upscaled(draw, [0], 2, 3, 16, 3)
    assert upscaling.launch(*(keys, none, *layers, kernels[:0])).shape == (0, 3, 8, 12)


def test_objects_do_not_leak_into_each_other():
    # The interpreter's NumPy warns of NaN, which a GPU need not.
    bad = float("nan") if CUDA else 1e4
    for launch, arguments, own in (
        (token_to_image.launch, asked(Draw(EXACT), 2, 7, [0, 1], 20, 16), 1),
        (image_to_token.launch, looked_at(Draw(EXACT), 2, 7, [0, 1], 20, 16, masked=True), 0),
        (upscaling.launch, upscaled(Draw(torch.float32), [0, 1], 4, 5, 16, 3), 0),
    ):
        keys = arguments[1 if launch is token_to_image.launch else 0]
        before = launch(*arguments).select(own, 0)
        keys[1] = bad
        assert torch.equal(launch(*arguments).select(own, 0), before)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 5])
def test_the_decoder_hands_over_what_the_kernels_read(monkeypatch, tokens):
    """FusedDecoder on the kernels against itself on the references: they read memory as it lies."""
    references = DecoderOperations(
        from_image=reference.from_image,
        to_image=lambda *a: reference.to_image(*(*a[:7], a[7:10], a[10])),
        to_image_=lambda *a: a[0].copy_(reference.to_image(*(*a[:7], a[7:10], a[10]))),
        upscaling=lambda *a: reference.upscaling(
            *(*a[:2], a[2:4], a[4:6], a[6:9], a[9:11], *a[11:])
        ),
    )
    ops = DecoderOperations(
        from_image=token_to_image.launch,
        to_image=lambda *a: image_to_token.launch(*(*a[:7], a[7:10], a[10])),
        to_image_=lambda *a: image_to_token.launch(*(*a[:7], a[7:10], a[10]), out=a[0]),
        upscaling=lambda *a: upscaling.launch(*(*a[:2], a[2:4], a[4:6], a[6:9], a[9:11], *a[11:])),
    )
    sam = random_sam().to(DEVICE, EXACT)
    draw, side = Draw(EXACT), TINY.grid
    given = (
        draw(2, TINY.out_chans, side, side),
        sam.prompt_encoder.get_dense_pe(),
        torch.tensor([1, 0, 1], device=DEVICE),
        draw(3, tokens, TINY.out_chans),
        draw(3, tokens) > 0,
    )
    fused = fused_decoder.FusedDecoder(sam.mask_decoder)
    for multimask in (True, False):
        found = []
        for own in (references, ops, ops):
            with monkeypatch.context() as patch:
                patch.setattr(fused_decoder, "decoder_operations", lambda own=own: own)
                found.append(fused(*given, multimask))
        for want, answer, again in zip(*found, strict=True):
            assert relative(answer, want) < (1e-2 if CUDA else 3e-6)
            assert torch.equal(answer, again)
