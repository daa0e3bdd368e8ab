"""The fused decoder against the plain one, with the same weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from samfast.decoding import decoder_operations as ops
from samfast.decoding import onednn_operations
from samfast.decoding.fused_decoder import FusedDecoder
from samfast.device import onednn_products
from samfast.errors import UnsupportedRecipeError
from samfast.model.config import CONFIGS
from samfast.model.sam import Sam
from tests.model.tiny import TINY, random_sam

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SMALL = replace(CONFIGS["vit_xs"], image_size=96, depth=1, global_attn_indexes=())
WIDE = replace(TINY, decoder_depth=3, num_multimask_outputs=2)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


class Case:
    """A SAM's decoder, two images, and prompts of objects of both.

    The dense prompts are added to the images beforehand: each of `keys` is a source.
    """

    def __init__(
        self, config=TINY, objects=(0, 1, 1, 0), tokens=3, masked=True, dense=False, seed=1
    ) -> None:
        sam: Sam = random_sam(config).to(DEVICE)
        generator = torch.Generator().manual_seed(seed)

        def random(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator).to(DEVICE)

        self.decoder, channels, grid = sam.mask_decoder, config.out_chans, config.grid
        images = random(2, channels, grid, grid)
        self.source_of = torch.tensor(objects, dtype=torch.int64, device=DEVICE)
        self.images, self.dense = images[self.source_of], random(len(objects), channels, grid, grid)
        if dense:
            self.keys = self.images + self.dense
            self.source_of = torch.arange(len(objects), device=DEVICE)
        else:
            prompt = random(1, channels, 1, 1)
            self.keys, self.dense = images + prompt, prompt.expand_as(self.dense)
        with torch.no_grad():
            self.position = sam.prompt_encoder.get_dense_pe()
        self.sparse = random(len(objects), tokens, channels)
        self.token_mask = random(len(objects), tokens) > 0 if masked else None

    def fused(self, multimask: bool, dtype: torch.dtype = torch.float32, operations: Any = ops):
        given = [x.to(dtype) for x in (self.keys, self.position)]
        decoder = FusedDecoder(self.decoder.to(dtype), operations)
        return decoder(*given, self.source_of, self.sparse.to(dtype), self.token_mask, multimask)

    def plain(self, multimask: bool, dtype: torch.dtype = torch.float64):
        given = [x.to(dtype) for x in (self.images, self.position, self.sparse, self.dense)]
        return self.decoder.to(dtype)(*given, multimask, self.token_mask)


MANY = (0, 1, 1, 0) * 8
"""Objects enough that the rounding of their predicted IoU, a number each, is not one of chance."""


def check(
    case: Case | list[Case],
    multimask: bool,
    dtype: torch.dtype = torch.float32,
    operations: Any = ops,
) -> None:
    """The error against float64, of all cases together, is at most twice the plain decoder's in the
    same dtype, or 1e-6.
    """
    parts: list[list[tuple[torch.Tensor, ...]]] = [[], []]
    for each in case if isinstance(case, list) else [case]:
        each.decoder.to(dtype)  # first, so that float64 has the rounded weights
        truths, plains = each.plain(multimask), each.plain(multimask, dtype)
        answers = each.fused(multimask, dtype, operations)
        for part, *three in zip(parts, answers, plains, truths, strict=True):
            answer, _, truth = three
            assert answer.dtype == dtype and answer.shape == truth.shape
            part.append(tuple(three))
    for part in parts:
        answer, plain, truth = map(torch.cat, zip(*part, strict=True))
        assert relative(answer, truth) <= max(2 * relative(plain, truth), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("config", [TINY, SMALL, WIDE], ids=["tiny", "vit_xs", "deep"])
def test_it_equals_the_plain_decoder(config, dense, masked, multimask):
    check(Case(config, MANY, dense=dense, masked=masked), multimask)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [0, 1, 20, ops.MAX_TOKENS - 5, ops.MAX_TOKENS - 4, 80])
def test_any_number_of_tokens(tokens):
    check(Case(tokens=tokens), True)


def test_more_tokens_than_its_kernel_takes_attend_by_the_reference():
    def runs(tokens: int) -> bool:
        on_gpu: Any = SimpleNamespace(
            device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, tokens, 256)
        )
        return ops.token_attention.has_kernel(on_gpu)

    assert runs(ops.MAX_TOKENS) and not runs(ops.MAX_TOKENS + 1)


@torch.no_grad()
@pytest.mark.skipif(
    CUDA or not onednn_products.available(), reason="needs a CPU whose torch has oneDNN"
)
@pytest.mark.parametrize("dtype", onednn_products.dtypes())
@pytest.mark.parametrize("objects", [(0, 1, 1, 0) * 8, (1,), (1,) * 9], ids=["many", "one", "same"])
@pytest.mark.parametrize(("dense", "masked"), [(False, True), (True, False)])
def test_onednn_s_operations(dtype, objects, dense, masked):
    # One object's predicted IoU is a single number, whose rounding is one of chance: several cases
    # of it are taken together, and in bfloat16 none.
    if len(objects) > 1 or dtype == torch.float32:
        seeds = range(1, 9 if len(objects) == 1 else 2)
        cases = [Case(SMALL, objects, dense=dense, masked=masked, seed=seed) for seed in seeds]
        check(cases, True, dtype, onednn_operations)
    case = Case(WIDE, objects, tokens=80, dense=dense, masked=masked)
    check(case, False, torch.float32, onednn_operations)


@torch.no_grad()
def test_one_object_and_many_of_one_image():
    check(Case(objects=(1,)), False)
    check(Case(objects=(1,) * 9), True)


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False])
def test_no_object(multimask):
    masks, quality = Case(objects=()).fused(multimask)
    count, side = 3 if multimask else 1, 4 * TINY.grid
    assert masks.shape == (0, count, side, side) and quality.shape == (0, count)


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_is_no_worse_than_the_plain_decoder(dtype, multimask):
    check(Case(SMALL, MANY), multimask, dtype)


@torch.no_grad()
def test_padding_changes_nothing():
    case = Case(masked=False)
    want = case.fused(True)
    junk = torch.full_like(case.sparse[:, :2], 7.0)
    case.sparse = torch.cat([case.sparse, junk], dim=1)
    case.token_mask = torch.tensor([[True] * 3 + [False] * 2], device=DEVICE).expand(4, -1)
    for answer, before in zip(case.fused(True), want, strict=True):
        assert relative(answer, before) < 1e-5


@torch.no_grad()
def test_weights_loaded_later_are_used():
    case = Case()
    fused = FusedDecoder(case.decoder)
    given = (case.keys, case.position, case.source_of, case.sparse, case.token_mask, True)
    before, _ = fused(*given)
    case.decoder.load_state_dict({k: v * 1.1 for k, v in case.decoder.state_dict().items()})
    after, _ = fused(*given)
    assert relative(after, before) > 1e-2
    assert relative(after, case.plain(True)[0]) < 1e-5


@pytest.mark.parametrize(
    "change", ["act", "tanh", "norm", "transformer", "bias", "stride", "width"]
)
def test_other_structures_are_refused(change):
    decoder: Any = random_sam(
        replace(TINY, out_chans=48) if change == "width" else TINY
    ).mask_decoder
    if change == "act":
        decoder.output_upscaling[2] = nn.ReLU()
    elif change == "tanh":
        decoder.output_upscaling[4] = nn.GELU(approximate="tanh")
    elif change == "norm":
        decoder.transformer.layers[1].norm4 = nn.Identity()
    elif change == "transformer":
        decoder.transformer = nn.Identity()
    elif change == "bias":
        decoder.transformer.layers[0].cross_attn_token_to_image.v_proj.bias = None
    elif change == "stride":
        decoder.output_upscaling[3] = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
    with pytest.raises(UnsupportedRecipeError, match="SAM's own structure"):
        FusedDecoder(decoder)


@pytest.mark.parametrize("count", [2, 5])
def test_the_operations_keep_pytorchs_rules(count):
    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device=DEVICE)

    images, position = random(2, 6, 16), random(6, 16)
    source_of = torch.arange(count, device=DEVICE) % 2
    tokens, row = random(4, count, 5, 16), random(16)
    each = torch.arange(count, device=DEVICE)
    rest = (tokens, tokens[..., 0].contiguous(), tokens, row, row, row, 1e-5, 0.5)
    layers = (random(4, 16, 4), random(4), random(4), random(4), 1e-6, random(4, 8), random(2))
    checks = ("test_schema", "test_faketensor")
    for operation, arguments in (
        (ops.token_to_image_attention, (tokens, images, position, source_of, 0.5)),
        (ops.image_to_token_attention, (images, position, source_of, *rest)),
        (ops.image_to_token_attention_, (images[source_of], position, each, *rest)),
        (ops.upscaling, (images, source_of, 2, 3, *layers, random(count, 3, 2), None)),
        (ops.upscaling, (images, source_of, 2, 3, *layers, random(count, 3, 2), source_of == 1)),
    ):
        torch.library.opcheck(operation.register(), arguments, test_utils=checks)


@pytest.mark.skipif(not CUDA, reason="a CUDA graph needs a GPU")
@torch.no_grad()
def test_a_cuda_graph_can_record_it():
    case = Case(SMALL)
    fused = FusedDecoder(case.decoder)
    given = (case.keys, case.position, case.source_of, case.sparse, case.token_mask, True)
    before = fused(*given)[0]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masks, _ = fused(*given)
    case.keys.mul_(2.0)
    graph.replay()
    assert relative(masks, fused(*given)[0]) < 1e-6
    assert relative(masks, before) > 1e-2
