"""The prompts of some objects as one flat tensor of 32-bit words: one copy to the device, one input
of a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samfast.types import PADDING_LABEL


class PromptViews(NamedTuple):
    """What lies in the words of P objects, shared with them.

    coords     (P, K, 2) float32 XY in input pixels, and labels (P, K) int32; None without points
    boxes      (P, 4) float32 XYXY in input pixels, or None
    source_of  (P,) int32: which of the sources the object is of
    sources    (Q,) int32: which of the images each source is
    """

    coords: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    source_of: Tensor
    sources: Tensor


@dataclass(frozen=True)
class PromptLayout:
    """How many words there are and of what; two batches of one layout run through the same code.

    objects  P, sources Q, points K of an object (0: none), all with those that only fill up
    boxes    whether there are any, masks the same of mask prompts, which lie elsewhere
    padded   whether some points may be padding
    """

    objects: int
    sources: int
    points: int
    boxes: bool
    masks: bool
    padded: bool

    @property
    def size(self) -> int:
        """Words."""
        return sum(self._parts)

    @property
    def _parts(self) -> tuple[int, int, int, int, int]:
        points = self.objects * self.points
        return 2 * points, points, 4 * self.objects * self.boxes, self.objects, self.sources

    @property
    def _places(self) -> Iterator[slice]:
        for size, stop in zip(self._parts, accumulate(self._parts), strict=True):
            yield slice(stop - size, stop)

    def views(self, words: Tensor) -> PromptViews:
        """The parts of `size` words, int32, on any device."""
        coords, labels, boxes, source_of, sources = (words[place] for place in self._places)
        return PromptViews(
            coords.view(torch.float32).view(self.objects, self.points, 2) if self.points else None,
            labels.view(self.objects, self.points) if self.points else None,
            boxes.view(torch.float32).view(self.objects, 4) if self.boxes else None,
            source_of,
            sources,
        )

    def write(
        self, coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None, image_of: Tensor
    ) -> Tensor:
        """The words of no more objects, sources and points than the layout has room for.

        coords, labels, boxes  as `PromptBatch`;  image_of (P,) int64, the objects of an image
                               following each other

        All on one device, where the words are then. Objects that fill up are of source 0 and have,
        as points, the model's "not a point": what they are answered is finite, and nobody looks at
        it.
        """
        if on_host(image_of):
            return self._write_here(coords, labels, boxes, image_of)
        count = len(image_of)
        words = torch.zeros(self.size, dtype=torch.int32, device=image_of.device)
        views = self.views(words)
        if views.coords is not None and views.labels is not None:
            views.labels.fill_(PADDING_LABEL)
            views.labels[count:].fill_(-1)
            if coords is not None and labels is not None:
                views.coords[:count, : coords.shape[1]].copy_(coords)
                views.labels[:count, : labels.shape[1]].copy_(labels)
        if views.boxes is not None and boxes is not None:
            views.boxes[:count].copy_(boxes)
        source = sources_of(image_of)
        views.source_of[:count].copy_(source)
        views.sources.scatter_(0, source, image_of.to(torch.int32))
        return words

    def _write_here(
        self, coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None, image_of: Tensor
    ) -> Tensor:
        """The same on the host, where a step of NumPy costs a third of one of torch: a click waits
        for them all.
        """
        count = len(image_of)
        words = np.zeros(self.size, dtype=np.int32)
        clicks, kinds, corners, source_of, sources = (words[place] for place in self._places)
        if self.points:
            kinds.fill(PADDING_LABEL)
            kinds[count * self.points :].fill(-1)
            if coords is not None and labels is not None:
                given = labels.shape[1]
                clicks.view(np.float32).reshape(-1, self.points, 2)[:count, :given] = (
                    coords.detach().float().numpy()
                )
                kinds.reshape(-1, self.points)[:count, :given] = labels.numpy()
        if self.boxes and boxes is not None:
            corners.view(np.float32).reshape(-1, 4)[:count] = boxes.detach().float().numpy()
        source = sources_of(image_of).numpy()
        source_of[:count] = source
        sources[source] = image_of.numpy()
        return torch.from_numpy(words)


def on_host(values: Tensor) -> bool:
    """Whether NumPy may look at them."""
    return values.device.type == "cpu"


def sources_of(image_of: Tensor) -> Tensor:
    """(P,) int64: of the images that have objects, in order, which each object's is."""
    if on_host(image_of):
        own = image_of.numpy()
        moved = np.zeros(own.shape, dtype=np.int64)
        moved[1:] = own[1:] != own[:-1]
        return torch.from_numpy(moved.cumsum())
    changes = torch.zeros_like(image_of)
    changes[1:] = image_of[1:] != image_of[:-1]
    return changes.cumsum(0)


def token_mask(labels: Tensor, boxes: bool) -> Tensor:
    """(P, T) bool, False for the tokens of padded points, as the prompt encoder makes tokens of
    labels (P, K).
    """
    real = labels != PADDING_LABEL
    if boxes:
        return torch.cat([real, real.new_ones(len(real), 2)], dim=1)
    # An object without any point has no "not a point" token either.
    return torch.cat([real, real.any(dim=1, keepdim=True)], dim=1)
