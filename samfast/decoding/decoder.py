"""Prompt encoder and mask decoder as a recipe runs them: image by image, nested, or packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samfast.decoding.decoder_output import DecoderOutput, at_a_time
from samfast.decoding.looped_decoder import Looped
from samfast.decoding.nested_decoder import Nested
from samfast.decoding.packed_decoder import GRAPHS_KEPT, Packed, PlainDecoder
from samfast.device.cuda_graphs import Recorder
from samfast.device.inference_modes import inference_modes
from samfast.device.retry import NoRetry, RetryOnOOM
from samfast.model.sam import Sam
from samfast.prompts.flat_prompts import Flat
from samfast.recipes.recipe import Recipe
from samfast.types import PromptGroup


class Decoder:
    """What the engine calls with image embeddings and prompts.

    looped  decodes image by image, where the recipe says so
    flat    decodes flat batches of all images: `Packed` or `Nested`
    lean    whether an object takes little memory beside its answer, as in the kernels of a GPU in
            16 bits
    """

    def __init__(
        self,
        device: torch.device,
        looped: Looped | None,
        flat: Packed | Nested,
        *,
        low_memory: bool = False,
    ) -> None:
        self._device = device
        self.looped = looped
        self.flat = flat
        self.low_memory = low_memory

    def __call__(
        self,
        features: Tensor,
        groups: Sequence[PromptGroup],
        multimask: bool,
        *,
        halving: RetryOnOOM | None = None,
        keep_dtype: bool = False,
        least_iou: float | None = None,
    ) -> list[DecoderOutput]:
        """The answers for each group, an object a row; features (B, C, h, w) are of all images.

        halving    takes fewer objects at a time where the GPU runs out of memory; None: that error
                   passes
        narrow     logits in the decoder's own dtype instead of float32
        least_iou  where none of an object's masks is predicted a higher IoU than this, its logits
                   may be zeros
        """
        halving = halving or NoRetry()
        with inference_modes(self._device):
            if self.looped is not None:
                return self.looped(features, groups, multimask, halving, keep_dtype, least_iou)
            flats = [Flat.of(group) for group in groups]
            if isinstance(self.flat, Packed):
                return self.flat(features, flats, multimask, halving, keep_dtype, least_iou)
            return self.flat(features, flats, multimask, halving, keep_dtype)

    def at_once(
        self, features: Tensor, flat: Flat, multimask: bool, *, halving: RetryOnOOM | None = None
    ) -> DecoderOutput:
        """The answers for a flat batch; as nested where the recipe goes image by image."""
        with inference_modes(self._device):
            return self.flat(features, [flat], multimask, halving or NoRetry())[0]

    def describe(self) -> str:
        """How it is run, in words."""
        count = at_a_time(self._device)
        if self.looped is not None:
            return f"as it is written, image by image, {count} objects at a time"
        if isinstance(self.flat, Nested):
            return f"as it is written, on nested tensors of all images, {count} objects at a time"
        how = "fused" if not isinstance(self.flat.decode, PlainDecoder) else "as it is written"
        graphs = ", replayed as CUDA graphs" if self.flat.graphs is not None else ""
        return f"{how}, on the packed prompts of all images, {count} objects at a time{graphs}"


def build(sam: Sam, recipe: Recipe, *, device: torch.device) -> Decoder:
    """The decoder of a model to which the recipe has been applied. Nothing is recorded before a
    call.

    Raises UnsupportedRecipeError for prompts="packed" with fuse, where the decoder has another
    structure than SAM's.
    """
    if recipe.prompts != "packed":
        return Decoder(device, Looped(sam) if recipe.prompts == "looped" else None, Nested(sam))
    graphs = None
    if recipe.graphed and device.type == "cuda":
        graphs = Recorder(
            nn.ModuleList([sam.prompt_encoder, sam.mask_decoder]), "decoder", GRAPHS_KEPT
        )
    if not recipe.fuse:
        return Decoder(device, None, Packed(sam, PlainDecoder(sam.mask_decoder), graphs))
    from samfast.decoding.fused_decoder import FusedDecoder
    from samfast.decoding.fused_prompt_encoder import FusedPrompts

    fused = FusedDecoder(sam.mask_decoder)
    low_memory = device.type == "cuda" and sam.mask_decoder.iou_token.weight.dtype != torch.float32
    return Decoder(
        device,
        None,
        Packed(sam, fused, graphs, FusedPrompts(sam.prompt_encoder)),
        low_memory=low_memory,
    )
