"""Prompt encoder and mask decoder in one call; looped, nested and packed decoders implement it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from samfast.decoding.decoder_output import DecoderOutput
from samfast.device.cuda_graphs import Recorder
from samfast.device.inference_modes import inference_modes
from samfast.device.retry import NoRetry, RetryOnOOM
from samfast.errors import InputError, shown
from samfast.model.sam import Sam
from samfast.prompts.object_rows import move, on_host
from samfast.types import PackedPrompts


@dataclass(frozen=True)
class DecoderCall:
    """The arguments of one call that all of its objects share.

    features   (B, C, h, w) in the decoder's dtype
    min_iou    None also where the decoder does not skip
    retry      takes fewer objects at a time where the GPU runs out of memory
    """

    features: Tensor
    multimask: bool
    min_iou: float | None
    retry: RetryOnOOM


class Decoder(ABC):
    """Image embeddings and prompts in, low-resolution logits and predicted IoU out.

    low_memory     an object takes little memory beside its answer, as with the 16-bit GPU kernels
    across_images  objects of several images are decoded in one call
    graphs         records and replays CUDA graphs, or None
    """

    low_memory = False
    across_images = True
    graphs: Recorder | None = None

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    def __call__(
        self,
        features: Tensor,
        prompts: Sequence[PackedPrompts],
        *,
        multimask: bool,
        min_iou: float | None = None,
        keep_dtype: bool = False,
        retry: RetryOnOOM | None = None,
    ) -> DecoderOutput:
        """The answers for the objects of all prompts, in their order.

        features    (B, C, h, w) of all images, in any memory layout
        prompts     PackedPrompts of one or more images, one for each combination of points, boxes
                    and masks
        multimask   three masks per object, or the one of the single-mask token
        min_iou     logits of an object none of whose masks has a higher predicted IoU may be zeros
        keep_dtype  logits in the decoder's dtype instead of float32
        retry       takes fewer objects at a time where the GPU runs out of memory; None: the error
                    propagates
        """
        if isinstance(multimask, Tensor | np.ndarray):
            raise InputError(f"multimask={shown(multimask)}; give True or False")
        retry = retry or NoRetry()
        if not self._skips_low_iou:
            min_iou = None
        with inference_modes(self._device):
            prompts = [each if on_host(each) else move(each, self._device) for each in prompts]
            features = features.to(self._sam.mask_decoder.iou_token.weight.dtype)
            # Channels last, as encoders leave them: other strides would round differently.
            features = features.contiguous(memory_format=torch.channels_last)
            count = sum(len(each) for each in prompts)
            output = retry.run(
                partial(DecoderOutput.empty, self._sam, count, multimask, self._device, keep_dtype)
            )
            self._decode(prompts, DecoderCall(features, multimask, min_iou, retry), output)
        return output

    @property
    def batched(self) -> Decoder:
        """A decoder of the same model that takes all images at once."""
        return self

    @abstractmethod
    def describe(self) -> str:
        """How it is run, in words."""

    @property
    def _device(self) -> torch.device:
        return self._sam.device

    @property
    def _skips_low_iou(self) -> bool:
        """Whether min_iou saves time: reading the predicted IoU would wait for a GPU."""
        return self._device.type == "cpu"

    @abstractmethod
    def _decode(
        self, prompts: Sequence[PackedPrompts], call: DecoderCall, output: DecoderOutput
    ) -> None:
        """Decode all objects and put the answers into the output, under `inference_modes`."""


def with_rows(
    prompts: Sequence[PackedPrompts], output: DecoderOutput
) -> Iterator[tuple[PackedPrompts, DecoderOutput]]:
    """Each of the prompts with its rows of the output."""
    start = 0
    for each in prompts:
        yield each, output.rows(start, start + len(each))
        start += len(each)
