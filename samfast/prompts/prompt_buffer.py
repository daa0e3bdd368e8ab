"""The prompts of some objects in one flat int32 tensor: one copy to the device, one graph input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samfast.prompts.object_rows import on_host
from samfast.types import PADDING_LABEL


class PromptViews(NamedTuple):
    """The contents of a buffer for P objects; they share its memory.

    coords     (P, K, 2) float32 XY in input pixels, and labels (P, K) int32; None without points
    boxes      (P, 4) float32 XYXY in input pixels, or None
    source_of  (P,) int32: the index of each object's source among the sources
    sources    (Q,) int32: the index of each source among the images
    """

    coords: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    source_of: Tensor
    sources: Tensor


@dataclass(frozen=True)
class PromptLayout:
    """The sizes of a buffer's contents; buffers of one layout run through the same graph.

    objects  P, sources Q, points K of an object (0: none), all including padding
    boxes    whether objects have boxes; masks the same of mask prompts, which are not in the buffer
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
        """Of the buffer in 32-bit numbers."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> tuple[int, int, int, int, int]:
        points = self.objects * self.points
        return 2 * points, points, 4 * self.objects * self.boxes, self.objects, self.sources

    @property
    def _slices(self) -> Iterator[slice]:
        for size, stop in zip(self._sizes, accumulate(self._sizes), strict=True):
            yield slice(stop - size, stop)

    def views(self, buffer: Tensor) -> PromptViews:
        """The contents of a buffer (size,) int32, on any device."""
        coords, labels, boxes, source_of, sources = (buffer[part] for part in self._slices)
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
        """A buffer of at most as many objects, sources and points as the layout has.

        coords, labels, boxes  as `PackedPrompts`
        image_of               (P,) int64, the objects of an image following each other

        All on one device, where the buffer is made. Padding objects are of source 0 and have the
        model's "not a point" for points, so that their answers, which are not used, are finite.
        """
        if on_host(image_of):
            return self._write_on_host(coords, labels, boxes, image_of)
        count = len(image_of)
        buffer = torch.zeros(self.size, dtype=torch.int32, device=image_of.device)
        views = self.views(buffer)
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
        return buffer

    def _write_on_host(
        self, coords: Tensor | None, labels: Tensor | None, boxes: Tensor | None, image_of: Tensor
    ) -> Tensor:
        """The same with NumPy, a call of which takes a third of one of torch; a click waits for
        all of them.
        """
        count = len(image_of)
        buffer = np.zeros(self.size, dtype=np.int32)
        points, kinds, corners, source_of, sources = (buffer[part] for part in self._slices)
        if self.points:
            kinds.fill(PADDING_LABEL)
            kinds[count * self.points :].fill(-1)
            if coords is not None and labels is not None:
                width = labels.shape[1]
                places = points.view(np.float32).reshape(-1, self.points, 2)
                places[:count, :width] = coords.detach().float().numpy()
                kinds.reshape(-1, self.points)[:count, :width] = labels.numpy()
        if self.boxes and boxes is not None:
            corners.view(np.float32).reshape(-1, 4)[:count] = boxes.detach().float().numpy()
        source = sources_of(image_of).numpy()
        source_of[:count] = source
        sources[source] = image_of.numpy()
        return torch.from_numpy(buffer)


def sources_of(image_of: Tensor) -> Tensor:
    """(P,) int64: the index of each object's image among the images that have objects."""
    if on_host(image_of):
        images = image_of.numpy()
        moved = np.zeros(images.shape, dtype=np.int64)
        moved[1:] = images[1:] != images[:-1]
        return torch.from_numpy(moved.cumsum())
    changes = torch.zeros_like(image_of)
    changes[1:] = image_of[1:] != image_of[:-1]
    return changes.cumsum(0)


def token_mask(labels: Tensor, boxes: bool) -> Tensor:
    """(P, T) bool, False for the tokens of padding points; T as the prompt encoder makes it of
    labels (P, K).
    """
    real = labels != PADDING_LABEL
    if boxes:
        return torch.cat([real, real.new_ones(len(real), 2)], dim=1)
    # An object without any point has no "not a point" token either.
    return torch.cat([real, real.any(dim=1, keepdim=True)], dim=1)
