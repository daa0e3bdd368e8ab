"""Training photos and masks, decoded once onto canvases of one size, in host or device memory."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from samfast.errors import DatasetError
from samfast.outputs import decode

MAX_IDS = 255
"""Most objects on one plane; 0 means no object."""

MAX_PLANES = 4
"""Planes of labels; a mask that overlaps others on every plane is left out."""

HELD_OUT = 40
"""One photo in so many is kept out of training, to calibrate the predicted IoU on."""


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

    def sampling_weights(self, boost: dict[str, float]) -> Tensor:
        """(N,) float: sources are drawn by the square root of their size, photos evenly within.

        boost  factors by source; 1 for sources that are not in it
        """
        counts = {name: self.sources.count(name) for name in set(self.sources)}
        return torch.tensor([boost.get(name, 1.0) * counts[name] ** -0.5 for name in self.sources])


@dataclass(frozen=True)
class Entry:
    """A photo to read, and the annotations of its masks."""

    path: Path
    source: str
    annotations: list[dict[str, Any]]


def is_held_out(path: Path) -> bool:
    """Whether a photo is for calibration; by its name without suffix, so that copies agree."""
    return zlib.crc32(path.stem.encode()) % HELD_OUT == 0


def entries(folder: Path) -> list[Entry]:
    """The photos with masks of a folder in COCO instances format (`images/`, annotations.json)."""
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
    entries = [
        Entry(
            folder / "images" / entry["file_name"],
            entry.get("source", folder.name),
            by_image[entry["id"]],
        )
        for entry in index["images"]
        if entry["id"] in by_image
    ]
    if not entries:
        raise DatasetError(f"{file}: no image has a mask")
    return entries


def load(folders: Sequence[Path], canvas: int = 512, held_out: bool | None = None) -> Store:
    """Read folders in COCO instances format on all cores.

    canvas    photos with a longer side are made smaller
    held_out  only the photos that calibration uses (True), only the others (False), or all (None)
    """
    chosen = [
        entry
        for folder in folders
        for entry in entries(folder)
        if held_out is None or is_held_out(entry.path) == held_out
    ]
    if not chosen:
        raise DatasetError(f"{', '.join(map(str, folders))}: no photo is left")
    count = len(chosen)
    # Forked processes write into memory that all of them share.
    pixels = _shared((count, 3, canvas, canvas))
    labels = _shared((count, MAX_PLANES, canvas, canvas))
    reader = _Reader(chosen, pixels, labels)
    with ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("fork"), _Reader.install, (reader,)
    ) as pool:
        read = list(pool.map(_Reader.read, range(count), chunksize=4))
    depth = max(planes for _, planes in read)
    return Store(
        torch.from_numpy(pixels),
        torch.from_numpy(labels)[:, :depth],
        torch.tensor([size for size, _ in read]),
        tuple(entry.source for entry in chosen),
    )


def _shared(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    memory = mmap.mmap(-1, int(np.prod(shape)))
    return np.frombuffer(memory, np.uint8).reshape(shape)


class _Reader:
    """Reads photos into shared arrays, in worker processes."""

    installed: _Reader

    def __init__(
        self, chosen: list[Entry], pixels: NDArray[np.uint8], labels: NDArray[np.uint8]
    ) -> None:
        self.entries, self.pixels, self.labels = chosen, pixels, labels

    @staticmethod
    def install(reader: _Reader) -> None:
        """Set the reader of a worker process."""
        _Reader.installed = reader

    @staticmethod
    def read(number: int) -> tuple[tuple[int, int], int]:
        """Read photo `number`; returns its height and width, and how many planes its masks take."""
        reader = _Reader.installed
        entry = reader.entries[number]
        canvas = reader.pixels.shape[-1]
        photo = Image.open(entry.path).convert("RGB")
        scale = min(1.0, canvas / max(photo.size))
        size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
        if size != photo.size:
            photo = photo.resize(size, Image.Resampling.BILINEAR)
        reader.pixels[number][:, : size[1], : size[0]] = np.asarray(photo).transpose(2, 0, 1)
        used = draw_planes(entry.annotations, size, reader.labels[number])
        return (size[1], size[0]), used


def draw_planes(
    annotations: list[dict[str, Any]], size: tuple[int, int], out: NDArray[np.uint8]
) -> int:
    """Draw masks of a photo of (width, height), each on the first plane of `out` that has room.

    Returns how many planes are used.
    """
    used = [0] * len(out)
    for annotation in sorted(annotations, key=lambda a: -a["area"]):
        mask = mask_of(annotation)
        if mask.shape != (size[1], size[0]):
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        inside = mask.astype(bool)
        for p in range(len(out)):
            view = out[p][: size[1], : size[0]]
            if used[p] < MAX_IDS and not view[inside].any():
                used[p] += 1
                view[inside] = used[p]
                break
    return max(1, sum(count > 0 for count in used))


def mask_of(annotation: dict[str, Any]) -> NDArray[np.uint8]:
    """The mask of an annotation, a COCO RLE, as (H, W) of 0 and 1."""
    if not isinstance(annotation["segmentation"], dict):
        raise DatasetError(f"annotation {annotation.get('id')}: polygons; give masks as RLE")
    return decode(annotation["segmentation"]).astype(np.uint8)


def share(store: Store | None, device: torch.device) -> Store:
    """The first process's store, copied to the device of every process."""
    if not dist.is_initialized():
        assert store is not None
        return store.to(device)
    header: list[Any] = [None]
    if store is not None:
        header = [(store.pixels.shape, store.labels.shape, store.sizes.tolist(), store.sources)]
    dist.broadcast_object_list(header, 0, device=device)
    pixel_shape, label_shape, sizes, sources = header[0]
    if store is None:
        pixels = torch.empty(pixel_shape, dtype=torch.uint8, device=device)
        labels = torch.empty(label_shape, dtype=torch.uint8, device=device)
    else:
        pixels, labels = store.pixels.to(device), store.labels.to(device).contiguous()
    for tensor in (pixels, labels):
        for part in torch.split(tensor, 256):
            dist.broadcast(part, 0)
    return Store(pixels, labels, torch.tensor(sizes, device=device), sources)
