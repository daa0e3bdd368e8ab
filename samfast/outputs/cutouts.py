"""Cutouts: what a mask shows of the photo, with a transparent background."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samfast import coco_rle
from samfast.atomic_files import atomic_open
from samfast.coco_rle import MaskLike
from samfast.errors import InputError, OutputError


def cutout(pixels: NDArray[np.uint8], mask: MaskLike) -> NDArray[np.uint8]:
    """(h, w, 4) uint8 RGBA: the photo inside the mask's box, transparent outside the mask.

    pixels  (H, W, 3) uint8 RGB
    mask    (H, W), not empty

    Raises InputError for an empty mask or one of another size.

        pixels = np.array(PIL.Image.open("photo.jpg").convert("RGB"))
        PIL.Image.fromarray(samfast.outputs.cutout(pixels, results[0].best()[0])).save("part.png")
    """
    if coco_rle.size_of(mask) != pixels.shape[:2]:
        height, width = coco_rle.size_of(mask)
        raise InputError(
            f"a mask of {height} x {width} for a photo of {pixels.shape[0]} x {pixels.shape[1]} "
            "(H x W); pass a mask of that photo"
        )
    inside = coco_rle.decode(mask)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if rows.size == 0:
        raise InputError("an empty mask has no cutout; leave it out")
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    alpha = inside[box].astype(np.uint8)[:, :, None] * np.uint8(255)
    return np.concatenate([pixels[box], alpha], axis=2)


def write_cutouts(
    folder: str | os.PathLike[str],
    pixels: NDArray[np.uint8],
    records: Sequence[Mapping[str, Any]],
) -> None:
    """Write the cutout of the i-th record to `folder`/i.png, from 1 on; none of an empty mask.

    The folder is made if it is missing. The first file is written last, so that all are there if it
    is, and numbers left by an earlier call are removed. Raises InputError if a mask does not fit
    the photo, OutputError if a file cannot be written.

        samfast.outputs.write_cutouts("photo.cutouts", pixels, sam.segment(["photo.jpg"])[0])
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            if old.stem.isdecimal():
                old.unlink()
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written: {error.strerror}; choose another folder"
        ) from error
    for number, record in reversed(list(enumerate(records, start=1))):
        mask = record["segmentation"]
        if coco_rle.area_of(mask):
            picture = Image.fromarray(cutout(pixels, mask))
            with atomic_open(folder / f"{number}.png") as file:
                picture.save(file, "PNG", compress_level=3)
