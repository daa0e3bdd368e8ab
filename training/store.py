"""Training photos and masks, decoded once onto canvases of one size, in host or device memory."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from samfast.errors import DatasetError
from samfast.outputs import decode

MAX_IDS = 255
"""Most objects on one plane; 0 means no object."""


@dataclass(frozen=True)
class Store:
    """N photos with masks.

    pixels   (N, 3, canvas, canvas) uint8, the photo at top left, the rest 0
    labels   (N, L, canvas, canvas) uint8: overlapping masks are spread over L planes, each holding
             ids 1..255 of objects that do not overlap, 0 elsewhere
    sizes    (N, 2) height and width of each photo on the canvas
    sources  N names, for balanced sampling
    """

    pixels: Tensor
    labels: Tensor
    sizes: Tensor
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sources)

    def to(self, device: torch.device) -> Store:
        """The same store on another device."""
        return Store(
            self.pixels.to(device), self.labels.to(device), self.sizes.to(device), self.sources
        )

    def sampling_weights(self) -> Tensor:
        """(N,) float: sources are drawn by the square root of their size, photos evenly within."""
        counts = {name: self.sources.count(name) for name in set(self.sources)}
        return torch.tensor([counts[name] ** -0.5 for name in self.sources])


def load(folder: Path, canvas: int = 640, max_planes: int = 4, workers: int = 8) -> Store:
    """Read a folder in COCO instances format (`images/`, `annotations.json`).

    Photos longer than `canvas` pixels are made smaller. Masks that fit into none of `max_planes`
    planes are left out.
    """
    file = folder / "annotations.json"
    if not file.is_file():
        raise DatasetError(
            f"{folder}: no annotations.json; expected images/ and annotations.json (COCO instances)"
        )
    index = json.loads(file.read_text())
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in index["annotations"]:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    entries = [entry for entry in index["images"] if entry["id"] in by_image]
    if not entries:
        raise DatasetError(f"{file}: no image has a mask")

    def read(
        entry: dict[str, Any],
    ) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]], tuple[int, int]]:
        photo = Image.open(folder / "images" / entry["file_name"]).convert("RGB")
        scale = min(1.0, canvas / max(photo.size))
        size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
        if size != photo.size:
            photo = photo.resize(size, Image.Resampling.BILINEAR)
        pixels = np.zeros((3, canvas, canvas), np.uint8)
        pixels[:, : size[1], : size[0]] = np.asarray(photo).transpose(2, 0, 1)
        return pixels, planes(by_image[entry["id"]], size, canvas, max_planes), (size[1], size[0])

    with ThreadPoolExecutor(workers) as pool:
        read_all = list(pool.map(read, entries))
    depth = max(len(labels) for _, labels, _ in read_all)
    pixels = torch.empty(len(entries), 3, canvas, canvas, dtype=torch.uint8)
    labels = torch.zeros(len(entries), depth, canvas, canvas, dtype=torch.uint8)
    for i, (photo, photo_planes, _) in enumerate(read_all):
        pixels[i] = torch.from_numpy(photo)
        for p, plane in enumerate(photo_planes):
            labels[i, p] = torch.from_numpy(plane)
    sizes = torch.tensor([size for _, _, size in read_all])
    return Store(pixels, labels, sizes, tuple(entry.get("source", "all") for entry in entries))


def planes(
    annotations: list[dict[str, Any]], size: tuple[int, int], canvas: int, limit: int
) -> list[NDArray[np.uint8]]:
    """Label planes of a photo of (width, height), each mask on the first plane that has room."""
    out: list[NDArray[np.uint8]] = []
    used: list[int] = []
    for annotation in sorted(annotations, key=lambda a: -a["area"]):
        mask = mask_of(annotation)
        if mask.shape != (size[1], size[0]):
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        inside = mask.astype(bool)
        for p in range(limit):
            if p == len(out):
                out.append(np.zeros((canvas, canvas), np.uint8))
                used.append(0)
            view = out[p][: size[1], : size[0]]
            if used[p] < MAX_IDS and not view[inside].any():
                used[p] += 1
                view[inside] = used[p]
                break
    return out


def mask_of(annotation: dict[str, Any]) -> NDArray[np.uint8]:
    """The mask of an annotation, a COCO RLE, as (H, W) of 0 and 1."""
    if not isinstance(annotation["segmentation"], dict):
        raise DatasetError(f"annotation {annotation.get('id')}: polygons; give masks as RLE")
    return decode(annotation["segmentation"]).astype(np.uint8)
