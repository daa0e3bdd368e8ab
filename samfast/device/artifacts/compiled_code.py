"""Compiled code kept for torch: one entry per device, model, recipe and batch size.

`<cache>/compiled/<key>.bin` is a safetensors file with torch's bundle
(`torch.compiler.save_cache_artifacts`) and the shared libraries that belong to it. `<key>.json`
describes it, with its size and SHA-256. torch unpickles the bundle, so it is handed over only if
size, hash and versions are right, and if no other user could have written it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from samfast.atomic_files import atomic_write
from samfast.device.artifacts import shared_libraries
from samfast.device.artifacts.entries import description, drop, folder
from samfast.device.artifacts.trusted_paths import distrust
from samfast.device.machine import versions
from samfast.errors import OutputError
from samfast.user_cache import cache_dir

FORMAT = 1
"""Version of an entry's two files; other versions are not read."""

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
    def file(self) -> Path:
        """The entry's main file."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return folder("compiled") / f"{digest[:16]}.bin"


@dataclass(frozen=True)
class CachedCode:
    """Compiled code that torch has loaded: its file, and the seconds that compiling it took."""

    path: Path
    seconds: float


def load(key: Key) -> CachedCode | None:
    """Hand the compiled code for this key to torch; None if there is none.

    An entry that is incomplete, damaged or of other versions is deleted and logged. In a cache that
    other users can write to nothing is read, which is warned of once per process.
    """
    path = key.file
    described = path.with_suffix(".json")
    if not is_trusted(path, described):
        return None
    try:
        text = described.read_text(encoding="utf-8")
        content = path.read_bytes()
        about = json.loads(text)
        reason = _flaw(about, key, content) or _hand_over(content)
        if reason is None:
            return CachedCode(path, float(about["seconds"]))
    except FileNotFoundError:
        if not described.exists() and not path.exists():
            return None
        reason = "one of its two files is missing"
    except (OSError, UnicodeDecodeError) as error:
        reason = f"it cannot be read ({type(error).__name__})"
    except (ValueError, TypeError, LookupError, AttributeError):
        reason = "its description is damaged"
    drop([path, described], "compiled code", f"{reason}; it is compiled again")
    return None


def save(key: Key, seconds: float, started: float) -> Path | None:
    """Keep what torch has compiled in this process; returns the file, or None if nothing was kept.

    seconds  duration of the first call, with compilation
    started  `time.time` at its start

    A cache that cannot be written, or that other users can write to, is warned of once per process,
    since compiled code works without.
    """
    if not is_trusted(key.file):
        return None
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return None
    parts = {_BUNDLE: saved[0]}
    if "compute capability" not in key.device:
        parts |= shared_libraries.since(started)
    content = to_bytes({name: np.frombuffer(part, np.uint8) for name, part in parts.items()})
    about = description(
        asdict(key),
        format=FORMAT,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        seconds=round(seconds, 1),
    )
    path = key.file
    if not write_entry(path, content, about):
        return None
    _LOG.info("kept the code compiled in %.0f s: %s", seconds, path)
    return path


def write_entry(path: Path, content: bytes, about: bytes) -> bool:
    """Write an entry's two files; returns whether they could be, which is else warned of, once."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(path, content)
        atomic_write(path.with_suffix(".json"), about)
    except (OSError, OutputError) as error:
        warn_once(f"compiled code is not kept, the next process compiles again: {error}")
        return False
    return True


def _flaw(about: Any, key: Key, content: bytes) -> str | None:
    """Why an entry cannot be used; None if it can."""
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return f"it is not of format {FORMAT}"
    if about["for"] != asdict(key):
        return "it is for another key"
    made_by = about["versions"]
    differences = [
        f"{name} {made_by.get(name)}, not {version}"
        for name, version in versions().items()
        if made_by.get(name) != version
    ]
    if differences:
        return f"it was made by {'; '.join(differences)}"
    if about["bytes"] != len(content):
        return f"it has {len(content)} bytes instead of {about['bytes']}"
    if about["sha256"] != hashlib.sha256(content).hexdigest():
        return "its SHA-256 is wrong"
    float(about["seconds"])
    return None


def _hand_over(content: bytes) -> str | None:
    """Give a verified bundle to torch; returns why that failed, or None."""
    try:
        parts = {name: part.tobytes() for name, part in from_bytes(content).items()}
        bundle = parts.pop(_BUNDLE)
        shared_libraries.restore(parts)
    except (SafetensorError, LookupError, ValueError):
        return "samfast did not write it"
    except (OSError, OutputError) as error:
        return f"torch's cache cannot be written ({error})"
    if torch.compiler.load_cache_artifacts(bundle) is None:
        return "torch does not accept it"
    return None


def is_trusted(*files: Path) -> bool:
    """Whether only this user could have written the files; otherwise warns."""
    reason = distrust((cache_dir(), files[0].parent, *files))
    if reason is not None:
        warn_once(f"compiled code is neither read nor kept, because torch would run it: {reason}")
    return reason is None


@functools.cache
def warn_once(text: str) -> None:
    """Warn of it the first time in this process."""
    _LOG.warning("%s", text)
