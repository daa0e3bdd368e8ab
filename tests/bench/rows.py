"""Rows of `samfast bench` and results of `samfast eval`, made up."""

from __future__ import annotations

import json
from typing import Any

STAMP = {
    "device": "cuda:0",
    "gpu": "Card A",
    "capability": "9.0",
    "driver": "1.2",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "samfast": "0.1.0",
    "commit": "abcdef0123456789",
    "dirty": False,
    "cpu": "Some CPU",
    "threads": 16,
    "tf32": False,
    "settings": {},
    "date": "2026-11-24T10:00:00+00:00",
}


def row(recipe: str = "fused", rate: float | None = 400.0, **changes: Any) -> dict[str, Any]:
    """A row of `samfast bench`; keys of the stamp that are named go into its environment."""
    stamp = {key: changes.pop(key) for key in list(changes) if key in STAMP}
    return {
        "recipe": recipe,
        "model": "vit_b",
        "batch_size": 8,
        "encoder_images_per_second": rate,
        "images_per_second": None if rate is None else 0.8 * rate,
        "peak_memory_bytes": None if rate is None else 2**30,
        "share_of_ceiling": None if rate is None else rate / 1000,
        "max_relative_error": 0.01,
        "relative_errors": {"features": 0.008, "iou": 0.01},
        "miou": None,
        "spread": 0.1,
        "weights": "random",
        "status": "ok" if rate is not None else "refused: needs a GPU",
        "environment": {**STAMP, **stamp},
    } | changes


def score(recipe: str = "fused", miou: float = 0.689, **changes: Any) -> dict[str, Any]:
    """A result of `samfast eval`."""
    stamp = {key: changes.pop(key) for key in list(changes) if key in STAMP}
    return {
        "model": "vit_xs",
        "recipe": recipe,
        "images": 165,
        "masks": 1361,
        "point": {"miou": miou, "miou_oracle": 0.76, "filled_box": 0.57},
        "box": {"miou": 0.809, "filled_box": 0.57},
        "environment": {**STAMP, **stamp},
    } | changes


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
