"""Kernel configurations that were found on a GPU, kept as JSON: one file a device and model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samfast.atomic_files import atomic_write
from samfast.device.machine import versions
from samfast.errors import OutputError
from samfast.user_cache import cache_dir

Row = dict[str, Any]
"""As `samfast.attention.tuning.tune` returns it."""

_LOG = logging.getLogger("samfast")


def save(device: str, model: str, batch_size: int, rows: Sequence[Row]) -> Path:
    """Keep what tuning found; returns the file. Raises OutputError where it cannot be written.

    device      `samfast.device.machine.device_name`
    model       its name, for people
    batch_size  images it was tuned for
    """
    purpose = {"device": device, "model": model, "batch_size": batch_size}
    about = {
        "for": purpose,
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": list(rows),
    }
    name = hashlib.sha256(json.dumps([device, model]).encode()).hexdigest()[:16]
    path = cache_dir() / "tuned" / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made: {error.strerror}") from error
    atomic_write(path, (json.dumps(about, indent=1) + "\n").encode())
    return path


def load(device: str, use: Callable[[Sequence[Row]], None]) -> list[Path]:
    """Hand `use` what was found on this device; returns the files it took.

    A file of other versions, a damaged one, or one that `use` raises ValueError for is deleted,
    with one logged line.
    """
    taken = []
    folder = cache_dir() / "tuned"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["for"]["device"] != device:
                continue
            if about["versions"] != versions():
                raise ValueError("it was made by other versions")
            use(about["rows"])
        except (OSError, LookupError, TypeError, ValueError) as error:
            _drop(path, str(error) if type(error) is ValueError else "it is damaged")
            continue
        taken.append(path)
    return taken


def _drop(path: Path, reason: str) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        reason += f" (and it cannot be deleted: {error.strerror})"
    _LOG.warning("dropped the tuned configurations %s: %s; the defaults are used", path, reason)
