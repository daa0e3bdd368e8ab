"""Calls of the original's modules that its callers make beside those of its own predictor."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from samfast.model.image_encoder import Attention
from samfast.model.mask_decoder import MaskDecoder
from samfast.model.transformer import Attention as DecoderAttention
from tests import oracle
from tests.pairs import pair, relative_error

oracle.load()

BATCHES = [
    # images, sparse prompts, dense prompts
    (1, 1, 3),  # one point set with three masks
    (3, 1, 1),  # three images with one prompt set, as SAMed trains
    (3, 1, 3),  # three images with one point set and a mask each
    (1, 3, 1),
    (1, 3, 3),
]


@pytest.fixture(scope="module")
def sams() -> tuple[Any, Any]:
    return pair()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("tokens", [0, 2])
@pytest.mark.parametrize("expanded", [False, True])
def test_images_and_prompts_of_different_counts(
    sams: tuple[Any, Any], batches: tuple[int, int, int], tokens: int, expanded: bool
) -> None:
    images, sparse, dense = batches
    image, prompts = random(images, 64, 16, 16), random(sparse, tokens, 64)
    masks = random(1, 64, 1, 1).expand(dense, 64, 16, 16) if expanded else random(dense, 64, 16, 16)
    for multimask in (True, False):
        theirs, ours = (
            sam.mask_decoder(image, sam.prompt_encoder.get_dense_pe(), prompts, masks, multimask)
            for sam in sams
        )
        for expected, result in zip(theirs, ours, strict=True):
            assert result.shape == expected.shape
            assert relative_error(result.detach(), expected.detach()) <= 1e-5


def test_every_count_that_the_original_takes_is_taken(sams: tuple[Any, Any]) -> None:
    theirs, ours = sams
    position = theirs.prompt_encoder.get_dense_pe()
    taken = []
    for images, sparse, dense in itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 3, 4, 6, 9)):
        inputs = random(images, 64, 16, 16), position, random(sparse, 1, 64)
        masks = random(dense, 64, 16, 16)
        try:
            expected, _ = theirs.mask_decoder(*inputs, masks, False)
        except RuntimeError:
            continue
        result, _ = ours.mask_decoder(*inputs, masks, False)
        assert result.shape == expected.shape
        assert relative_error(result.detach(), expected.detach()) <= 1e-5
        taken.append((images, sparse, dense))
    assert set(BATCHES) <= set(taken)


def test_one_image_each_with_a_prompt_set_each_is_decoded_object_by_object(
    sams: tuple[Any, Any],
) -> None:
    """As fine-tuned forks of the original decode a batch; 1.0 itself refuses it."""
    decoder: MaskDecoder = sams[1].mask_decoder
    position = sams[1].prompt_encoder.get_dense_pe()
    image, sparse, dense = random(3, 64, 16, 16), random(3, 2, 64), random(3, 64, 16, 16)
    together, _ = decoder(image, position, sparse, dense, True)
    alone = [
        decoder(image[i : i + 1], position, sparse[i : i + 1], dense[i : i + 1], True)[0]
        for i in range(3)
    ]
    assert relative_error(together.detach(), torch.cat(alone).detach()) <= 1e-5


def module_outputs(sam: Any) -> dict[str, Tensor]:
    """The outputs of the modules that projects call."""
    points = (random(2, 1, 2), torch.ones(2, 1))
    embedding = sam.image_encoder(random(1, 3, 256, 256))
    sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=random(2, 1, 64, 64))
    position = sam.prompt_encoder.get_dense_pe()
    masks, iou = sam.mask_decoder(embedding, position, sparse, dense, True)
    tokens, image = sam.mask_decoder.transformer(
        random(1, 64, 16, 16), random(1, 64, 16, 16), random(1, 5, 64)
    )
    upscaled = sam.mask_decoder.output_upscaling(random(1, 64, 16, 16))
    block = sam.image_encoder.blocks[0](random(1, 16, 16, 48))
    return {
        "embedding": embedding,
        "sparse": sparse,
        "dense": dense,
        "masks": masks,
        "iou": iou,
        "tokens": tokens,
        "image": image,
        "upscaled": upscaled,
        "block": block,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_under_autocast_have_the_originals_dtypes(
    sams: tuple[Any, Any], dtype: torch.dtype
) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype):
        theirs, ours = map(module_outputs, sams)
    assert {name: x.dtype for name, x in ours.items()} == {n: x.dtype for n, x in theirs.items()}
    assert len({x.dtype for x in theirs.values()}) == 2
    for name, expected in theirs.items():
        assert relative_error(ours[name].float(), expected.float()) <= 0.1, name


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_the_transformer_can_be_scripted(sams: tuple[Any, Any]) -> None:
    inputs = random(1, 64, 16, 16), random(1, 64, 16, 16), random(3, 5, 64)
    transformer = sams[1].mask_decoder.transformer
    scripted = torch.jit.script(transformer)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for expected, result in zip(transformer(*inputs), scripted(*inputs), strict=True):
            assert torch.equal(result, expected)


def test_a_forward_that_is_put_into_the_class_is_called_with_windows(
    sams: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gradient rollout replaces it, to keep the attention's output."""
    kept: list[list[Tensor]] = []
    for sam in sams:
        kind = type(sam.image_encoder.blocks[0].attn)
        seen: list[Tensor] = []
        written = kind.forward

        def forward(self: Any, x: Tensor, written: Any = written, seen: Any = seen) -> Tensor:
            seen.append(written(self, x))
            return 0.5 * seen[-1]

        monkeypatch.setattr(kind, "forward", forward)
        with torch.no_grad():
            seen.append(sam.image_encoder(random(1, 3, 256, 256)))
        kept.append(seen)
    theirs, ours = kept
    assert len(ours) == len(theirs) == 5
    for expected, result in zip(theirs, ours, strict=True):
        assert relative_error(result, expected) <= 1e-5


def test_wrong_sizes_are_assertion_errors_as_the_originals() -> None:
    for build in (
        lambda: Attention(32, use_rel_pos=True),
        lambda: DecoderAttention(30, 4),
    ):
        with pytest.raises(AssertionError) as caught:
            build()
        assert isinstance(caught.value, ValueError)
