"""Tuned configurations of Triton kernels, kept as JSON: one file per device and model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write
from samfast.device.artifacts.entries import description, drop, folder
from samfast.device.machine import versions
from samfast.errors import OutputError

Row = dict[str, Any]
"""A configuration, as `samfast.attention.tuning.tune` returns it."""


def save(device: str, model: str, batch_size: int, rows: Sequence[Row]) -> Path:
    """Keep tuned configurations; returns the file. Raises OutputError if it cannot be written.

    device      `samfast.device.machine.device_name`
    model       its name
    batch_size  that the kernels were tuned for
    """
    name = hashlib.sha256(json.dumps([device, model]).encode()).hexdigest()[:16]
    path = folder("tuned") / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made: {error.strerror}") from error
    purpose = {"device": device, "model": model, "batch_size": batch_size}
    atomic_write(path, description(purpose, rows=list(rows)))
    return path


def load(device: str, use: Callable[[Sequence[Row]], None]) -> list[Path]:
    """Call `use` with the configurations tuned on this device; returns the files they are from.

    A damaged file, one of other versions, or one for which `use` raises ValueError is deleted and
    logged.
    """
    used = []
    for path in sorted(folder("tuned").glob("*.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["for"]["device"] != device:
                continue
            if about["versions"] != versions():
                raise ValueError("it was made by other versions")
            use(about["rows"])
        except (OSError, LookupError, TypeError, ValueError) as error:
            reason = str(error) if type(error) is ValueError else "it is damaged"
            drop([path], "tuned configurations", f"{reason}; the defaults are used")
            continue
        used.append(path)
    return used
