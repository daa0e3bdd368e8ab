"""The interface through which automatic mask generation calls a SAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from samfast.decoding.decoder_output import DecoderOutput

CPU = torch.device("cpu")

Inputs = TypeVar("Inputs")
Features = TypeVar("Features")


@dataclass(frozen=True)
class PointModel(Generic[Inputs, Features]):
    """A model that is prompted with one foreground point an object.

    encode              the inputs of a group of crops -> their features
    decode              features, and for some of the crops their place in the group and points
                        (n, 1, 2) float64 on the host, XY in the model's input pixels -> three masks
                        for each of all points, in order; `codes` may be empty, for no check
    side                the model's input side in pixels
    mask_threshold      a pixel is in a mask if its logit is above this
    device              of the decoder's output, whose memory bounds the work
    objects_per_call    most objects that the decoder itself takes at a time; None: all
    batch_across_crops  points of several crops are decoded together where those of one do not fill
                        a batch
    low_memory          an object takes the decoder little memory beside its output, so that more
                        are decoded together
    """

    encode: Callable[[Inputs], Features]
    decode: Callable[[Features, Sequence[tuple[int, Tensor]]], DecoderOutput]
    side: int
    mask_threshold: float = 0.0
    device: torch.device = CPU
    objects_per_call: int | None = None
    batch_across_crops: bool = False
    low_memory: bool = False
