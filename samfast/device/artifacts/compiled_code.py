"""Compiled code kept and handed back to torch: one file a device, model, recipe and batch size.

`<cache>/compiled/<key>.bin` holds torch's own bundle (`torch.compiler.save_cache_artifacts`), in a
safetensors file, and `<key>.json` says in words what it is for, which versions made it, its size
and its SHA-256. torch unpickles what it is given, so nothing is handed to it before size, hash and
versions are right.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from samfast.atomic_files import atomic_write
from samfast.device.artifacts import shared_libraries
from samfast.device.machine import versions
from samfast.errors import OutputError
from samfast.user_cache import cache_dir

FORMAT = 1
"""Of an entry's two files; another one is not read."""

_BUNDLE = "torch"
_LOG = logging.getLogger("samfast")


@dataclass(frozen=True)
class Key:
    """What an entry is for, in words.

    device      `machine.device_name`
    model       its name and the sizes that its code depends on
    image_size  side of the model's input in pixels
    recipe      `str(Recipe)`
    batch_size  images the compiled code takes at a time
    """

    device: str
    model: str
    image_size: int
    recipe: str
    batch_size: int

    @property
    def digest(self) -> str:
        """The entry's file name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Kept:
    """An entry that was handed to torch: its file, and how many seconds compiling took without
    it.
    """

    path: Path
    seconds: float


def folder() -> Path:
    """Where entries are. It need not exist yet."""
    return cache_dir() / "compiled"


def load(key: Key) -> Kept | None:
    """Hand torch what was compiled for this key; None if there is nothing.

    An entry of other versions, or one that is not whole, is deleted, with one logged line.
    """
    described = folder() / f"{key.digest}.json"
    path = described.with_suffix(".bin")
    try:
        text = described.read_text(encoding="utf-8")
        content = path.read_bytes()
    except FileNotFoundError:
        if described.exists() or path.exists():
            _drop(path, "one of its two files is missing")
        return None
    except (OSError, ValueError) as error:
        _drop(path, f"it cannot be read ({type(error).__name__})")
        return None
    try:
        about = json.loads(text)
        reason = _flaw(about, key, content)
    except (ValueError, TypeError, LookupError, AttributeError):
        reason = "its description is damaged"
    if reason is None:
        reason = _hand_over(content)
    if reason is not None:
        _drop(path, reason)
        return None
    return Kept(path, float(about["seconds"]))


def save(key: Key, seconds: float, started: float) -> Path | None:
    """Keep what torch has compiled in this process; returns the file, None where nothing can be
    kept.

    seconds  the first call took, compiling included
    started  `time.time` at its start

    A cache that cannot be written is warned of once a process: compiled code works without it.
    """
    import torch
    from safetensors.numpy import save as to_bytes

    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return None
    parts = {_BUNDLE: saved[0]}
    if "compute capability" not in key.device:
        parts |= shared_libraries.since(started)
    content = to_bytes({name: np.frombuffer(part, np.uint8) for name, part in parts.items()})
    about = {
        "format": FORMAT,
        "for": asdict(key),
        "versions": versions(),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = folder() / f"{key.digest}.bin"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
        atomic_write(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
    except (OSError, OutputError) as error:
        _warn_once(f"compiled code is not kept, the next process compiles again: {error}")
        return None
    _LOG.info("kept what was compiled in %.0f s: %s", seconds, path)
    return path


def _flaw(about: Any, key: Key, content: bytes) -> str | None:
    """Why an entry is not to be trusted; None if it is."""
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return f"it is not of format {FORMAT}"
    if about["for"] != asdict(key):
        return "it is of something else"
    own = versions()
    made = about["versions"]
    other = [
        f"{name} {made.get(name)}, not {own[name]}" for name in own if made.get(name) != own[name]
    ]
    if other:
        return f"it was made by {'; '.join(other)}"
    if about["bytes"] != len(content):
        return f"it has {len(content)} bytes instead of {about['bytes']}"
    if about["sha256"] != hashlib.sha256(content).hexdigest():
        return "its SHA-256 is wrong"
    float(about["seconds"])
    return None


def _hand_over(content: bytes) -> str | None:
    """Give torch a bundle that was found whole; why it did not take it, or None."""
    import torch
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        parts = {name: part.tobytes() for name, part in from_bytes(content).items()}
        bundle = parts.pop(_BUNDLE)
        shared_libraries.restore(parts)
    except (SafetensorError, LookupError, ValueError):
        return "it is not as samfast writes it"
    except (OSError, OutputError) as error:
        return f"torch's own cache cannot be written ({error})"
    return (
        None
        if torch.compiler.load_cache_artifacts(bundle) is not None
        else "torch does not take it"
    )


def _drop(path: Path, reason: str) -> None:
    try:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    except OSError as error:
        reason += f" (and it cannot be deleted: {error.strerror})"
    _LOG.warning("dropped the compiled code %s: %s; it is compiled again", path, reason)


@functools.cache
def _warn_once(text: str) -> None:
    _LOG.warning("%s", text)
