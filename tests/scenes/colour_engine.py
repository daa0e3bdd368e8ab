"""An engine for scenes that finds every area of one colour: exact, and quick."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from samfast import coco_rle
from samfast.images import LoadedImage
from samfast.outputs.records import bounding_box
from samfast.scenes.tile_reader import FILL
from samfast.types import Embeddings, FilterCounts, MaskRecords, Masks, Prompts

BACKGROUND = (0, 0, 0)

COUNTS = FilterCounts(0, 0, 0, 0, 0)


def record_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A record of a mask as `SamFast.segment_each` gives it, clicked on one of its pixels."""
    rows, columns = np.nonzero(mask)
    middle = len(rows) // 2
    return {
        "segmentation": coco_rle.encode(mask),
        "area": len(rows),
        "bbox": bounding_box(mask),
        "predicted_iou": 0.9,
        "stability_score": 0.95,
        "point_coords": [[float(columns[middle]), float(rows[middle])]],
    }


class ColourEngine:
    """Has the methods that scenes call; each colour but black is an object.

    images  how many were shown
    """

    image_size, batch_size, fingerprint = 256, 2, "colours"

    def __init__(self) -> None:
        self.images = 0

    def segment_each(self, images: Iterator[LoadedImage], **options: Any) -> Iterator[MaskRecords]:
        for image in images:
            self.images += 1
            colours = np.unique(image.pixels.reshape(-1, 3), axis=0)
            masks = [
                (image.pixels == colour).all(2)
                for colour in colours
                if tuple(colour) not in (FILL, BACKGROUND)
            ]
            yield MaskRecords([record_of(mask) for mask in masks], image.size, COUNTS)

    def embed(self, images: list[LoadedImage]) -> Embeddings:
        self.images += len(images)
        pixels = [torch.from_numpy(image.pixels.astype(np.float32)) for image in images]
        sizes = tuple(image.size for image in images)
        return Embeddings(torch.stack(pixels), sizes, sizes, self.fingerprint)

    def predict(
        self, embeddings: Embeddings, prompts: list[Prompts], *, multimask: bool = True
    ) -> list[Masks]:
        """The area of the first click's colour, or of the colour in the middle of the box."""
        answers = []
        for pixels, asked in zip(embeddings.features, prompts, strict=True):
            places = (
                [np.asarray(xy)[0] for xy in asked.points]
                if asked.points is not None
                else [(box[:2] + box[2:]) / 2 for box in np.asarray(asked.boxes)]
            )
            masks = [(pixels == pixels[int(y), int(x)]).all(2)[None] for x, y in places]
            logits = torch.zeros(len(masks), 1, 64, 64)
            answers.append(Masks(torch.stack(masks), torch.full((len(masks), 1), 0.9), logits))
        return answers


def coloured_scene(
    size: tuple[int, int], count: int, seed: int = 0, largest: int = 120
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(H, W, 3) with up to `count` ellipses that hide parts of each other, and labels (H, W).

    Each connected part has a label and a colour of its own.
    """
    height, width = size
    draw = np.random.default_rng(seed)
    labels = np.zeros(size, dtype=np.int64)
    y, x = np.mgrid[:height, :width]
    for number in range(1, count + 1):
        cx, cy = draw.uniform(0, width), draw.uniform(0, height)
        rx, ry = draw.uniform(8, largest, 2)
        labels[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = number
    parts = np.zeros(size, dtype=np.int64)
    for number in range(1, count + 1):
        connected, _ = ndimage.label(labels == number)
        parts = np.where(connected > 0, connected + parts.max(), parts)
    return colours_of(parts), parts


def colours_of(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(H, W, 3), a colour for each label; 0 is black."""
    mixed = labels * 2654435761 % (1 << 24)
    return np.stack([mixed & 255, mixed >> 8 & 255, mixed >> 16], 2).astype(np.uint8)
