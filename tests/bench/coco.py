"""Small data sets in COCO's instances format, written to disk for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco


def rectangle(size, top, left, height, width) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.flatten()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def annotation(identity: int, image: int, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    rows, columns = np.nonzero(mask)
    box = [
        columns.min(),
        rows.min(),
        columns.max() + 1 - columns.min(),
        rows.max() + 1 - rows.min(),
    ]
    return {
        "id": identity,
        "image_id": image,
        "category_id": 1,
        "bbox": [int(n) for n in box],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": compressed(mask),
        **more,
    }


def write(root: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Path:
    """images/ and annotations.json under `root`; each entry of `images` needs height and width."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for i, entry in enumerate(images):
        entry = {"id": i + 1, "file_name": f"{i}.png", **entry}
        pixels = np.full((entry["height"], entry["width"], 3), 40 * (i + 1), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / entry["file_name"])
        entries.append(entry)
    content = {"images": entries, "annotations": annotations, "categories": []}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def edit(root: Path, change) -> Path:
    """Let `change` alter the annotation file's content in place."""
    file = root / "annotations.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return root
