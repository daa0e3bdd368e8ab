"""fp32's masks, kept for a whole ladder, and how far another recipe's masks of the same prompts
agree with them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samfast.atomic_files import atomic_write
from samfast.errors import OutputError
from samfast.masks import rle
from samfast.types import Masks


@dataclass(frozen=True)
class Fp32Masks:
    """A file an image in a folder, by the image's number: masks as run lengths, so that a whole
    data set fits.
    """

    folder: Path

    def save(self, number: int, masks: Masks) -> None:
        """Keep the answers to one image. Raises OutputError where they cannot be written, a full
        disk say.
        """
        count, several, height, width = masks.masks.shape
        runs = [
            each for own in masks.masks for each in rle.encode(own)
        ]  # an object at a time, as below
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be made: {error.strerror}; free some space"
            ) from error
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            shape=np.array([count, several, height, width]),
            lengths=np.array([len(each) for each in runs], dtype=np.int64),
            runs=np.concatenate([np.zeros(0, dtype=np.int64), *runs]).astype(np.uint32),
            best=masks.iou.argmax(dim=1).cpu().numpy(),
        )
        atomic_write(self._path(number), buffer.getvalue())

    def read(
        self, number: int
    ) -> tuple[tuple[int, ...], list[NDArray[np.int64]], NDArray[np.int64]]:
        """The shape (N, M, H, W), N * M masks as runs, and (N,) which of M fp32 prefers."""
        with np.load(self._path(number), allow_pickle=False) as kept:
            runs = np.split(kept["runs"].astype(np.int64), np.cumsum(kept["lengths"])[:-1])
            return tuple(int(n) for n in kept["shape"]), runs, kept["best"]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.npz"


@dataclass
class MaskAgreement:
    """Running sums over images of what a recipe answers; only one image's masks are held."""

    fp32: Fp32Masks
    _images: int = 0
    _iou: list[float] = field(default_factory=list)
    _flipped: list[float] = field(default_factory=list)
    _best_iou: list[float] = field(default_factory=list)
    _other: list[bool] = field(default_factory=list)

    def add(self, number: int, masks: Masks) -> None:
        """Compare the answers to one image with fp32's."""
        shape, runs, best = self.fp32.read(number)
        assert tuple(masks.masks.shape) == shape, (masks.masks.shape, shape)
        count, several, height, width = shape
        own_best = masks.iou.argmax(dim=1).cpu().numpy()
        counts = []
        for i, own in enumerate(masks.masks):
            decoded = [
                rle.decode(rle.uncompressed(each, height, width))
                for each in runs[i * several : (i + 1) * several]
            ]
            truth = torch.from_numpy(np.stack(decoded)).to(own.device)
            counts += [_overlap(own, truth), _overlap(own[own_best[i]], truth[best[i]])[None]]
        self._images += 1
        if not counts:
            return
        pixels = torch.cat(counts).cpu().numpy().reshape(count, several + 1, 2)
        both, either = pixels[..., 0], pixels[..., 1]
        iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)  # two empty masks are equal
        self._iou += iou[:, :-1].ravel().tolist()
        self._best_iou += iou[:, -1].tolist()
        self._flipped += ((either - both)[:, :-1].ravel() / (height * width)).tolist()
        self._other += (own_best != best).tolist()

    def figures(self) -> dict[str, Any] | None:
        """A row's `agreement`, ready for JSON, its keys as `samfast.bench.job.blank` lists them;
        None of nothing.
        """
        if not self._iou:
            return None
        return {
            "mask_iou": float(np.mean(self._iou)),
            "flipped_share": float(np.mean(self._flipped)),
            "images": self._images,
            "masks": len(self._iou),
            "best_mask_iou": float(np.mean(self._best_iou)),
            "other_best": float(np.mean(self._other)),
        }


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """(..., H, W) bool twice -> (..., 2): pixels of both, pixels of either."""
    return torch.stack(
        [op.flatten(-2).count_nonzero(dim=-1) for op in (first & second, first | second)], -1
    )
