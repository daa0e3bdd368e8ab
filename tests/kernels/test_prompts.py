"""The prompt encoder's kernels against the plain module: kinds of prompts, odd sizes, dtypes."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("triton")

from samfast.decoding.fused_prompt_encoder import FusedPrompts
from samfast.decoding.kernels import prompt_embedding
from samfast.model.prompt_encoder import PromptEncoder
from samfast.types import PADDING_LABEL
from tests.kernels.decoder_operands import CUDA, DEVICE, DTYPES, relative

SIZES = [(64, 64), (3, 7), (5, 1)]


def encoder(channels: int, grid: tuple[int, int], dtype: torch.dtype) -> PromptEncoder:
    torch.manual_seed(channels)
    made = PromptEncoder(channels, grid, (16 * grid[0], 16 * grid[1]), 4).requires_grad_(False)
    matrix = made.to(DEVICE).pe_layer.positional_encoding_gaussian_matrix
    made.to(dtype)
    made.pe_layer.positional_encoding_gaussian_matrix = matrix  # recipes leave it in float32
    return made


def random_prompts(count: int, points: int, boxes: bool, size: tuple[int, int]):
    torch.manual_seed(points)
    scale = torch.tensor([size[1], size[0]])
    coords = torch.rand(count, points, 2) * scale
    labels = torch.tensor([-1, 0, 1, PADDING_LABEL])[torch.randint(4, (count, points))].int()
    around = (torch.rand(count, 2, 2) * scale).flatten(1)
    clicks = (coords.to(DEVICE), labels.to(DEVICE)) if points else None
    return clicks, around.to(DEVICE) if boxes else None


def double(module: PromptEncoder) -> PromptEncoder:
    """The same in float64, angles included."""
    made = copy.deepcopy(module).double()
    pe = made.pe_layer

    def encoding(coords: torch.Tensor) -> torch.Tensor:
        phase = 2 * torch.pi * ((2 * coords.double() - 1) @ pe.positional_encoding_gaussian_matrix)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    pe._pe_encoding = encoding  # type: ignore[method-assign]
    return made


def fused(module: PromptEncoder, monkeypatch) -> FusedPrompts:
    monkeypatch.setattr(FusedPrompts, "_has_kernel", True)
    return FusedPrompts(module)


def assert_close(answer: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor) -> None:
    assert answer.shape == truth.shape and answer.dtype == plain.dtype
    assert relative(answer, truth) <= max(2 * relative(plain, truth), 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize(("count", "points"), [(1, 1), (3, 2), (5, 0), (2, 7)])
def test_tokens(count: int, points: int, boxes: bool, dtype: torch.dtype, monkeypatch) -> None:
    if not (points or boxes):
        return
    module = encoder(12 if points == 7 else 32, (5, 6), dtype)
    clicks, around = random_prompts(count, points, boxes, module.input_image_size)
    sparse, dense = fused(module, monkeypatch)(clicks, around, None)
    plain, plain_dense = module(clicks, around, None)
    truth, _ = double(module)(
        None if clicks is None else (clicks[0].double(), clicks[1]),
        None if around is None else around.double(),
        None,
    )
    assert_close(sparse, plain, truth)
    assert torch.equal(dense, plain_dense)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_places(size: tuple[int, int], dtype: torch.dtype, monkeypatch) -> None:
    module = encoder(24, size, dtype)
    assert_close(
        fused(module, monkeypatch).get_dense_pe(),
        module.get_dense_pe(),
        double(module).get_dense_pe(),
    )


def test_masks_are_the_plain_module_s(monkeypatch) -> None:
    module = encoder(32, (5, 6), DTYPES[-1])
    clicks, _ = random_prompts(2, 1, False, module.input_image_size)
    masks = torch.randn(2, 1, 20, 24, device=DEVICE)
    assert torch.equal(
        fused(module, monkeypatch)(clicks, None, masks)[1], module(clicks, None, masks)[1]
    )
    for answer, want in zip(
        fused(module, monkeypatch)(None, None, masks), module(None, None, masks), strict=True
    ):
        assert torch.equal(answer, want)


def test_no_objects() -> None:
    module = encoder(32, (5, 6), torch.float32)
    layers = (*module.point_embeddings, module.not_a_point_embed)
    embeddings = [layer.weight for layer in layers]
    matrix = module.pe_layer.positional_encoding_gaussian_matrix
    none = torch.zeros(0, 3, 2, device=DEVICE)
    answer = prompt_embedding.tokens(none, none[..., 0].int(), None, matrix, embeddings, (80, 96))
    assert answer.shape == (0, 4, 32)


def test_a_subclass_is_called_as_it_is() -> None:
    class Subclass(PromptEncoder):
        pass

    module = Subclass(16, (2, 2), (32, 32), 4).to(DEVICE, torch.bfloat16 if CUDA else torch.float32)
    clicks, _ = random_prompts(2, 1, False, (32, 32))
    for answer, want in zip(
        FusedPrompts(module)(clicks, None, None), module(clicks, None, None), strict=True
    ):
        assert torch.equal(answer, want)
