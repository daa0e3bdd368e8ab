"""Prompts of several images as flat tensors and offsets, wherever they lie: on the host or on the
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samfast.device.transfer import upload
from samfast.prompts import device_checks
from samfast.types import PADDING_LABEL, PromptGroup, Size


@dataclass(frozen=True)
class Flat:
    """The prompts of P objects of some images, in the model's input frame.

    coords, labels, boxes, masks  as `PromptBatch`
    offsets  (B + 1,) int64: the objects of the i-th image are offsets[i]:offsets[i + 1]
    images   (B,) int64: the place of the i-th image among all embeddings
    count    P, which is known without looking at offsets

    All but masks on one device. Nothing here is looked at where that is not the host.
    """

    coords: Tensor | None
    labels: Tensor | None
    boxes: Tensor | None
    masks: Tensor | None
    offsets: Tensor
    images: Tensor
    count: int

    @staticmethod
    def of(group: PromptGroup) -> Flat:
        """Those of a group: on the device if any of its points or boxes are, else on the host."""
        batch = group.batch
        given = [x for x in (batch.coords, batch.labels, batch.boxes) if x is not None]
        place = next((x.device for x in given if x.device.type != "cpu"), torch.device("cpu"))
        offsets, images = torch.tensor(batch.offsets), torch.tensor(group.images, dtype=torch.int64)
        coords, labels, boxes = (
            None if x is None else upload(x, place)
            for x in (batch.coords, batch.labels, batch.boxes)
        )
        return Flat(
            coords,
            labels,
            boxes,
            batch.masks,
            upload(offsets, place),
            upload(images, place),
            len(batch),
        )

    @staticmethod
    def of_jagged(coords: Any, labels: Any, scales: Sequence[tuple[float, float]]) -> Flat:
        """Those of points (B, n, K, 2) and labels (B, n, K), jagged over n; where they are.

        scales  of each image (x, y): input pixels for each of the pixels that points are in
        """
        offsets, points = coords.offsets(), coords.values()
        place = points.device
        factors = upload(torch.tensor(scales, dtype=torch.float64), place)
        images = torch.arange(len(scales), device=place)
        flat = Flat(None, None, None, None, offsets.long(), images, len(points))
        moved = (
            points.double() * flat.per_object(factors)[:, None]
        ).float()  # rounded once, as on the host
        return replace(flat, coords=moved, labels=labels.values())

    def to(self, device: torch.device) -> Flat:
        """The same on the device, without waiting; masks stay where they are."""
        coords, labels, boxes = (
            None if x is None else upload(x, device) for x in (self.coords, self.labels, self.boxes)
        )
        offsets, images = upload(self.offsets, device), upload(self.images, device)
        return replace(
            self, coords=coords, labels=labels, boxes=boxes, offsets=offsets, images=images
        )

    def device_checks(self, sizes: Sequence[Size]) -> Tensor:
        """(P,) uint8: the codes of `samfast.prompts.device_checks` for prompts that do not fit,
        where they are.

        sizes  (height, width) of each image in input pixels
        """
        place = self.offsets.device
        wide = upload(torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32), place)
        size = self.per_object(wide)
        codes = torch.zeros(self.count, dtype=torch.uint8, device=place)
        if self.coords is not None and self.labels is not None:
            none = self.labels == PADDING_LABEL
            known = none | (self.labels == 1) | (self.labels == 0) | (self.labels == -1)
            wrong = ~known.all(1)
            if self.boxes is None and self.masks is None:
                wrong |= none.all(1)
            placed = torch.where(none[..., None], 0.0, self.coords)
            codes |= (
                wrong * device_checks.LABEL
                | device_checks.outside_image(placed, size) * device_checks.PLACE
            )
        if self.boxes is not None:
            codes |= device_checks.empty(self.boxes, size) * device_checks.PLACE
        return codes

    @property
    def on_host(self) -> bool:
        """Whether values can be looked at without waiting for a device."""
        return self.offsets.device.type == "cpu"

    @property
    def image_of(self) -> Tensor:
        """(P,) int64: the image of each object, its place among all embeddings."""
        return self.per_object(self.images)

    def per_object(self, values: Tensor) -> Tensor:
        """(P, ...): what belongs to each object's image, of values (B, ...)."""
        if self.on_host:
            # torch would wake every thread there is for a few dozen numbers: milliseconds.
            counts = np.diff(self.offsets.numpy())
            return torch.from_numpy(np.repeat(values.numpy(), counts, axis=0))
        # With its size told, it is not read from the device.
        return torch.repeat_interleave(values, self.offsets.diff(), dim=0, output_size=self.count)

    def points(self, start: int, stop: int) -> tuple[Tensor | None, Tensor | None]:
        """Coordinates and labels of some objects; on the host, without what is padding for all of
        them.
        """
        if self.coords is None or self.labels is None:
            return None, None
        coords, labels = self.coords[start:stop], self.labels[start:stop]
        if not self.on_host:
            return coords, labels
        most = int((labels.numpy() != PADDING_LABEL).sum(1).max())
        return (coords[:, :most], labels[:, :most]) if most else (None, None)

    def padded(self, labels: Tensor | None) -> bool:
        """Whether some of those points are padding, or may be as far as the host knows."""
        if labels is None:
            return False
        if self.on_host:
            return bool((labels.numpy() == PADDING_LABEL).any())
        return labels.shape[1] > 1 or self.boxes is not None or self.masks is not None
